"""Held-out tasks (2026): general-knowledge questions instead of the 38 how-to tasks."""

from inspect_ai import Task, task

from esr_eval.checks import Wanted
from esr_eval.data.arguments import (
    Count,
    Flag,
    LatentsArgument,
    LogFile,
    Method,
    Number,
    Prior,
    Seed,
    Share,
    Strength,
    Topics,
    checked,
    with_method,
)
from esr_eval.tasks.experiment import Draw, Protocol, Setup, experiment, no_steering

PROTOCOL = Protocol("12 (held-out tasks)", "The questions are in this project's own words.")


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
    rejudge: Share = 0.0,
    prior: Prior = None,
    method: Method = None,
) -> Task:
    """The main experiment on 20 questions that no strength was calibrated on.

    Args:
        latents: Indices or a file of labels, as in `esr`.
        n_latents: How many latents to draw at random. Default: all.
        trials_per_latent: Trials for each latent, each with another question and seed.
        strength: As in `esr`; calibrated on the main tasks.
        topics: Topics to ask about, of the 20. Default: all.
        steering: false for the baseline: the same questions and seeds with the boost off.
        seed: Seed of the draw of latents, questions and sampling seeds.
        replay: A log of `held_out` whose trials are run again.
        holistic: Also score how the response as a whole improves, 0-10 (the second view).
        rejudge: Share of the responses that the judge scores again, blind: its own reliability.
        prior: Changes to the prior of strengths that are calibrated in the run, as in `calibrate`.
        method: Of these searches, `paper` or `curve`, as in `calibrate`.
    """
    setup = Setup.open(Wanted(labels=replay is None, latents=latents))
    draw = Draw(
        latents, n_latents, trials_per_latent, strength, topics, seed, with_method(prior, method)
    )
    return experiment(
        setup,
        setup.plan(draw, steering, replay, "held_out"),
        PROTOCOL,
        "held_out",
        name="esr-held-out",
        condition="held-out tasks" + no_steering(steering),
        holistic=holistic,
        rejudge=rejudge,
    )
