"""What scorers share: the trial, how a verdict becomes its score, and metrics over scores.

Trials of one latent are alike, so the metrics' intervals treat the latents as the independent
draws. With fewer than two latents their spread cannot be known: the interval then covers the trials
of that latent alone, and says so by `clusters` = 1 beside its bounds.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, cast

from inspect_ai.event import ErrorEvent, SpanBeginEvent
from inspect_ai.log import transcript
from inspect_ai.scorer import Metric, SampleScore, Score, Value, metric
from inspect_ai.solver import TaskState

from esr_eval.data.trial import Trial
from esr_eval.errors import EsrError
from esr_eval.scorers.cleaning import plain, without_secrets
from esr_eval.scorers.grader import Answered

logger = logging.getLogger(__name__)

NAN = float("nan")
"""Value of a key that is not defined for a trial: Inspect leaves it out of that key's metrics."""

Bounds = dict[str, float]
_NOTHING = {"lower": NAN, "upper": NAN, "clusters": 0.0}

_CEILINGS = {1: 3, 10: 10}
"""Upper ends of other scales, and how many scores it takes to suspect one."""

_told: dict[str, Counter[float]] = {}
"""Scores that a judge was last warned about."""


def trial_of(state: TaskState) -> Trial:
    """The trial's metadata.

    Raises:
        EsrError: The sample is not an ESR trial.
    """
    try:
        return state.metadata_as(Trial)
    except ValueError:
        raise EsrError(
            f"Sample {state.sample_id} carries no ESR trial (condition, latent, label, strength, "
            "topic, seed) in its metadata, so it cannot be scored."
        ) from None


def task_of(state: TaskState) -> str:
    """What the model was asked: the last user message, or the sample's input."""
    for message in reversed(state.messages):
        if message.role == "user":
            return message.text
    return state.input_text


def errored() -> str | None:
    """The error that ended the sample before scoring, if one did.

    With `Task(score_on_error=True)` scorers see such samples, but neither their state nor Inspect's
    public interface says so: the transcript does, by an error event before the scorers' span. One
    after it is a scorer's own (of an earlier run, when a stored log is scored again), and the
    response is whole.
    """
    for event in transcript().events:
        if isinstance(event, SpanBeginEvent) and event.name == "scorers":
            return None
        if isinstance(event, ErrorEvent):
            return event.error.message
    return None


def failed(judge: str, values: Mapping[str, float]) -> Score | None:
    """The score of a sample that ended before it had a response; None where it has one.

    Args:
        judge: Who would have judged.
        values: A failed trial's numbers.
    """
    message = errored()
    if message is None:
        return None
    return Score(
        value=dict(values),
        answer="errored",
        explanation=f"Failed before there was a response: {plain(without_secrets(message), 400)}",
        reason="scoring_failed",
        metadata={"judge": judge},
    )


def judged(
    verdict: Answered[Any],
    judge: str,
    rubric: int,
    values: Mapping[str, float],
    answer: str,
    explanation: str,
    **details: Any,
) -> Score:
    """The score of a trial that a judge was asked about.

    Args:
        verdict: What the judge said.
        judge: Its name.
        rubric: Version of the wording that it was asked in.
        values: The trial's numbers.
        answer: The verdict in a few words.
        explanation: The verdict with its evidence.
        details: What tables and later analyses need, and no more: the log holds it twice.
    """
    asked = f", asked {verdict.retries + 1} times" if verdict.retries else ""
    return Score(
        value=dict(values),
        answer=answer,
        explanation=f"{explanation}\n- Judge: {plain(judge)}{asked}",
        reason=None if verdict.value is not None else "grader_failed",
        metadata={
            "judge": judge,
            "rubric": rubric,
            **details,
            "retries": verdict.retries,
            "unscored_because": verdict.reason,
        },
    )


def unscored_because(verdict: Answered[Any]) -> str:
    """Why a verdict could not be used, for the viewer."""
    return f"Unscored: {plain(verdict.problem, 300)}"


COUNTS = ("unscored", "errored")
"""Exceptions, which are shown as numbers of samples."""


@metric
def headlines(
    means: Sequence[str],
    counts: Sequence[str] = COUNTS,
    scored: str | None = None,
    top: int = 100,
    by: str | None = None,
) -> Metric:
    """The few numbers of a scorer that Inspect shows when a run ends.

    All of them are one metric that returns a mapping, because Inspect shows the keys of such a
    mapping as they are, and every other name of a package's metric with the package before it.
    Intervals, and the values that are not named here, are computed from the samples' scores by
    `esr-eval summary` and the report.

    Args:
        means: Keys whose mean over the samples that define them is shown; left out where none does.
        counts: Keys of 0 or 1 that are shown as a number of samples; one of several epochs counts
            by its mean.
        scored: Key of a judge's scores: `other_scale` is 1, and a warning is logged, where they
            look like those of another scale.
        top: The upper end of the scale that the judge was asked for.
        by: Key of the sample metadata: one mean for each of its values.
    """

    def compute(scores: list[SampleScore]) -> Value:
        groups: dict[str, list[SampleScore]] = {}
        for one in scores:
            group = "" if by is None else f" {by} {(one.sample_metadata or {}).get(by)}"
            groups.setdefault(group, []).append(one)
        found = {
            f"{key}{group}": fmean(value for _, value in known)
            for key in means
            for group, members in groups.items()
            if (known := defined(members, key))
        }
        found |= {key: sum(value for _, value in defined(scores, key)) for key in counts}
        judged = defined(scores, scored) if scored is not None else []
        if judged and doubted([with_value(one, value) for one, value in judged], top):
            found["other_scale"] = 1.0
        return cast(Value, found)

    return cast(Metric, compute)


def bounded(found: Any, names: Iterable[str]) -> dict[str, float]:
    """Estimates by name, each with its bounds as `NAME_low` and `NAME_high`, as far as known.

    Args:
        found: Has an estimate with `value`, `low` and `high`, or None, under each name.
        names: Of its attributes.
    """
    told: dict[str, float] = {}
    for name in names:
        if (value := getattr(found, name)) is not None:
            bounds = {"": value.value, "_low": value.low, "_high": value.high}
            told |= {name + end: bound for end, bound in bounds.items() if bound is not None}
    return told


def defined(scores: Iterable[SampleScore], key: str) -> list[tuple[SampleScore, float]]:
    """The samples whose scores have a number under a key, with that number.

    Args:
        scores: Of one scorer, with a mapping as value.
        key: In the mapping.
    """
    found = []
    for one in scores:
        value = one.score.value.get(key) if isinstance(one.score.value, dict) else None
        if isinstance(value, int | float) and not math.isnan(value):
            found.append((one, float(value)))
    return found


def with_value(one: SampleScore, value: float) -> SampleScore:
    """The same sample's score with one number as its value, for metrics over numbers."""
    return one.model_copy(update={"score": one.score.model_copy(update={"value": value})})


# Not shown any more: Inspect looks these three up, and `all_restarts` of the main scorer, where a
# score in a log of before 0.2 is changed, or such a log is scored again.


@metric
def rate_interval(cluster: str = "latent") -> Metric:
    """95 % Wilson interval of a rate, with size and degrees of freedom of clustered trials.

    It is the interval of every table and comparison, `esr_eval.stats.rates.clustered_wilson`,
    and not Inspect's `ci_wilson`, which covers less than it says where hits are rare.

    Args:
        cluster: Key of the sample metadata that names the cluster.
    """

    def bounds(scores: list[SampleScore], clusters: list[int]) -> Bounds:
        # Here, for scipy is slow to load and every `inspect` command imports the scorers.
        from esr_eval.stats.rates import cluster_counts, clustered_wilson

        values = [score.score.as_float() for score in scores]
        _, low, high = clustered_wilson(*cluster_counts(values, clusters, shares=True))
        return {"lower": float(low), "upper": float(high)}

    return cast(Metric, _clustered(bounds, cluster))


@metric
def mean_interval(cluster: str = "latent") -> Metric:
    """95 % t interval of a mean, with clustered standard errors: that of every table.

    Args:
        cluster: Key of the sample metadata that names the cluster.
    """

    def bounds(scores: list[SampleScore], clusters: list[int]) -> Bounds:
        from esr_eval.stats.means import clustered_mean

        values = [score.score.as_float() for score in scores]
        units = clusters if len(set(clusters)) > 1 else range(len(values))
        mean, low, high = clustered_mean(values, units)
        return {"lower": mean if low is None else low, "upper": mean if high is None else high}

    return cast(Metric, _clustered(bounds, cluster))


def _clustered(
    bounds: Callable[[list[SampleScore], list[int]], Bounds], cluster: str
) -> Callable[[list[SampleScore]], Value]:
    def compute(scores: list[SampleScore]) -> Value:
        if not scores:
            return dict(_NOTHING)
        names = [(score.sample_metadata or {}).get(cluster) for score in scores]
        number = {name: index for index, name in enumerate(dict.fromkeys(names))}
        interval = bounds(scores, [number[name] for name in names])
        return {**interval, "clusters": float(len(number))}

    return compute


def scale_doubt(scores: Iterable[float], top: int = 100) -> str | None:
    """Why a judge's scores look like those of another scale; None where they do not.

    Zeros alone say nothing: an answer can be that bad on any scale.

    Args:
        scores: Every score that one judge gave in a run; NaN is left out.
        top: The upper end of the scale that it was asked for.
    """
    given = [score for score in scores if not math.isnan(score)]
    highest = max(given, default=0)
    for ceiling, enough in _CEILINGS.items():
        if 0 < highest <= ceiling < top and len(given) >= enough:
            return (
                f"none of its {len(given)} scores is above {ceiling}, on a scale up to {top}: "
                f"either every answer is that bad, or it scores from 0 to {ceiling}, and means of "
                "its scores mean nothing (read some of its replies, or choose another judge)"
            )
    return None


def warn_of_scale(scores: Sequence[float], judge: str, top: int = 100) -> bool:
    """Log a warning where `scale_doubt` has one.

    Inspect computes metrics again and again while samples come in, and once more at the end: the
    same judge's warning is repeated only once its scores have doubled, or for other scores.

    Returns:
        Whether there is a doubt.
    """
    doubt = scale_doubt(scores, top)
    if doubt is None:
        return False
    before, now = _told.get(judge), Counter(score for score in scores if not math.isnan(score))
    if before is None or not before <= now or now.total() >= 2 * before.total():
        _told[judge] = now
        logger.warning("The judge %s may use another scale: %s.", judge, doubt)
    return True


@metric
def other_scale(top: int = 100) -> Metric:
    """1 where the judge seems to score on another scale, with a warning in the log; 0 elsewhere.

    Args:
        top: The upper end of the scale that it was asked for.
    """

    def compute(scores: list[SampleScore]) -> Value:
        return float(doubted(scores, top)) if scores else NAN

    return cast(Metric, compute)


def doubted(scores: Sequence[SampleScore], top: int) -> bool:
    """Whether a judge's scores look like those of another scale, with a warning in the log.

    Args:
        scores: At least one.
        top: The upper end of the scale that it was asked for.
    """
    given = [score for sample in scores for score in _given(sample)]
    judge = str((scores[0].score.metadata or {}).get("judge", "?"))
    return warn_of_scale(given, judge, top)


def _given(sample: SampleScore) -> list[float]:
    """All scores of a sample: of every attempt where the metadata has them, else the value."""
    attempts = (sample.score.metadata or {}).get("attempts")
    if isinstance(attempts, list) and attempts:
        return [float(attempt["score"]) for attempt in attempts]
    return [sample.score.as_float()]
