"""Rates and means of trials, with intervals that respect the clustering by latent."""

from typing import NamedTuple

import pandas as pd

from esr_eval.scorers.values import MEANS, RATES
from esr_eval.stats.differences import clustered_mean
from esr_eval.stats.rates import Rate, rate

HOLISTIC = "holistic_"
"""Put before the keys of the second view, so that they stand beside the first view's."""
HOLISTIC_RATES = ("improving", "explicit", "gradual", "no_change", "unscored")
HOLISTIC_MEANS = ("improvement",)

SHARES = (*RATES, *(HOLISTIC + key for key in HOLISTIC_RATES))
"""Numbers of 0 or 1 per trial."""
SCORES = (*MEANS, *(HOLISTIC + key for key in HOLISTIC_MEANS))
"""Other numbers per trial."""

TITLES = {
    "multi_attempt": "multi-attempt rate",
    "esr": "ESR rate",
    "restart_phrase": "restart phrases found",
    "first_score": "first score",
    "holistic_improvement": "improvement, 0-10 (second view)",
    "holistic_improving": "improving (second view)",
    "holistic_explicit": "explicit (second view)",
    "holistic_gradual": "gradual (second view)",
}
"""Numbers that are compared, as tables and sentences name them."""


class Measured(NamedTuple):
    """A rate or a mean with its interval.

    Attributes:
        value: A share between 0 and 1, or a mean score.
        low: Lower bound of the 95 % interval clustered by latent; None where there is none.
        high: Upper bound.
        n: Trials that it was taken over.
        clusters: Latents that these belong to.
        hits: Of a rate, the trials counted; None of a mean.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    clusters: int
    hits: int | None = None

    @classmethod
    def of(cls, found: Rate) -> "Measured":
        """A rate."""
        share = found.estimate
        return cls(share.value, share.low, share.high, found.trials, found.clusters, found.hits)


def measure(trials: pd.DataFrame) -> dict[str, Measured]:
    """Rates and means of some trials, with intervals that respect the clustering by latent."""
    found: dict[str, Measured] = {}
    for key in (*SHARES, *SCORES):
        if key not in trials:
            continue
        known = trials.loc[trials[key].notna(), ["latent", key]]
        if known.empty:
            continue
        values, latents = known[key].to_numpy(float), known["latent"].to_numpy()
        clusters = int(known["latent"].nunique())
        if key in SCORES:
            mean, low, high = clustered_mean(values.tolist(), latents.tolist())
            found[key] = Measured(mean, low, high, len(values), clusters)
        elif (share := rate(values, latents)) is not None:
            found[key] = Measured.of(share)
    return found
