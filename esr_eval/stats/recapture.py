"""How many there are in all, from two detectors that each miss some (capture-recapture)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from esr_eval.stats.rates import FEWEST_DF, Estimate, Floats, cluster_counts


def all_hits(
    first: Sequence[float] | Floats,
    second: Sequence[float] | Floats,
    both: Sequence[float] | Floats,
    clusters: Sequence[Any] | NDArray[Any],
    level: float = 0.95,
) -> Estimate | None:
    """The share of trials that are hits, those that both detectors miss among them.

    It assumes that the detectors miss independently of one another, and that what they find is
    there. Hits that are easy for both make it too low, false alarms of one make it too high.

    Args:
        first: 0 or 1 for each trial, by the one detector; NaN in any of the three leaves it out.
        second: By the other.
        both: 1 where they found the same hit.
        clusters: The cluster (latent) of each trial.
        level: Coverage of the interval.

    Returns:
        None where they share no hit: nothing is known of what both missed.
    """
    a, b, m = (np.asarray(values, dtype=float) for values in (first, second, both))
    known, labels = ~np.isnan(a + b + m), np.asarray(clusters)
    (hits, trials), (hits_second, _), (shared, _) = (
        cluster_counts(values[known], labels[known]) for values in (a, b, m)
    )
    if not shared.sum():
        return None
    value, low, high = recapture(hits, hits_second, shared, trials, level)
    if np.isnan(low):
        return Estimate(float(value))
    return Estimate(float(value), float(low), float(high))


def recapture(
    first: ArrayLike,
    second: ArrayLike,
    both: ArrayLike,
    trials: ArrayLike,
    level: float = 0.95,
) -> tuple[Floats, Floats, Floats]:
    """Chapman's estimate as a share of the trials, its interval on the scale of the logarithm.

    The estimate is (A + 1) (B + 1) / (M + 1) - 1 (Chapman 1951), of the hits of either detector
    and those of both. The usual variance takes the number of hits for fixed and hits for
    independent. Here they are a share of trials that come in clusters, so the logarithm of A B / M
    over the trials is linearised, as for any ratio of a survey's totals, and its variance is that
    of the clusters' parts, with degrees of freedom from their kurtosis as in
    `esr_eval.stats.rates.clustered_wilson`. statsmodels and scipy have none of it.

    Args:
        first: Hits of the one detector in each cluster, along the last axis; further axes are
            further data sets.
        second: Those of the other.
        both: Hits that both found.
        trials: Trials of each cluster, of the same shape or one for all.
        level: Coverage of the interval.

    Returns:
        Estimate, lower and upper bound; NaN where no hit is shared, bounds also from one cluster.
    """
    a, b, m = (np.asarray(counts, dtype=float) for counts in (first, second, both))
    n = np.broadcast_to(np.asarray(trials, dtype=float), a.shape)
    count = a.shape[-1]
    total_a, total_b, total_m, total = (counts.sum(-1) for counts in (a, b, m, n))
    shared = total_m > 0
    found = ((total_a + 1) * (total_b + 1) / (total_m + 1) - 1) / total
    found = np.where(shared, found.clip(None, 1.0), np.nan)
    if count < 2:
        return found, np.full_like(found, np.nan), np.full_like(found, np.nan)

    def part(counts: Floats, of: Floats) -> Floats:
        parts: Floats = counts / of[..., None]
        return parts

    parts = part(a, total_a + 1) + part(b, total_b + 1) - part(m, total_m + 1) - part(n, total)
    parts -= parts.mean(-1, keepdims=True)
    second_moment = (parts**2).sum(-1)
    spread = second_moment > 1e-18
    kurtosis = count * (parts**4).sum(-1) / np.where(spread, second_moment, 1.0) ** 2
    df = 2 * count / (kurtosis - (count - 3) / (count - 1)).clip(1e-9)
    df = np.where(spread, df, 0.0).clip(FEWEST_DF).clip(None, count - 1.0)
    critical = student.ppf(0.5 + level / 2, df)
    factor = np.exp(critical * np.sqrt(second_moment * count / (count - 1)))
    # All clusters alike: nothing is known of the spread.
    factor = np.where(spread, factor, np.nan)
    # NaN stays NaN where no hit is shared.
    return found, found / factor, np.minimum(found * factor, 1.0)
