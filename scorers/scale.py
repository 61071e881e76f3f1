"""Whether a judge used the scale that it was asked to use: seen only over many of its scores."""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import cast

from inspect_ai.scorer import Metric, SampleScore, Value, metric

logger = logging.getLogger(__name__)

_CEILINGS = {1: 3, 10: 10}
"""Upper ends of other scales, and how many scores it takes to suspect one."""

_told: dict[str, int] = {}


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

    Inspect computes metrics again and again while samples come in: the same judge's warning is
    repeated only once its scores have doubled, or in another run.

    Returns:
        Whether there is a doubt.
    """
    doubt = scale_doubt(scores, top)
    if doubt is None:
        return False
    before, now = _told.get(judge, 0), len(scores)
    if not before < now < 2 * before:
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
        if not scores:
            return float("nan")
        given = [score for sample in scores for score in _given(sample)]
        judge = str((scores[0].score.metadata or {}).get("judge", "?"))
        return float(warn_of_scale(given, judge, top))

    return cast(Metric, compute)


def _given(sample: SampleScore) -> list[float]:
    """All scores of a sample: of every attempt where the metadata has them, else the value."""
    attempts = (sample.score.metadata or {}).get("attempts")
    if isinstance(attempts, list) and attempts:
        return [float(attempt["score"]) for attempt in attempts]
    return [sample.score.as_float()]
