"""Two sets of numbers compared: t and rank tests, Cohen's d, Cliff's delta.

For activation statistics: regions of the same episodes (paired), and steered episodes against
unsteered answers (independent).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu, ttest_ind, ttest_rel, wilcoxon

from esr_eval.stats.rates import Floats

Numbers = Sequence[float] | Floats


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
