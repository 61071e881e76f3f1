"""Agreement of two judges beyond chance, with an interval that respects the clusters."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap
from statsmodels.stats.inter_rater import cohens_kappa

from esr_eval.stats.bootstrap import RESAMPLES, SEED
from esr_eval.stats.rates import Estimate, Floats

FEWEST_DEFINED = 0.5
"""Share of resamples in which kappa must be defined for an interval to be given."""


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
        drawn = bootstrap(
            cells,
            _kappa,
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=resamples,
            batch=1000,
            rng=np.random.default_rng(SEED),
        ).bootstrap_distribution
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
