"""One metric of two logs compared, and whether the change is worse, beyond noise and of any size.

Trials pair by latent, task, seed and epoch where most of them do; rates are compared as in
`esr_eval.stats.comparisons`, means by cluster-robust t tests, always with the latent as the
unit. All tests of one comparison are one family, corrected by Holm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from esr_eval.logs.conditions import Condition, TrialKey, shared_trials
from esr_eval.logs.measures import HOLISTIC
from esr_eval.stats.comparisons import Comparison, compare_pairs, compare_unpaired, holm
from esr_eval.stats.means import difference_of_sides, mean_difference
from esr_eval.stats.rates import Estimate, Floats

Worse = Literal["up", "down", "either", "neither"]
DIRECTIONS: tuple[Worse, ...] = ("up", "down", "either", "neither")
Verdict = Literal[
    "no change beyond noise", "changed", "changed, below margin", "cannot be told", "REGRESSION"
]
"""`cannot be told` is a difference within a single latent, of which no other latent tells."""


class Metric(NamedTuple):
    """How a metric is compared: share or mean, the direction that is worse, what size matters."""

    is_rate: bool
    worse: Worse
    margin: float


METRICS = {
    "multi_attempt": Metric(True, "down", 0.01),
    "esr": Metric(True, "down", 0.01),
    "first_score": Metric(False, "down", 2.0),
    "improvement": Metric(False, "down", 0.2),
    "improvement_unscored": Metric(True, "up", 0.01),
    "degraded": Metric(True, "up", 0.01),
    "no_attempt": Metric(True, "up", 0.01),
    "unscored": Metric(True, "up", 0.01),
    "errored": Metric(True, "up", 0.01),
}


_COLUMNS = {
    "improvement": f"{HOLISTIC}improvement",
    "improvement_unscored": f"{HOLISTIC}unscored",
}
"""What the second view's metrics are called among a trial's values."""


class _Sides(NamedTuple):
    """A metric's values in the base and in the new log, and the latent of each."""

    first: Floats
    second: Floats
    latents: list[list[int]]
    paired: bool


@dataclass(frozen=True)
class Change:
    """One metric of one pair of logs.

    Attributes:
        log: Name of the pair.
        metric: Key of the score.
        base: Of the stored log, over the trials that are compared.
        new: Of the new one.
        difference: New minus base, its interval at the level asked for, not corrected.
        p_value: Of no difference; None where there is nothing to test (all alike, one latent).
        corrected: The same by Holm, over all tests of the comparison.
        paired: Whether trials were paired.
        trials: Trials (or pairs) in the base and in the new log.
        verdict: What it comes to.
    """

    log: str
    metric: str
    base: float
    new: float
    difference: Estimate
    p_value: float | None
    paired: bool
    trials: tuple[int, int]
    corrected: float | None = None
    verdict: Verdict = "no change beyond noise"


def change_of(
    base: Condition, new: Condition, name: str, metric: Metric, level: float, resamples: int
) -> Change | None:
    """One metric of two logs; None where one of them has no trial with it."""
    old, young = values_of(base, name), values_of(new, name)
    if not old or not young:
        return None
    first, second, latents = shared_trials(old, young)
    sides = _Sides(first, second, [latents.tolist()] * 2, paired=True)
    if 2 * len(first) < min(len(old), len(young)):
        first, second = (np.array([side[key] for key in sorted(side)]) for side in (old, young))
        latents_of_each = [[key.latent for key in sorted(side)] for side in (old, young)]
        sides = _Sides(first, second, latents_of_each, paired=False)
    difference, p_value = (
        _rates(sides, level, resamples) if metric.is_rate else _means(sides, level)
    )
    return Change(
        log=new.name,
        metric=name,
        base=float(first.mean()),
        new=float(second.mean()),
        difference=difference,
        p_value=p_value,
        paired=sides.paired,
        trials=(len(first), len(second)),
    )


def values_of(condition: Condition, name: str) -> dict[TrialKey, float]:
    """A metric of each trial that has it."""
    if name == "errored":
        # A trial that failed in a run without score_on_error has no score that would tell.
        return dict(zip(condition.keys, condition.failed.astype(float), strict=True))
    return condition.by_trial(_COLUMNS.get(name, name))


def judge(changes: Sequence[Change], metrics: Mapping[str, Metric], level: float) -> list[Change]:
    """Correct the p values for their number and say what each change is."""
    corrected = holm({"all": [change.p_value for change in changes]})["all"]
    return [
        replace(change, corrected=p, verdict=_verdict(change, metrics, p, level))
        for change, p in zip(changes, corrected, strict=True)
    ]


def _rates(sides: _Sides, level: float, resamples: int) -> tuple[Estimate, float | None]:
    first, second, latents, paired = sides
    found: Comparison | None
    if paired:
        found = compare_pairs(first, second, latents[0], level, resamples)
    else:
        found = compare_unpaired((first, latents[0]), (second, latents[1]), level, resamples)
    assert found is not None
    # Where nothing could have turned out otherwise there is no test to count (Tarone 1990).
    alike = not (first != second).any() if paired else np.ptp(np.concatenate([first, second])) == 0
    return found.difference, None if alike else found.p_value


def _means(sides: _Sides, level: float) -> tuple[Estimate, float | None]:
    first, second, latents, paired = sides
    if paired:
        found = mean_difference(second - first, latents[0], level)
    else:
        found = difference_of_sides(first, latents[0], second, latents[1], level)
    p_value = found.p_value
    if paired and not (first != second).any():
        p_value = None
    elif p_value is None and found.clusters > 1:
        # No spread at all: what is left is that every latent moved the same way by chance.
        p_value = 2.0 ** (1 - found.clusters)
    return Estimate(found.value, found.low, found.high), p_value


def _verdict(
    change: Change, metrics: Mapping[str, Metric], p_value: float | None, level: float
) -> Verdict:
    metric, size = metrics[change.metric], change.difference.value
    if p_value is None and size:
        return "cannot be told"
    if p_value is None or p_value > 1 - level:
        return "no change beyond noise"
    if abs(size) < metric.margin:
        return "changed, below margin"
    worse = {"up": size > 0, "down": size < 0, "either": True, "neither": False}[metric.worse]
    return "REGRESSION" if worse else "changed"
