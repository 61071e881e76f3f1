"""Intervals that respect the clustering of trials by latent, and that a single latent survives.

Trials of one latent are alike, so intervals treat the latents as the independent draws. With fewer
than two latents their spread cannot be known: the interval then covers the trials of that latent
alone, and says so by `clusters` = 1 beside its bounds.
"""

from collections.abc import Callable
from typing import cast

from inspect_ai.scorer import Metric, SampleScore, Value, ci, metric

Bounds = dict[str, float]
_NOTHING = {"lower": float("nan"), "upper": float("nan"), "clusters": 0.0}


@metric
def rate_interval(cluster: str = "latent") -> Metric:
    """95 % Wilson interval of a rate, with size and degrees of freedom of clustered trials.

    It is the interval of every table and comparison, `esr_eval.stats.rates.clustered_wilson`,
    and not Inspect's `ci_wilson`, which covers less than it says where hits are rare.

    Args:
        cluster: Key of the sample metadata that names the cluster.
    """

    def bounds(scores: list[SampleScore], clusters: list[int]) -> Bounds:
        # Here, for scipy is slow to load and every `inspect` command imports the scorers.
        from esr_eval.stats.rates import cluster_counts, clustered_wilson

        values = [score.score.as_float() for score in scores]
        _, low, high = clustered_wilson(*cluster_counts(values, clusters, shares=True))
        return {"lower": float(low), "upper": float(high)}

    return cast(Metric, _clustered(bounds, cluster))


@metric
def mean_interval(cluster: str = "latent") -> Metric:
    """95 % t interval of a mean, with clustered standard errors.

    Args:
        cluster: Key of the sample metadata that names the cluster.
    """

    def bounds(scores: list[SampleScore], clusters: list[int]) -> Bounds:
        found = ci(cluster=cluster if len(set(clusters)) > 1 else None)
        return cast(Bounds, cast(Callable[[list[SampleScore]], Value], found)(scores))

    return cast(Metric, _clustered(bounds, cluster))


def _clustered(
    bounds: Callable[[list[SampleScore], list[int]], Bounds], cluster: str
) -> Callable[[list[SampleScore]], Value]:
    def compute(scores: list[SampleScore]) -> Value:
        if not scores:
            return dict(_NOTHING)
        names = [(score.sample_metadata or {}).get(cluster) for score in scores]
        number = {name: index for index, name in enumerate(dict.fromkeys(names))}
        found = bounds(scores, [number[name] for name in names])
        return {**found, "clusters": float(len(number))}

    return compute
