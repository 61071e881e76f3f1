"""Rates of two conditions compared, and judges: cluster bootstrap, tests, kappa beyond chance."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, bootstrap
from scipy.stats import t as student
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.multitest import multipletests

from esr_eval.stats.rates import Estimate, Floats, Rate, cluster_counts, rate

RESAMPLES = 9999
SEED = 0
"""So that the same logs give the same numbers."""
FEWEST_DEFINED = 0.5
"""Share of resamples in which kappa must be defined for an interval to be given."""


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
        found = _resampled(data, statistic, resamples, level)
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


def _resampled(
    data: Sequence[Floats], statistic: Callable[..., Floats], resamples: int, level: float = 0.95
) -> Any:
    """A statistic of clusters drawn with replacement, with its percentile interval."""
    return bootstrap(
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


def clustered_kappa(
    first: Sequence[float] | Floats,
    second: Sequence[float] | Floats,
    clusters: Sequence[Any] | NDArray[Any],
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Estimate | None:
    """Cohen's kappa of two judges' yes and no, with the percentile interval of resampled clusters.

    Resamples in which both judges say the same of everything have no kappa and are left out; where
    they are the most, there is no interval. Nor is there one from a single cluster, or where the
    judges never both say yes or never both say no: no resample would, and the interval of rare
    events would come out far too narrow.

    Args:
        first: 0 or 1 for each response, by the one judge; NaN leaves the response out.
        second: By the other.
        clusters: The cluster of each response.
        level: Coverage of the interval.
        resamples: Bootstrap samples of the clusters.

    Returns:
        None where kappa is not defined: no response, or one answer only.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    known = ~np.isnan(a + b)
    a, b, labels = a[known], b[known], np.asarray(clusters)[known]
    if not len(a):
        return None
    _, index = np.unique(labels, return_inverse=True)
    count = index.max() + 1
    # Responses of each cluster by both judges' answers: no-no, no-yes, yes-no, yes-yes.
    answers = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    neither, only_second, only_first, both = (
        np.bincount(index, (a == x) & (b == y), minlength=count).astype(float) for x, y in answers
    )
    cells = (neither, only_second, only_first, both)
    if np.isnan(_kappa(*cells)):
        return None
    table = np.array([cell.sum() for cell in cells]).reshape(2, 2)
    value = float(cohens_kappa(table, return_results=False))
    if count < 2 or not table[0, 0] or not table[1, 1]:
        return Estimate(value)
    with warnings.catch_warnings():
        # Its own interval is NaN where any resample is; ours leaves those out, see above.
        warnings.simplefilter("ignore", RuntimeWarning)
        drawn = _resampled(cells, _kappa, resamples).bootstrap_distribution
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) < FEWEST_DEFINED * resamples:
        return Estimate(value)
    low, high = np.quantile(drawn, (0.5 - level / 2, 0.5 + level / 2))
    # Every resample alike: nothing is known of the spread.
    return Estimate(value) if low == high else Estimate(value, float(low), float(high))


def _kappa(neither: Floats, second: Floats, first: Floats, both: Floats, axis: int = -1) -> Floats:
    neither, second, first, both = (
        np.asarray(cell.sum(axis)) for cell in (neither, second, first, both)
    )
    total = neither + second + first + both
    yes_first, yes_second = (first + both) / total, (second + both) / total
    expected = yes_first * yes_second + (1 - yes_first) * (1 - yes_second)
    observed = (neither + both) / total
    room = np.where(expected < 1, 1 - expected, np.nan)
    return (observed - expected) / room
