"""Cluster bootstrap of the difference and the ratio of two rates."""

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.stats import bootstrap

from esr_eval.stats.rates import Estimate, Floats

RESAMPLES = 9999
SEED = 0
"""So that the same logs give the same numbers."""


def bootstrap_intervals(
    hits: Floats,
    trials: Floats,
    hits_after: Floats,
    trials_after: Floats,
    level: float,
    resamples: int,
) -> tuple[Estimate, Estimate | None]:
    """Difference and ratio of the rates, with percentile intervals of resampled clusters.

    The ratio r is resampled as r / (1 + r), the second rate's part of both rates' sum: it is
    defined, and lies between 0 and 1, also where a resample has no hit in the first condition.
    Percentiles are the same on either scale. In simulation they covered better than BCa where
    hits are few.
    """
    data = (hits, trials, hits_after, trials_after)
    part = float(_part(*data))

    def as_ratio(share: float) -> float:
        return share / (1 - share) if share < 1 else np.inf

    def interval(statistic: Callable[..., Floats]) -> tuple[float, float] | None:
        if len(hits) < 2:
            return None
        found = bootstrap(
            data,
            statistic,
            paired=True,
            vectorized=True,
            method="percentile",
            confidence_level=level,
            n_resamples=resamples,
            batch=1000,
            rng=np.random.default_rng(SEED),
        )
        low, high = map(float, found.confidence_interval)
        # Every resample alike: nothing is known of the spread.
        return None if low == high else (low, high)

    spread = interval(_difference)
    difference = Estimate(float(_difference(*data)), *(spread or (None, None)))
    if not 0 <= part < 1:
        return difference, None
    spread = interval(partial(_part, otherwise=part))
    low, high = map(as_ratio, spread) if spread else (None, None)
    return difference, Estimate(as_ratio(part), low, high)


def _difference(
    hits: Floats, trials: Floats, hits_after: Floats, trials_after: Floats, axis: int = -1
) -> Floats:
    rates = _rates(hits, trials, hits_after, trials_after, axis)
    difference: Floats = rates[1] - rates[0]
    return difference


def _part(
    hits: Floats,
    trials: Floats,
    hits_after: Floats,
    trials_after: Floats,
    axis: int = -1,
    otherwise: float = np.nan,
) -> Floats:
    """The second rate's part of the sum of both; `otherwise` where there is no hit at all."""
    first, second = _rates(hits, trials, hits_after, trials_after, axis)
    total = first + second
    return np.where(total > 0, second / np.where(total > 0, total, 1.0), otherwise)


def _rates(
    hits: Floats, trials: Floats, hits_after: Floats, trials_after: Floats, axis: int
) -> tuple[Floats, Floats]:
    # A resample may miss all clusters of one of two unlike conditions; it then counts as no hit.
    return (
        hits.sum(axis) / trials.sum(axis).clip(1.0),
        hits_after.sum(axis) / trials_after.sum(axis).clip(1.0),
    )
