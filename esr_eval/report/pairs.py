"""Two runs compared trial by trial, with an interval that respects the clusters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from esr_eval.logs.runs import Run
from esr_eval.stats.comparisons import shared_trials


@dataclass(frozen=True)
class PairedDifference:
    """Mean of first score (second run) minus first score (first run) over shared trials."""

    difference: float
    low: float | None
    high: float | None
    trials: int
    clusters: int


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


def paired_difference(first: Run, second: Run) -> PairedDifference | None:
    """How far the second run's first-attempt scores lie from the first's, on the same trials.

    Trials pair by latent, topic, seed and epoch; those without a score in either run drop out.
    """
    before, after, latents = shared_trials(first.first_scores, second.first_scores)
    if not len(latents):
        return None
    mean, low, high = clustered_mean((after - before).tolist(), latents.tolist())
    return PairedDifference(mean, low, high, len(latents), len(set(latents.tolist())))
