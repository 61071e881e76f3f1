"""Rates of two conditions compared, over replayed pairs of trials or over unlike trials; tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom
from scipy.stats import t as student
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from esr_eval.stats.bootstrap import RESAMPLES, bootstrap_intervals
from esr_eval.stats.rates import Estimate, Floats, Rate, cluster_counts, rate


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


def mcnemar_tests(only_first: int, only_second: int) -> tuple[float, float]:
    """Exact McNemar test and its mid-p variant, from the two counts of unlike pairs.

    Source of the latter: Fagerland, Lydersen & Laake 2013, "The McNemar test for binary
    matched-pairs data: mid-p and asymptotic are better than exact conditional".
    """
    exact = float(mcnemar([[0, only_first], [only_second, 0]], exact=True).pvalue)
    fewer, unlike = min(only_first, only_second), only_first + only_second
    mid_p = 2 * binom.cdf(fewer, unlike, 0.5) - binom.pmf(fewer, unlike, 0.5)
    return exact, float(mid_p)


def sign_flip_test(differences: Sequence[float] | Floats) -> float:
    """Two-sided mid-p value of no effect, from each cluster's hits gained less hits lost.

    Without an effect, the labels of the conditions could be swapped in any cluster as a whole:
    each cluster's total then keeps its size and takes either sign with equal chance (Fisher's
    randomisation test; scipy.stats.permutation_test with "samples" draws from the same
    distribution, which here is computed exactly, as the totals are whole numbers). It is McNemar's
    test when every cluster has one pair. Unlike McNemar's it holds when the effect differs between
    latents and is none on the whole.
    """
    exact = np.asarray(differences, dtype=float)
    totals = np.rint(exact).astype(int)
    if not np.array_equal(totals, exact):
        raise ValueError("the test needs whole numbers: hits gained less hits lost")
    observed, steps = abs(int(totals.sum())), np.abs(totals[totals != 0])
    if not observed:
        return 1.0
    reach = int(steps.sum())
    chances = np.ones(1)
    for step in steps:
        # The sum so far, one step up or one step down; its origin moves along by the step.
        chances = 0.5 * (np.pad(chances, (2 * step, 0)) + np.pad(chances, (0, 2 * step)))
    # Chances of the sums -reach to reach, alike on both sides.
    beyond, at = chances[reach + observed + 1 :].sum(), chances[reach + observed]
    return float(min(1.0, 2 * beyond + at))


def pooled_t_test(hits: Floats, trials: Floats, hits_after: Floats, trials_after: Floats) -> float:
    """Student's t of the difference, clusters as units, at the pooled rate of no effect."""
    total, total_after = trials.sum(), trials_after.sum()
    pooled = (hits.sum() + hits_after.sum()) / (total + total_after)
    parts = (hits_after - pooled * trials_after) / total_after - (hits - pooled * trials) / total
    count = len(parts)
    variance = float((parts**2).sum()) * count / (count - 1)
    if not variance:
        return 1.0
    return float(2 * student.sf(abs(parts.sum()) / np.sqrt(variance), count - 1))


def holm(families: Mapping[str, Sequence[float | None]]) -> dict[str, list[float | None]]:
    """P values adjusted by Holm's step-down method, within each family of tests.

    Args:
        families: The p values of each family; None for a test that could not be done, which does
            not count as a test and stays None.
    """
    adjusted: dict[str, list[float | None]] = {}
    for name, found in families.items():
        done = [value for value in found if value is not None]
        corrected = iter(multipletests(done, method="holm")[1].tolist() if done else ())
        adjusted[name] = [None if value is None else next(corrected) for value in found]
    return adjusted
