"""Two runs compared trial by trial, with an interval that respects the clusters."""

from dataclasses import dataclass

from esr_eval.logs.conditions import Condition, shared_trials
from esr_eval.stats.means import clustered_mean


@dataclass(frozen=True)
class PairedDifference:
    """Mean of first score (second run) minus first score (first run) over shared trials."""

    difference: float
    low: float | None
    high: float | None
    trials: int
    clusters: int


def paired_difference(first: Condition, second: Condition) -> PairedDifference | None:
    """How far the second run's first-attempt scores lie from the first's, on the same trials.

    Trials pair by latent, topic, seed and epoch; those without a score in either run drop out.
    """
    scores = (one.by_trial("first_score") for one in (first, second))
    before, after, latents = shared_trials(*scores)
    if not len(latents):
        return None
    mean, low, high = clustered_mean(after - before, latents.tolist())
    return PairedDifference(mean, low, high, len(latents), len(set(latents.tolist())))
