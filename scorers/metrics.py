"""Intervals that respect the clustering of trials by latent, and that a single latent survives.

Trials of one latent are alike, so intervals treat the latents as the independent draws. With fewer
than two latents their spread cannot be known: the interval then covers the trials of that latent
alone, and says so by `clusters` = 1 beside its bounds.
"""

from collections.abc import Callable
from typing import Protocol, cast

from inspect_ai.scorer import Metric, SampleScore, Value, ci, ci_wilson, metric

_NOTHING = {"lower": float("nan"), "upper": float("nan"), "clusters": 0.0}


class _Interval(Protocol):
    def __call__(self, *, cluster: str | None) -> Metric: ...


@metric
def rate_interval(cluster: str = "latent") -> Metric:
    """95 % Wilson interval of a rate, with the effective sample size of clustered trials.

    Args:
        cluster: Key of the sample metadata that names the cluster.
    """
    return cast(Metric, _clustered(ci_wilson, cluster))


@metric
def mean_interval(cluster: str = "latent") -> Metric:
    """95 % t interval of a mean, with clustered standard errors.

    Args:
        cluster: Key of the sample metadata that names the cluster.
    """
    return cast(Metric, _clustered(ci, cluster))


def _clustered(interval: _Interval, cluster: str) -> Callable[[list[SampleScore]], Value]:
    within = cast(Callable[[list[SampleScore]], Value], interval(cluster=None))
    between = cast(Callable[[list[SampleScore]], Value], interval(cluster=cluster))

    def compute(scores: list[SampleScore]) -> Value:
        if not scores:
            return dict(_NOTHING)
        clusters = len({(score.sample_metadata or {}).get(cluster) for score in scores})
        bounds = cast(dict[str, float], (between if clusters > 1 else within)(scores))
        return {**bounds, "clusters": float(clusters)}

    return compute
