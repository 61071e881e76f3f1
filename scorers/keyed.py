"""Metrics of a score that has several keys: a mean and a clustered interval for each."""

from collections.abc import Iterable

from inspect_ai.scorer import Metric, mean

from esr_eval.scorers.metrics import mean_interval, rate_interval

NAN = float("nan")
"""Value of a key that is not defined for a trial: Inspect leaves it out of that key's metrics."""


def keyed_metrics(
    rates: Iterable[str], means: Iterable[str] = (), cluster: str = "latent"
) -> dict[str, list[Metric]]:
    """Mean and 95 % interval of every key.

    Args:
        rates: Keys whose values are 0 or 1.
        means: Keys of other numbers; they come first.
        cluster: Key of the sample metadata that names the cluster.
    """
    found: dict[str, list[Metric]] = {
        key: [mean(), mean_interval(cluster=cluster)] for key in means
    }
    return found | {key: [mean(), rate_interval(cluster=cluster)] for key in rates}
