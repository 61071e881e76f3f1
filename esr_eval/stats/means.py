"""Means whose numbers come in clusters, and their differences: trials of one latent are alike.

Every interval of a mean rests on the one cluster-robust error of least squares, with Student's t
and the clusters as units (Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640; Cameron &
Miller 2015). Contrasts take each number as a unit of its own, as activation statistics do that were
published.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, ttest_ind, ttest_rel, wilcoxon
from scipy.stats import t as student
from statsmodels.regression.linear_model import OLS

from esr_eval.stats.rates import Floats

NO_SPREAD = 1e-9
"""Errors below this part of the number are rounding."""

Numbers: TypeAlias = Sequence[float] | Floats


class Difference(NamedTuple):
    """Second mean minus first.

    Attributes:
        value: The difference.
        low: Lower bound of its interval; None from fewer than two clusters, and without spread: an
            interval of no width would claim what a handful cannot know.
        high: Upper bound.
        p_value: Of no difference, by Student's t with the clusters as units.
        clusters: How many clusters the interval rests on; of two sets, the fewer.
    """

    value: float
    low: float | None
    high: float | None
    p_value: float | None
    clusters: int


def clustered_mean(
    values: Numbers, clusters: Sequence[Hashable], level: float = 0.95
) -> tuple[float, float | None, float | None]:
    """Mean and its interval.

    Args:
        values: One value per trial.
        clusters: The cluster (latent) of each.
        level: Coverage of the interval.

    Returns:
        Mean, lower and upper bound; no bounds from fewer than two clusters.
    """
    mean, error, count = _mean(values, clusters)
    if error is None:
        return mean, None, None
    half = _critical(level, count - 1) * error
    return mean, mean - half, mean + half


def mean_difference(
    changes: Floats, clusters: Sequence[Hashable], level: float = 0.95
) -> Difference:
    """Mean of paired differences against 0.

    Args:
        changes: Second number of each pair minus the first.
        clusters: Of each pair.
        level: Coverage of the interval.
    """
    mean, error, count = _mean(changes, clusters)
    return _difference(mean, error, count - 1, count, level)


def difference_of_sides(
    first: Floats,
    first_clusters: Sequence[Hashable],
    second: Floats,
    second_clusters: Sequence[Hashable],
    level: float = 0.95,
    uneven: bool = False,
) -> Difference:
    """Difference of the means of two sets of trials that may share clusters.

    Args:
        first: One set.
        first_clusters: The cluster of each.
        second: The other.
        second_clusters: Likewise.
        level: Coverage of the interval.
        uneven: One set may have far fewer clusters, which decides the degrees of freedom: with
            those of all, some 89 % were covered where one set had 8 of 24 clusters.
    """
    value = float(second.mean() - first.mean())
    fewer = min(len(set(first_clusters)), len(set(second_clusters)))
    if fewer < 2:  # of one cluster nobody knows how it varies, and two numbers leave nothing to fit
        return _difference(value, None, 0, fewer, level)
    is_second = np.repeat([0.0, 1.0], [len(first), len(second)])
    error, count = _error(
        np.concatenate([first, second]),
        [*first_clusters, *second_clusters],
        np.column_stack([is_second, np.ones_like(is_second)]),
    )
    freedom = (fewer if uneven else count) - 1
    return _difference(value, error, freedom, fewer, level)


def difference_of_means(
    first: Floats,
    first_clusters: Sequence[Hashable],
    second: Floats,
    second_clusters: Sequence[Hashable],
) -> Difference:
    """Difference of the means of two sets that have no cluster in common.

    The degrees of freedom are Welch's (Satterthwaite 1946), with clusters in place of numbers.
    """
    sides = [_mean(first, first_clusters), _mean(second, second_clusters)]
    value, fewer = sides[1].value - sides[0].value, min(side.clusters for side in sides)
    squares = [side.error**2 for side in sides if side.error is not None]
    if len(squares) < 2:
        return _difference(value, None, 0, fewer)
    parts = [s**2 / (side.clusters - 1) for s, side in zip(squares, sides, strict=True)]
    freedom = sum(squares) ** 2 / sum(parts) if sum(parts) else 0.0
    return _difference(value, float(np.sqrt(sum(squares))), freedom, fewer)


class _Mean(NamedTuple):
    value: float
    error: float | None
    clusters: int


def _mean(values: Numbers, clusters: Sequence[Hashable]) -> _Mean:
    data = np.asarray(values, dtype=float)
    return _Mean(float(data.mean()), *_error(data, clusters, np.ones((len(data), 1))))


def _error(
    values: Floats, clusters: Sequence[Hashable], factors: NDArray[Any]
) -> tuple[float | None, int]:
    """Clustered standard error of the first factor's effect, and how many clusters there are."""
    places = {name: at for at, name in enumerate(dict.fromkeys(clusters))}
    if len(places) < 2:
        return None, len(places)
    groups = np.array([places[name] for name in clusters])
    fit = OLS(values, factors).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    with np.errstate(invalid="ignore"):  # no spread at all, but for rounding below 0
        return float(fit.bse[0]), len(places)


def _difference(
    value: float, error: float | None, freedom: float, clusters: int, level: float = 0.95
) -> Difference:
    if error is None:
        return Difference(value, None, None, None, clusters)
    if not error > NO_SPREAD * abs(value):
        return Difference(value, None, None, None if value else 1.0, clusters)
    half = _critical(level, freedom) * error
    p_value = float(2 * student.sf(abs(value) / error, freedom))
    return Difference(value, value - half, value + half, p_value, clusters)


def _critical(level: float, freedom: float) -> float:
    return float(student.ppf(0.5 + level / 2, freedom))


@dataclass(frozen=True)
class Contrast:
    """The second set against the first; None where it is not defined.

    Attributes:
        first: Mean of the first set.
        second: Mean of the second.
        n_first: Numbers in the first set; of pairs, the number of pairs.
        n_second: Numbers in the second.
        t_p: P value of Student's paired t test; of independent sets, of Welch's.
        rank_p: P value of Wilcoxon's signed-rank test; of independent sets, of the rank-sum test
            (Mann-Whitney).
        cohens_d: See `cohens_d`.
        cliffs_delta: See `cliffs_delta`.
    """

    first: float
    second: float
    n_first: int
    n_second: int
    t_p: float | None
    rank_p: float | None
    cohens_d: float | None
    cliffs_delta: float


def paired_contrast(first: Numbers, second: Numbers) -> Contrast | None:
    """Compare pairs; a pair with NaN on either side drops out.

    Returns:
        None when there is no pair.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} numbers cannot be paired with {b.size}")
    known = ~np.isnan(a + b)
    a, b = a[known], b[known]
    if not len(a):
        return None
    t_p = rank_p = None
    change = b - a
    if not change.any():
        # No difference at all is no evidence of one; the tests themselves would give NaN.
        t_p = rank_p = 1.0 if len(a) > 1 else None
    elif len(a) > 1:
        t_p = None if _constant(change) else float(ttest_rel(b, a).pvalue)
        rank_p = float(wilcoxon(change).pvalue)
    return _contrast(a, b, t_p, rank_p)


def independent_contrast(first: Numbers, second: Numbers) -> Contrast | None:
    """Compare two independent sets of numbers; NaN drop out.

    Returns:
        None when either set is empty.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    a, b = a[~np.isnan(a)], b[~np.isnan(b)]
    if not len(a) or not len(b):
        return None
    t_p = rank_p = None
    if min(len(a), len(b)) > 1:
        if not (_constant(a) and _constant(b)):
            t_p = float(ttest_ind(b, a, equal_var=False).pvalue)
        elif a[0] == b[0]:
            t_p = 1.0
        rank_p = float(mannwhitneyu(b, a).pvalue)
    return _contrast(a, b, t_p, rank_p)


def cohens_d(first: Numbers, second: Numbers) -> float | None:
    """Difference of the means, second minus first, in pooled standard deviations.

    Of paired sets it is the same measure (d with the average standard deviation, Lakens 2013), so
    that paired and independent contrasts can be compared.

    Returns:
        None where the pooled standard deviation is 0 or unknown, unless both means are alike: 0.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if min(len(a), len(b)) < 2:
        return None
    difference = float(b.mean() - a.mean())
    if _constant(a) and _constant(b):
        return None if a[0] != b[0] else 0.0
    squares = (len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)
    return difference / float(np.sqrt(squares / (len(a) + len(b) - 2)))


def cliffs_delta(first: Numbers, second: Numbers) -> float:
    """How much more often a number of the second set is above one of the first than below.

    Source: Cliff 1993, "Dominance statistics"; from Mann and Whitney's U as 2 U / (m n) - 1.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if not len(a) or not len(b):
        raise ValueError("Cliff's delta needs numbers in both sets")
    wins = float(mannwhitneyu(b, a, method="asymptotic").statistic)
    return 2 * wins / (len(a) * len(b)) - 1


def _contrast(a: Floats, b: Floats, t_p: float | None, rank_p: float | None) -> Contrast:
    return Contrast(
        first=float(a.mean()),
        second=float(b.mean()),
        n_first=len(a),
        n_second=len(b),
        t_p=t_p,
        rank_p=rank_p,
        cohens_d=cohens_d(a, b),
        cliffs_delta=cliffs_delta(a, b),
    )


def _constant(numbers: Floats) -> bool:
    """All alike but for rounding: then t has no denominator."""
    return bool(np.ptp(numbers) <= 1e-12 * np.abs(numbers).max())
