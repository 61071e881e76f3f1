"""One metric of two logs compared, and whether the change is worse, beyond noise and of any size.

Trials pair by latent, task, seed and epoch where most of them do; rates are compared as in
`esr_eval.stats.comparisons`, means by cluster-robust t tests, always with the latent as the
unit. All tests of one comparison are one family, corrected by Holm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from statsmodels.api import OLS

from esr_eval.logs.measured import Measured
from esr_eval.stats.comparisons import Comparison, compare_pairs, compare_unpaired
from esr_eval.stats.rates import Estimate, Floats
from esr_eval.stats.tests import holm

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
    base: Measured, new: Measured, name: str, metric: Metric, level: float, resamples: int
) -> Change | None:
    """One metric of two logs; None where one of them has no trial with it."""
    old, young = base.values.get(name, {}), new.values.get(name, {})
    if not old or not young:
        return None
    shared = sorted(old.keys() & young.keys())
    paired = 2 * len(shared) >= min(len(old), len(young))
    keys = (shared, shared) if paired else (sorted(old), sorted(young))
    first = np.array([old[key] for key in keys[0]])
    second = np.array([young[key] for key in keys[1]])
    sides = _Sides(first, second, [[key.latent for key in side] for side in keys], paired)
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
        paired=paired,
        trials=(len(first), len(second)),
    )


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
    """Difference of means by least squares with clustered errors, t of clusters - 1 df.

    Source: Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640.
    """
    first, second, latents, paired = sides
    values = second - first if paired else np.concatenate([first, second])
    is_new = np.repeat([0.0, 1.0], [len(first), len(second)])
    factors = np.ones_like(values)[:, None] if paired else np.column_stack([is_new, is_new**0])
    mean, count = float(second.mean() - first.mean()), min(len(set(side)) for side in latents)
    if count < 2 or (paired and not values.any()):
        return Estimate(mean), None
    groups = np.unique(latents[0] if paired else [*latents[0], *latents[1]], return_inverse=True)[1]
    fit = OLS(values, factors).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    if not fit.bse[0] > 1e-9 * abs(mean):
        # No spread at all: what is left is that every latent moved the same way by chance.
        return Estimate(mean), 2.0 ** (1 - count) if mean else 1.0
    low, high = fit.conf_int(1 - level)[0]
    return Estimate(mean, float(low), float(high)), float(fit.pvalues[0])


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
