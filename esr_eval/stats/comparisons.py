"""Rates of two conditions compared, over replayed pairs of trials or over unlike trials."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esr_eval.stats.bootstrap import RESAMPLES, bootstrap_intervals
from esr_eval.stats.rates import Estimate, Floats, Rate, cluster_counts, rate
from esr_eval.stats.tests import mcnemar_tests, pooled_t_test, sign_flip_test


@dataclass(frozen=True)
class Comparison:
    """The second condition against the first; what is not defined is None.

    Attributes:
        first: Rate of the first condition, over the trials that are compared.
        second: Rate of the second.
        difference: Second rate minus first, with its cluster bootstrap interval.
        ratio: Second rate over first, likewise. Its interval excludes 1 when that of the
            difference excludes 0: both come from the same resamples.
        p_value: Of no effect, by a test that respects the clusters.
    """

    first: Rate
    second: Rate
    difference: Estimate
    ratio: Estimate | None
    p_value: float | None


@dataclass(frozen=True)
class PairedComparison(Comparison):
    """The same, of trials that differ in nothing but the condition.

    Attributes:
        only_first: Pairs that are hits in the first condition alone.
        only_second: Pairs that are hits in the second alone.
        mcnemar: Exact McNemar test on these, as if pairs were independent.
        mcnemar_mid_p: Its mid-p variant, which is not conservative.
    """

    only_first: int
    only_second: int
    mcnemar: float
    mcnemar_mid_p: float


def compare_pairs(
    first: Sequence[float] | Floats,
    second: Sequence[float] | Floats,
    clusters: Sequence[Any] | NDArray[Any],
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> PairedComparison | None:
    """Compare values of 0 or 1 of pairs of trials.

    Args:
        first: Values of the first condition.
        second: Values of the second, of the same trials in the same order.
        clusters: The cluster (latent) of each pair.
        level: Coverage of the intervals.
        resamples: Bootstrap samples of the clusters.

    Returns:
        None when there is no pair.
    """
    before, after = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    known = ~np.isnan(before + after)
    before, after, labels = before[known], after[known], np.asarray(clusters)[known]
    first_rate, second_rate = rate(before, labels, level), rate(after, labels, level)
    if first_rate is None or second_rate is None:
        return None
    hits, trials = cluster_counts(before, labels)
    hits_after, _ = cluster_counts(after, labels)
    difference, ratio = bootstrap_intervals(hits, trials, hits_after, trials, level, resamples)
    only_first, only_second = int((before > after).sum()), int((after > before).sum())
    exact, mid_p = mcnemar_tests(only_first, only_second)
    return PairedComparison(
        first=first_rate,
        second=second_rate,
        difference=difference,
        ratio=ratio,
        p_value=sign_flip_test(hits_after - hits) if len(trials) > 1 else None,
        only_first=only_first,
        only_second=only_second,
        mcnemar=exact,
        mcnemar_mid_p=mid_p,
    )


def compare_unpaired(
    first: tuple[Sequence[float] | Floats, Sequence[Any] | NDArray[Any]],
    second: tuple[Sequence[float] | Floats, Sequence[Any] | NDArray[Any]],
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Comparison | None:
    """Compare conditions whose trials do not pair; latents may be shared or not.

    Args:
        first: Values and clusters of the first condition.
        second: Those of the second.
        level: Coverage of the intervals.
        resamples: Bootstrap samples of the clusters.

    Returns:
        None when either condition has no trial.
    """
    first_rate, second_rate = rate(*first, level), rate(*second, level)
    if first_rate is None or second_rate is None:
        return None
    names = np.union1d(_known(*first), _known(*second))
    hits, trials = _counts_among(names, *first)
    hits_after, trials_after = _counts_among(names, *second)
    difference, ratio = bootstrap_intervals(
        hits, trials, hits_after, trials_after, level, resamples
    )
    enough = min(first_rate.clusters, second_rate.clusters) > 1
    return Comparison(
        first=first_rate,
        second=second_rate,
        difference=difference,
        ratio=ratio,
        p_value=pooled_t_test(hits, trials, hits_after, trials_after) if enough else None,
    )


def _known(
    values: Sequence[float] | Floats, clusters: Sequence[Any] | NDArray[Any]
) -> NDArray[Any]:
    return np.unique(np.asarray(clusters)[~np.isnan(np.asarray(values, dtype=float))])


def _counts_among(
    names: NDArray[Any], values: Sequence[float] | Floats, clusters: Sequence[Any] | NDArray[Any]
) -> tuple[Floats, Floats]:
    """Hits and trials of the named clusters, 0 for those that the condition does not have."""
    at = np.searchsorted(names, _known(values, clusters))
    hits, trials = np.zeros(len(names)), np.zeros(len(names))
    hits[at], trials[at] = cluster_counts(values, clusters)
    return hits, trials
