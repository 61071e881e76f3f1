"""Differences of means whose numbers come in clusters: trials of one latent are alike."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student


def clustered_mean(
    values: Sequence[float], clusters: Sequence[int], level: float = 0.95
) -> tuple[float, float | None, float | None]:
    """Mean and its interval, from the cluster-robust variance with few-cluster corrections.

    Trials of one latent are alike, so the latent is the unit: the variance is the sum of squared
    cluster totals of the residuals times G / (G - 1), and the interval takes Student's t with
    G - 1 degrees of freedom (Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640;
    Cameron & Miller 2015).

    Args:
        values: One value per trial.
        clusters: The cluster (latent) of each.
        level: Coverage of the interval.

    Returns:
        Mean, lower and upper bound; no bounds from fewer than two clusters.
    """
    data, labels = np.asarray(values, dtype=float), np.asarray(clusters)
    mean = float(data.mean())
    groups = np.unique(labels)
    count = len(groups)
    if count < 2:
        return mean, None, None
    totals = np.array([(data[labels == group] - mean).sum() for group in groups])
    error = math.sqrt(float((totals**2).sum()) * count / (count - 1)) / len(data)
    half = float(student.ppf(0.5 + level / 2, count - 1)) * error
    return mean, mean - half, mean + half


class Difference(NamedTuple):
    """Second mean minus first.

    Attributes:
        value: The difference.
        low: Lower bound of its 95 % interval; None from fewer than two clusters.
        high: Upper bound.
        p_value: Of no difference, by Student's t with the clusters as units.
        clusters: How many clusters the interval rests on; of two sets, the fewer.
    """

    value: float
    low: float | None
    high: float | None
    p_value: float | None
    clusters: int


class _Mean(NamedTuple):
    value: float
    variance: float | None
    clusters: int


def mean_difference(changes: NDArray[np.float64], clusters: Sequence[Hashable]) -> Difference:
    """Mean of paired differences against 0.

    Args:
        changes: Second number of each pair minus the first.
        clusters: Of each pair.
    """
    return _difference(_Mean(0.0, 0.0, 0), _mean(changes, clusters))


def difference_of_means(
    first: NDArray[np.float64],
    first_clusters: Sequence[Hashable],
    second: NDArray[np.float64],
    second_clusters: Sequence[Hashable],
) -> Difference:
    """Difference of the means of two independent sets.

    The degrees of freedom are Welch's (Satterthwaite 1946), with clusters in place of numbers.
    """
    return _difference(_mean(first, first_clusters), _mean(second, second_clusters))


def _mean(values: NDArray[np.float64], clusters: Sequence[Hashable]) -> _Mean:
    names = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    mean, _, high = clustered_mean(values.tolist(), [names[name] for name in clusters])
    count = len(names)
    if high is None:
        return _Mean(mean, None, count)
    return _Mean(mean, float((high - mean) / student.ppf(0.975, count - 1)) ** 2, count)


def _difference(first: _Mean, second: _Mean) -> Difference:
    value = second.value - first.value
    counts = [mean.clusters for mean in (first, second) if mean.clusters]
    if first.variance is None or second.variance is None:
        return Difference(value, None, None, None, min(counts))
    variance = first.variance + second.variance
    if variance <= (1e-12 * value) ** 2:
        # No spread at all: an interval of no width would claim what a handful cannot know.
        return Difference(value, None, None, None if value else 1.0, min(counts))
    parts = [m.variance**2 / (m.clusters - 1) for m in (first, second) if m.clusters and m.variance]
    freedom = variance**2 / sum(parts)
    error = float(np.sqrt(variance))
    half = float(student.ppf(0.975, freedom)) * error
    p_value = float(2 * student.sf(abs(value) / error, freedom))
    return Difference(value, value - half, value + half, p_value, min(counts))
