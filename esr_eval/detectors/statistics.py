"""Which latents tell mismatched pairs of task and answer from matched ones: arrays in, sets out.

Source: the paper's discovery of off-topic detectors (silent on matched, active on at least 80 % of
mismatched pairs), and its later variant (greatest area under the ROC curve).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, rankdata

from esr_eval.stats.rates import Floats

AT_A_TIME = 4096
"""Latents ranked at once: bounds the memory of an SAE with many."""
SWAPS = 200
"""Random exchanges of matched and mismatched that say what chance alone would find."""


@dataclass(frozen=True)
class Pairs:
    """Activations over pairs; row `i` of both maxima has the same task.

    Attributes:
        matched_max: Maximum over positions, float32 (pairs, latents), of a task and its answer.
        mismatched_max: The same of a task and another task's answer.
        matched_rate: Share of positions at which a latent is active, mean over pairs, (latents,).
        mismatched_rate: The same of mismatched pairs.
    """

    matched_max: NDArray[np.float32]
    mismatched_max: NDArray[np.float32]
    matched_rate: Floats
    mismatched_rate: Floats

    @property
    def count(self) -> int:
        """How many matched pairs there are, and as many mismatched ones."""
        return len(self.matched_max)

    @property
    def rate(self) -> Floats:
        """Share of positions at which a latent is active, over all pairs; 0: a dead latent."""
        return (self.matched_rate + self.mismatched_rate) / 2


@dataclass(frozen=True)
class LatentStatistics:
    """One value per latent in every array.

    Attributes:
        matched_active: Number of matched pairs with a maximum above 0.
        mismatched_active: The same of mismatched pairs.
        matched_max: Mean over matched pairs of the maximum.
        mismatched_max: The same over mismatched pairs.
        auc: Chance that a mismatched pair's maximum exceeds a matched one's, ties counting half.
    """

    matched_active: NDArray[np.int64]
    mismatched_active: NDArray[np.int64]
    matched_max: Floats
    mismatched_max: Floats
    auc: Floats


def latent_statistics(pairs: Pairs) -> LatentStatistics:
    """Describe every latent."""
    auc = np.full(pairs.matched_max.shape[1], 0.5)
    for latents, ranks in _ranked(pairs):
        auc[latents] = _auc(ranks[pairs.count :].sum(0), pairs.count)
    return LatentStatistics(
        matched_active=(pairs.matched_max > 0).sum(0),
        mismatched_active=(pairs.mismatched_max > 0).sum(0),
        matched_max=pairs.matched_max.mean(0, dtype=float),
        mismatched_max=pairs.mismatched_max.mean(0, dtype=float),
        auc=auc,
    )


def active_bounds(count: int, max_matched: float, min_mismatched: float) -> tuple[int, int]:
    """Most matched and fewest mismatched pairs, of `count`, on which a detector is active."""
    rounding = 1e-9
    return (
        math.floor(max_matched * count + rounding),
        math.ceil(min_mismatched * count - rounding),
    )


def silent(
    found: LatentStatistics, count: int, max_matched: float, min_mismatched: float
) -> NDArray[np.int64]:
    """Latents that are silent on matched and active on mismatched pairs, greatest AUC first."""
    most, fewest = active_bounds(count, max_matched, min_mismatched)
    passed = (found.matched_active <= most) & (found.mismatched_active >= fewest)
    return _best_first(found, np.flatnonzero(passed))


def nearly_silent(
    found: LatentStatistics, count: int, max_matched: float, min_mismatched: float, top: int
) -> NDArray[np.int64]:
    """The latents that miss being silent by the fewest pairs, best first."""
    most, fewest = active_bounds(count, max_matched, min_mismatched)
    short = np.clip(found.matched_active - most, 0, None)
    short = short + np.clip(fewest - found.mismatched_active, 0, None)
    missed = _best_first(found, np.flatnonzero(short > 0))
    return missed[np.argsort(short[missed], kind="stable")][:top]


def most_separable(found: LatentStatistics, top: int) -> NDArray[np.int64]:
    """The latents of greatest AUC, best first; none that favours matched pairs."""
    return _best_first(found, np.flatnonzero(found.auc > 0.5))[:top]


def silent_by_chance(pairs: Pairs, max_matched: float, min_mismatched: float) -> float:
    """How many latents would be silent if matched and mismatched changed places at random.

    A latent that is active in both halves of `b` pairs and in one half of `d` others is then
    active on b + k mismatched and b + d - k matched pairs, with k binomial (d, 1/2): exact, summed
    over latents. Answers stand in a matched and a mismatched pair each, which makes the two halves
    of a latent that follows the answer alone more alike than that: for it the number is too high.
    """
    matched, mismatched = pairs.matched_max > 0, pairs.mismatched_max > 0
    both = (matched & mismatched).sum(0)
    either = (matched ^ mismatched).sum(0)
    most, fewest = active_bounds(pairs.count, max_matched, min_mismatched)
    least = np.maximum(fewest - both, both + either - most)
    return float(binom.sf(least - 1, either, 0.5).sum())


def separable_by_chance(pairs: Pairs, auc: float, swaps: int = SWAPS, seed: int = 0) -> float:
    """How many latents would reach an AUC if matched and mismatched changed places at random.

    Args:
        pairs: The activations.
        auc: That of the weakest latent in the set.
        swaps: Random exchanges within pairs that are averaged over.
        seed: Of the exchanges.
    """
    count = pairs.count
    swapped = np.random.default_rng(seed).integers(0, 2, (swaps, count)).astype(float)
    reached = 0
    for _, ranks in _ranked(pairs):
        first, second = ranks[:count], ranks[count:]
        sums = second.sum(0) + swapped @ (first - second)
        # Ranks are halves, so that sums are exact but for the division.
        reached += int((_auc(sums, count) >= auc - 1e-9).sum())
    return reached / swaps


def _ranked(pairs: Pairs) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """Latents that are not dead, and their maxima's ranks: matched rows, then mismatched."""
    alive = np.flatnonzero((pairs.matched_max > 0).any(0) | (pairs.mismatched_max > 0).any(0))
    for start in range(0, len(alive), AT_A_TIME):
        latents = alive[start : start + AT_A_TIME]
        both = np.concatenate([pairs.matched_max[:, latents], pairs.mismatched_max[:, latents]])
        yield latents, rankdata(both, axis=0)


def _auc(rank_sums: Floats, count: int) -> Floats:
    """From the mismatched pairs' ranks among all (Mann and Whitney's U over all comparisons)."""
    return (rank_sums - count * (count + 1) / 2) / count**2


def _best_first(found: LatentStatistics, latents: NDArray[np.int64]) -> NDArray[np.int64]:
    difference = found.mismatched_max - found.matched_max
    order = np.lexsort((latents, -difference[latents], -found.auc[latents]))
    return latents[order]
