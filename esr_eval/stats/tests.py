"""Tests of no effect on a rate, and Holm's correction over families of tests."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import binom
from scipy.stats import t as student
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from esr_eval.stats.rates import Floats


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
