"""Boost sweep (paper, experiment on boost strength): how attempts depend on the strength."""

import statistics
from typing import Annotated, Any

from inspect_ai import Task, task
from pydantic import Field

from esr_eval.data.arguments import (
    Count,
    Flag,
    LatentsArgument,
    LogFile,
    Number,
    Positive,
    Seed,
    Topics,
    checked,
)
from esr_eval.dataset import Planned, choose_prompts, draw_trials, is_latents_file, labels_note
from esr_eval.errors import EsrError
from esr_eval.logs.replay import replay_log
from esr_eval.tasks.experiment import Bench, Plan, check_replayed, experiment

VERSION = 1
N_LATENTS = 25
PAPER = {"paper": "arXiv:2602.06941", "experiment": "2 (boost sweep)", "deviations": []}


@task
@checked
def boost_sweep(
    levels: Annotated[int, Field(ge=2, le=1000)] = 8,
    span_sd: Positive = 3.0,
    latents: LatentsArgument = None,
    n_latents: Number | None = N_LATENTS,
    trials_per_latent: Count = 10,
    topics: Topics = None,
    seed: Seed = 0,
    replay: LogFile | None = None,
    holistic: Flag = False,
) -> Task:
    """Multi-attempt, improvement and ESR rates over evenly spaced strengths.

    The strengths lie evenly between the mean of the latents' calibrated strengths minus and plus
    `span_sd` of their standard deviations, never below 0. At every level the same latents, tasks
    and seeds are run; metrics are reported for each level.

    Args:
        levels: How many strengths.
        span_sd: How far they reach from the mean, in standard deviations.
        latents: Indices or a file of labels, as in `esr`.
        n_latents: How many latents to draw at random; null takes all.
        trials_per_latent: Trials for each latent at each level.
        topics: Topics to ask about, of the 38. Default: all.
        seed: Seed of the draw of latents, tasks and sampling seeds.
        replay: A log of `boost_sweep` whose trials are run again, in place of all of the above.
        holistic: Also score how the response as a whole improves, 0-10 (the second view).
    """
    bench = Bench.open()
    if replay is not None:
        check_replayed(latents=latents, topics=topics)
        found = replay_log(replay, "steered")
        bench.provider.check_latents([one.trial.latent for one in found.planned])
        return _sweep(bench, Plan(found.planned, found.source), {}, holistic)
    # The default number is of latents that are drawn, from the subject's labels or a file's.
    named = latents is not None and not is_latents_file(latents)
    count = None if named and n_latents == N_LATENTS else n_latents
    chosen = bench.latents(latents, count, seed)
    calibrated = list(bench.strengths("calibrated", chosen).values())
    if len(calibrated) < 2:
        raise EsrError("A sweep needs two latents or more: their strengths span its range.")
    mean, sd = statistics.mean(calibrated), statistics.stdev(calibrated)
    planned: list[Planned] = []
    for step in range(levels):
        level = span_sd * (2 * step / (levels - 1) - 1)
        strength = max(0.0, mean + level * sd)
        trials = draw_trials(
            chosen,
            {latent.index: strength for latent in chosen},
            choose_prompts(topics),
            trials_per_latent,
            seed,
            "steered",
        )
        planned += [
            one._replace(trial=one.trial.model_copy(update={"level": round(level, 2)}))
            for one in trials
        ]
    note = labels_note(bench.provider.subject, latents, bench.provider.runtime)
    return _sweep(
        bench, Plan(planned, labels=note), {"strength_mean": mean, "strength_sd": sd}, holistic
    )


def _sweep(bench: Bench, plan: Plan, extra: dict[str, Any], holistic: bool) -> Task:
    return experiment(
        bench,
        plan,
        version=VERSION,
        paper=PAPER,
        name="esr-sweep",
        experiment_id="boost_sweep",
        condition="boost sweep",
        grouped_by="level",
        holistic=holistic,
        extra=extra,
    )
