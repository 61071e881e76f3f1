"""Boost sweep (paper, experiment on boost strength): how attempts depend on the strength."""

import statistics
from dataclasses import replace
from typing import Annotated

from inspect_ai import Task, task
from pydantic import Field

from esr_eval.checks import Wanted
from esr_eval.data.arguments import (
    Count,
    Flag,
    LatentsArgument,
    LogFile,
    Method,
    Number,
    Positive,
    Prior,
    Seed,
    Share,
    Topics,
    checked,
    with_method,
)
from esr_eval.dataset import Planned, is_latents_file
from esr_eval.errors import EsrError
from esr_eval.tasks.experiment import Draw, Plan, Protocol, Setup, check_replayed, experiment

N_LATENTS = 25
PROTOCOL = Protocol("2 (boost sweep)")


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
    rejudge: Share = 0.0,
    prior: Prior = None,
    method: Method = None,
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
        rejudge: Share of the responses that the judge scores again, blind: its own reliability.
        prior: Changes to the prior of strengths that are calibrated in the run, as in `calibrate`.
        method: Of these searches, `paper` or `curve`, as in `calibrate`.
    """
    setup = Setup.open(Wanted(labels=replay is None, latents=latents))
    extra: dict[str, float] = {}
    if replay is not None:
        check_replayed(latents=latents, topics=topics)
        plan = setup.replayed(replay, "steered")
    else:
        # The default number is of latents that are drawn, from the subject's labels or a file's.
        named = latents is not None and not is_latents_file(latents)
        count = None if named and n_latents == N_LATENTS else n_latents
        draw = Draw(
            latents,
            count,
            trials_per_latent,
            "calibrated",
            topics,
            seed,
            with_method(prior, method),
        )
        plan, extra = _swept(setup, draw, levels, span_sd)
    return experiment(
        setup,
        plan,
        PROTOCOL,
        "boost_sweep",
        name="esr-sweep",
        condition="boost sweep",
        grouped_by="level",
        holistic=holistic,
        rejudge=rejudge,
        extra=extra,
    )


def _swept(setup: Setup, draw: Draw, levels: int, span_sd: float) -> tuple[Plan, dict[str, float]]:
    """The trials of every level; where a strength is not known yet, its level alone is.

    Raises:
        EsrError: There are fewer than two latents.
    """
    base = setup.plan(draw, True, None)
    known = {one.trial.latent: one.trial.strength for one in base.planned}
    if len(known) < 2:
        raise EsrError("A sweep needs two latents or more: their strengths span its range.")
    pending = base.preparation is not None
    mean, sd = statistics.mean(known.values()), statistics.stdev(known.values())
    steps = [span_sd * (2 * step / (levels - 1) - 1) for step in range(levels)]
    planned: list[Planned] = []
    for level in steps:
        about = {
            "level": round(level, 2),
            "pending": pending,
            "strength": 0.0 if pending else max(0.0, mean + level * sd),
            "strength_found": None if pending else "mean and SD of the calibrated",
        }
        planned += [one._replace(trial=one.trial.model_copy(update=about)) for one in base.planned]
    if base.preparation is None:
        return replace(base, planned=planned), {"strength_mean": mean, "strength_sd": sd}
    needs = {**base.preparation, "trials": len(planned), "levels": steps}
    return replace(base, planned=planned, preparation=needs), {}
