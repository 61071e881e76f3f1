"""Rates and means of trials, with intervals that respect the clustering by latent."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from esr_eval.scorers.attempts import MEANS, RATES, SPLIT_BY_DETECTOR
from esr_eval.stats.means import clustered_mean
from esr_eval.stats.rates import Rate, rate
from esr_eval.stats.recapture import all_hits

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
    "confirmed": "restarts found by both",
    "esr_margin": "ESR by a margin",
    "recovered": "recovered",
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
            mean, low, high = clustered_mean(values, latents.tolist())
            found[key] = Measured(mean, low, high, len(values), clusters)
        elif (share := rate(values, latents)) is not None:
            found[key] = Measured.of(share)
    return found


ASSUMED = (
    "estimated by capture-recapture, as if judge and phrase detector missed restarts independently "
    "of one another; both see the easy ones, which makes it too low, and false alarms of either "
    "make it too high"
)
"""What the estimate of all restarts rests on, for tables."""


def estimate_restarts(trials: pd.DataFrame, judge: str) -> Measured | str:
    """The share of trials with a restart, those included that judge and detector both miss.

    Args:
        trials: With the columns `multi_attempt`, `restart_phrase` and `confirmed`.
        judge: Who judged.

    Returns:
        The estimate, or why there is none.
    """
    if judge in SPLIT_BY_DETECTOR:
        return f"{judge} splits answers by the phrase detector, so the two are one"
    known = trials.dropna(subset=["multi_attempt", "restart_phrase", "confirmed"])
    if known.empty:
        return "no trial has both verdicts"
    latents = known["latent"].to_numpy()
    judged, detected, both = (
        known[key].to_numpy(float) for key in ("multi_attempt", "restart_phrase", "confirmed")
    )
    found = all_hits(judged, detected, both, latents)
    if found is None:
        return "judge and phrase detector share no restart"
    return Measured(found.value, found.low, found.high, len(known), len(set(latents.tolist())))


class Alarms(NamedTuple):
    """Restarts found in unsteered answers, which hardly have any: false alarms.

    Attributes:
        judge: Share of answers with several attempts.
        detector: Share of answers in which the phrase detector finds a restart.
    """

    judge: Measured | None
    detector: Measured | None


def false_alarms(unsteered: Sequence[pd.DataFrame]) -> Alarms | None:
    """How often the two find a restart in answers without a boost.

    Args:
        unsteered: Trials of the unsteered conditions of one subject and judge.

    Returns:
        None where there is no such trial.
    """
    if not unsteered:
        return None
    trials = pd.concat(unsteered)
    found = measure(trials[["latent", "multi_attempt", "restart_phrase"]])
    if not found:
        return None
    return Alarms(found.get("multi_attempt"), found.get("restart_phrase"))
