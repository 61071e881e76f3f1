"""Held-out tasks (2026): general-knowledge questions instead of the 38 how-to tasks."""

from inspect_ai import Task, task

from esr_eval.data.arguments import (
    Count,
    Flag,
    LatentsArgument,
    LogFile,
    Number,
    Seed,
    Strength,
    Topics,
    checked,
)
from esr_eval.tasks.experiment import Bench, experiment, plan_trials

VERSION = 1
PAPER = {
    "paper": "arXiv:2602.06941",
    "experiment": "12 (held-out tasks)",
    "deviations": ["The questions are in this project's own words."],
}


@task
@checked
def held_out(
    latents: LatentsArgument = None,
    n_latents: Number | None = None,
    trials_per_latent: Count = 5,
    strength: Strength = "calibrated",
    topics: Topics = None,
    steering: Flag = True,
    seed: Seed = 0,
    replay: LogFile | None = None,
    holistic: Flag = False,
) -> Task:
    """The main experiment on 20 questions that no strength was calibrated on.

    Args:
        latents: Indices or a file of labels, as in `esr`.
        n_latents: How many latents to draw at random. Default: all.
        trials_per_latent: Trials for each latent, each with another question and seed.
        strength: `calibrated` (on the main tasks), a number, or a multiple (`1.5x`).
        topics: Topics to ask about, of the 20. Default: all.
        steering: false for the baseline: the same questions and seeds with the boost off.
        seed: Seed of the draw of latents, questions and sampling seeds.
        replay: A log of `held_out` whose trials are run again.
        holistic: Also score how the response as a whole improves, 0-10 (the second view).
    """
    bench = Bench.open()
    plan = plan_trials(
        bench,
        latents=latents,
        n_latents=n_latents,
        trials_per_latent=trials_per_latent,
        strength=strength,
        topics=topics,
        steering=steering,
        seed=seed,
        replay=replay,
        prompt_set="held_out",
    )
    return experiment(
        bench,
        plan,
        version=VERSION,
        paper=PAPER,
        name="esr-held-out",
        experiment_id="held_out",
        condition="held-out tasks" + ("" if steering else ", no steering"),
        holistic=holistic,
    )
