"""Random latents that fire as often as given ones: the control set of an ablation.

Source: the paper's random-latent control (3 sets of as many random latents as there are detectors;
none a detector, none dead). Here each is also matched to a detector for how often it fires, so that
the sets differ in what the latents stand for and not in how much is taken away.
"""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from esr_eval.errors import EsrError
from esr_eval.stats.rates import Floats

NEAREST = 20
"""Latents of nearest firing rate from which one is drawn for each detector."""


def draw_matched(
    rates: Floats,
    detectors: Sequence[int],
    excluded: Collection[int],
    draw: int,
    seed: int,
    nearest: int = NEAREST,
) -> tuple[int, ...]:
    """Draw one latent for each detector, among those of nearest firing rate.

    Sets of different draws share no latent: draw 2 leaves out what draws 0 and 1 took. A detector
    that never fired where rates were measured is matched among the rarest latents.

    Args:
        rates: Share of positions at which each latent is active, (latents,); 0: dead.
        detectors: Which latents to match; never drawn themselves.
        excluded: Others that are never drawn.
        draw: Number of the set, from 0.
        seed: Of all sets.
        nearest: How many candidates each latent is drawn from.

    Returns:
        The latents, in the order of the detectors.

    Raises:
        EsrError: Too few latents are left to draw from, or `draw` is negative.
    """
    if draw < 0:
        raise EsrError(f"draw={draw}: sets are numbered from 0.")
    usable = rates > 0
    usable[[*detectors, *excluded]] = False
    if int(usable.sum()) < (draw + 1) * len(detectors):
        raise EsrError(
            f"{int(usable.sum())} latents are active in the discovery and no detector: too few "
            f"for {draw + 1} sets of {len(detectors)}. Name fewer detectors, or run "
            "esr_eval/detectors with more answers."
        )
    if not len(detectors):
        return ()
    # A latent that was never seen to fire is placed just below the rarest that was.
    heights = np.log(np.maximum(rates, rates[rates > 0].min() / 2))
    chosen: tuple[int, ...] = ()
    for number in range(draw + 1):
        chosen = _one_set(
            heights, usable, detectors, np.random.default_rng([seed, number]), nearest
        )
        usable[list(chosen)] = False
    return chosen


def _one_set(
    heights: Floats,
    usable: NDArray[np.bool_],
    detectors: Sequence[int],
    random: np.random.Generator,
    nearest: int,
) -> tuple[int, ...]:
    free = usable.copy()
    chosen: dict[int, int] = {}
    # In random order: where rates are crowded, no detector is always the last to be served.
    for detector in random.permutation(np.asarray(detectors)).tolist():
        candidates = np.flatnonzero(free)
        distance = np.abs(heights[candidates] - heights[detector])
        # Many latents have the same rate; which of them count as nearest is left to chance.
        order = np.lexsort((random.random(len(candidates)), distance))[:nearest]
        chosen[detector] = int(candidates[random.choice(order)])
        free[chosen[detector]] = False
    return tuple(chosen[detector] for detector in detectors)
