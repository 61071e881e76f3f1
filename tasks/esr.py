"""The main experiment (paper, main results): boost an unrelated latent, watch for recovery."""

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
from esr_eval.tasks.experiment import Draw, Protocol, Setup, experiment

PROTOCOL = Protocol(
    "1 (main) and 8 (no steering)",
    "The judge's prompt is in this project's own words.",
    "Attempts are found by quotes of their first and last words.",
    "Latents, their number and the trials for each are parameters (paper: 500 x 5).",
)


@task
@checked
def esr(
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
    until_token: Number | None = None,
) -> Task:
    """Endogenous steering resistance: attempts and their scores under a boosted latent.

    Length and temperature of the responses are the subject's (paper: 512 tokens, 0.6) unless
    `--max-tokens` and `--temperature` say otherwise.

    Args:
        latents: Indices (7,12,40) among the subject's labelled latents, or a file of labels (CSV
            index_in_sae,label, or a Neuronpedia export). Default: the subject's own.
        n_latents: How many of them to draw at random. Default: all; of a whole SAE's labels 20,
            chosen in the run: concrete by the judge, and silent on the tasks.
        trials_per_latent: Trials for each latent, each with another task and seed.
        strength: `calibrated` (per latent; searched in the run where none is known), a number, a
            multiple of the calibrated (`1.5x`), a share of the residual's norm (`0.6rms`), or
            `prior`: uncalibrated, where a search would begin.
        topics: Topics to ask about, of the 38. Default: all.
        steering: false for the baseline: the same latents, tasks and seeds with the boost off.
        seed: Seed of the draw of latents, tasks and sampling seeds.
        replay: A log whose latents, strengths, tasks and seeds are run again, trial by trial.
        holistic: Also score how the response as a whole improves, 0-10 (the second view).
        rejudge: Share of the responses that the judge scores again, blind: its own reliability.
        prior: Changes to the prior of strengths that are calibrated in the run, as in `calibrate`.
        method: Of these searches, `paper` or `curve`, as in `calibrate`.
        until_token: End the boost after so many generated tokens (not the paper's setting).
    """
    setup = Setup.open(Wanted(labels=replay is None, latents=latents))
    draw = Draw(
        latents, n_latents, trials_per_latent, strength, topics, seed, with_method(prior, method)
    )
    return experiment(
        setup,
        setup.plan(draw, steering, replay),
        PROTOCOL,
        "esr" if steering else "no_steering",
        name="esr-steered" if steering else "esr-unsteered",
        condition="main" if steering else "no steering",
        holistic=holistic,
        rejudge=rejudge,
        until_token=until_token,
    )
