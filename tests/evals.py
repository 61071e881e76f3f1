"""Real evaluations of the embedded subject, small."""

import pytest
from inspect_ai import eval as inspect_eval

HERE = {"model_args": {"device": "cpu"}}
BEYOND = {
    "protective": {"n_prompts": 2, "n_random": 1},
    "injected_thought": {"n_latents": 2, "trials_per_latent": 1, "unrelated": 1},
}


def embedded(task, log_dir, *, max_tokens=16, model=HERE, **task_args):
    """The log of a task of this package, run to its end: on the CPU, or where the model says."""
    [log] = inspect_eval(
        f"esr_eval/{task}",
        model="esr/smollm2-135m",
        task_args=task_args,
        max_tokens=max_tokens,
        log_dir=str(log_dir),
        display="none",
        **model,
    )
    assert log.status == "success", log.error
    return log


def beyond(folder, **model):
    """Answers of both tasks beyond the paper, here and where the model says.

    Returns:
        For each the answers by task and sample, and how many positions were edited.
    """
    both = []
    for where in (HERE, model):
        found = {}
        # Directions are taken by each: neither finds the other's in the cache.
        own = folder / str(len(both))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("esr_eval.vectors.directions.cache_root", lambda own=own: own)
            for task, few in BEYOND.items():
                log = embedded(task, own / "logs", max_tokens=12, model=where, **few)
                for sample in log.samples:
                    edited = sample.output.metadata["edited_positions"]
                    found[task, sample.id] = (sample.output.completion, edited)
        both.append(found)
    return both
