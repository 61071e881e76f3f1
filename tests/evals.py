"""Real evaluations of the embedded subject, small."""

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


def beyond(log_dir, model=HERE):
    """Answers of both tasks beyond the paper, by task and sample, and how much was edited."""
    found = {}
    for task, few in BEYOND.items():
        log = embedded(task, log_dir, max_tokens=12, model=model, **few)
        for sample in log.samples:
            edited = sample.output.metadata["edited_positions"]
            found[task, sample.id] = (sample.output.completion, edited)
    return found
