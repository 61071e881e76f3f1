"""Latents one by one: how differently each activates in off-topic text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from esr_eval.episodes.regions import UNSTEERED, region_values
from esr_eval.episodes.traces import Trace
from esr_eval.stats.contrasts import independent_contrast, paired_contrast
from esr_eval.stats.tests import holm


@dataclass(frozen=True)
class LatentEffect:
    """One latent's activation in off-topic text against two others; None where not defined.

    Attributes:
        latent: Index.
        off_topic: Mean over the episodes with off-topic text.
        on_topic: Mean over the episodes with on-topic text after it.
        unsteered: Mean over the unsteered answers.
        d_on_topic: Cohen's d, off-topic less on-topic, over episodes with both.
        d_unsteered: Cohen's d, off-topic less unsteered.
        p_on_topic: Wilcoxon's test of the former, after Holm's correction over the latents.
        p_unsteered: Rank-sum test of the latter, likewise.
    """

    latent: int
    off_topic: float
    on_topic: float
    unsteered: float
    d_on_topic: float | None
    d_unsteered: float | None
    p_on_topic: float | None
    p_unsteered: float | None

    @property
    def d(self) -> float | None:
        """What latents are ranked by: against on-topic text, or else the unsteered answers."""
        return self.d_unsteered if self.d_on_topic is None else self.d_on_topic


def latent_effects(
    traces: Sequence[Trace], latents: Sequence[int], name: str = "detectors"
) -> list[LatentEffect]:
    """Rank a set's latents by Cohen's d, the most raised in off-topic text first.

    The authors published their detectors in two halves, by the sign of d: latents that rise in
    off-topic text, and latents that fall. Halves that are chosen here from the same episodes must
    not be tested on them again.

    Args:
        traces: Episodes and unsteered answers.
        latents: Indices of the set, in the order of the activations.
        name: Of the set.
    """
    read = [trace for trace in traces if name in trace.activations]
    episodes = [trace for trace in read if trace.steered]
    baseline = [trace for trace in read if not trace.steered]
    if not episodes:
        return []
    off, on = (region_values(episodes, name, region) for region in ("off_topic", "on_topic"))
    plain = region_values(baseline, name, UNSTEERED) if baseline else np.empty((0, len(latents)))
    paired = [paired_contrast(on[:, at], off[:, at]) for at in range(len(latents))]
    against = [independent_contrast(plain[:, at], off[:, at]) for at in range(len(latents))]
    adjusted = holm(
        {
            "on_topic": [one.rank_p if one else None for one in paired],
            "unsteered": [one.rank_p if one else None for one in against],
        }
    )
    effects = [
        LatentEffect(
            latent=latent,
            off_topic=_mean(off[:, at]),
            on_topic=_mean(on[:, at]),
            unsteered=_mean(plain[:, at]),
            d_on_topic=one.cohens_d if one else None,
            d_unsteered=other.cohens_d if other else None,
            p_on_topic=adjusted["on_topic"][at],
            p_unsteered=adjusted["unsteered"][at],
        )
        for at, (latent, one, other) in enumerate(zip(latents, paired, against, strict=True))
    ]
    return sorted(effects, key=lambda one: (one.d is None, -(one.d or 0.0), one.latent))


def halves(effects: Sequence[LatentEffect]) -> tuple[list[int], list[int]]:
    """Latents with a positive d and with a negative one, as published for the 26 detectors."""
    known = [(one.latent, one.d) for one in effects if one.d is not None]
    return sorted(i for i, d in known if d > 0), sorted(i for i, d in known if d < 0)


def _mean(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))
