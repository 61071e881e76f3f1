"""The main experiment (paper, main results): boost an unrelated latent, watch for recovery."""

from inspect_ai import Task, task
from inspect_ai.model import GenerateConfig, get_model

from esr_eval.boosts import resolve_strengths
from esr_eval.dataset import choose_prompts, pick_latents, trials_dataset
from esr_eval.scorers.attempts import attempts
from esr_eval.scorers.grader import grader_model
from esr_eval.solvers import provider_of, steered_generate
from esr_eval.viewing import trials_view

VERSION = 1
MOST_ERRORS = 0.1
"""Share of trials that may fail before the run as a whole counts as failed."""
PAPER = {
    "paper": "arXiv:2602.06941",
    "experiment": "1 (main) and 8 (no steering)",
    "deviations": [
        "The judge's prompt is in this project's own words.",
        "Attempts are found by quotes of their first and last words.",
        "Latents, their number and the trials for each are parameters (paper: 500 x 5).",
    ],
}


@task
def esr(
    latents: str | int | list[int] | None = None,
    n_latents: int | None = None,
    trials_per_latent: int = 5,
    strength: str | float = "calibrated",
    topics: str | list[str] | None = None,
    steering: bool = True,
    seed: int = 0,
) -> Task:
    """Endogenous steering resistance: attempts and their scores under a boosted latent.

    Length and temperature of the responses are the subject's (paper: 512 tokens, 0.6) unless
    `--max-tokens` and `--temperature` say otherwise.

    Args:
        latents: Indices (7,12,40) among the subject's labelled latents, or a file of labels (CSV
            index_in_sae,label, or a Neuronpedia export). Default: the subject's own.
        n_latents: How many of them to draw at random. Default: all.
        trials_per_latent: Trials for each latent, each with another task and seed.
        strength: `calibrated` (per latent), a number, or a multiple of the calibrated (`1.5x`).
        topics: Topics to ask about, of the 38. Default: all.
        steering: false for the baseline: the same latents, tasks and seeds with the boost off.
        seed: Seed of the draw of latents, tasks and sampling seeds.
    """
    model = get_model()
    provider = provider_of(model)
    provider.preflight()
    subject = provider.subject
    grader = grader_model(str(model))
    chosen = pick_latents(subject, latents, n_latents, seed)
    provider.check_latents([latent.index for latent in chosen])
    strengths = (
        resolve_strengths(strength, provider.runtime, subject, chosen, str(grader))
        if steering
        else {}
    )
    return Task(
        dataset=trials_dataset(
            chosen,
            strengths,
            choose_prompts(topics),
            trials_per_latent,
            seed,
            "steered" if steering else "unsteered",
        ),
        solver=steered_generate(),
        scorer=attempts(),
        config=GenerateConfig(
            max_tokens=subject.max_tokens,
            temperature=subject.temperature,
            max_connections=provider.max_connections(),
        ),
        # A trial that fails is counted and shown; a run in which many fail is no result.
        score_on_error=True,
        fail_on_error=MOST_ERRORS,
        viewer=trials_view(),
        version=VERSION,
        metadata={**PAPER, "subject": subject.name, "judge": str(grader)},
    )
