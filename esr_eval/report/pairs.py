"""Two runs compared trial by trial, with an interval that respects the clusters."""

from dataclasses import dataclass

from esr_eval.logs.runs import Run, shared_trials
from esr_eval.stats.differences import clustered_mean


@dataclass(frozen=True)
class PairedDifference:
    """Mean of first score (second run) minus first score (first run) over shared trials."""

    difference: float
    low: float | None
    high: float | None
    trials: int
    clusters: int


def paired_difference(first: Run, second: Run) -> PairedDifference | None:
    """How far the second run's first-attempt scores lie from the first's, on the same trials.

    Trials pair by latent, topic, seed and epoch; those without a score in either run drop out.
    """
    before, after, latents = shared_trials(first.first_scores, second.first_scores)
    if not len(latents):
        return None
    mean, low, high = clustered_mean((after - before).tolist(), latents.tolist())
    return PairedDifference(mean, low, high, len(latents), len(set(latents.tolist())))
