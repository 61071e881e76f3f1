"""Activations by region of the answer, contrasted (paper, experiment on activation statistics).

The unit is the episode: a latent set's activation is its mean over the latents of the set and the
tokens of a region, one number per episode and region. Regions of the same episodes are paired;
against unsteered answers, episodes are independent of them. The boost is on in every region of an
episode and in no unsteered answer: only the paired contrasts are free of its own effect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from esr_eval.episodes.region_tokens import REGIONS
from esr_eval.episodes.traces import SETS, Trace
from esr_eval.stats.contrasts import Contrast, independent_contrast, paired_contrast
from esr_eval.stats.differences import (
    Difference,
    clustered_mean,
    difference_of_means,
    mean_difference,
)
from esr_eval.stats.tests import holm

UNSTEERED = "unsteered"
"""All tokens of an unsteered answer, as a region of its own."""

CONTRASTS = (
    ("on_topic", "off_topic"),
    ("off_topic", "correction"),
    (UNSTEERED, "off_topic"),
    (UNSTEERED, "on_topic"),
)
"""What is compared: the second region against the first."""


@dataclass(frozen=True)
class RegionMean:
    """Mean activation of a set of latents in one region, over episodes.

    Attributes:
        latents: Name of the set.
        region: One of `REGIONS`, or `UNSTEERED`.
        mean: Over episodes; NaN when none has the region.
        low: Lower bound of the 95 % interval, clustered by boosted latent (of unsteered answers,
            by topic); None from fewer than two clusters.
        high: Upper bound.
        episodes: How many have the region.
        without: How many have not.
        tokens: In the region, over all episodes.
    """

    latents: str
    region: str
    mean: float
    low: float | None
    high: float | None
    episodes: int
    without: int
    tokens: int


@dataclass(frozen=True)
class RegionContrast:
    """The second region against the first, for one set of latents.

    Attributes:
        latents: Name of the set.
        first: Region.
        second: Region.
        paired: Whether the same episodes stand on both sides.
        contrast: Tests and effect sizes with episodes as units, as published; None when no
            episode has both regions.
        difference: Of the means, with an interval and test that respect the clusters.
        rank_p: The contrast's rank test, after Holm's correction over all contrasts and sets.
        t_p: Its t test, likewise.
        clustered_p: The clustered test, likewise.
    """

    latents: str
    first: str
    second: str
    paired: bool
    contrast: Contrast | None
    difference: Difference | None
    rank_p: float | None = None
    t_p: float | None = None
    clustered_p: float | None = None


@dataclass(frozen=True)
class RegionStatistics:
    """Everything that comes out of a log's traces.

    Attributes:
        episodes: Steered answers.
        baseline: Unsteered answers.
        unjudged: Episodes whose regions could not be had from the judge.
        means: By set and region.
        contrasts: By set.
    """

    episodes: int
    baseline: int
    unjudged: int
    means: list[RegionMean]
    contrasts: list[RegionContrast]


def region_statistics(traces: Sequence[Trace]) -> RegionStatistics:
    """Means and contrasts of all sets of latents over the traces' regions."""
    means: list[RegionMean] = []
    contrasts: list[RegionContrast] = []
    for name in SETS:
        found = [trace for trace in traces if name in trace.activations]
        if found:
            means += [_region_mean(found, name, region) for region in (*REGIONS, UNSTEERED)]
            contrasts += [_contrast(found, name, *pair) for pair in CONTRASTS]
    episodes = [trace for trace in traces if trace.steered]
    return RegionStatistics(
        episodes=len(episodes),
        baseline=len(traces) - len(episodes),
        unjudged=sum(trace.regions is None for trace in episodes),
        means=means,
        contrasts=_corrected(contrasts),
    )


def within(trace: Trace, region: str) -> NDArray[np.bool_]:
    """Which tokens of a trace lie in a region, (tokens,); all of an unsteered answer's do."""
    if not trace.steered:
        return np.full(len(trace.offsets), region == UNSTEERED)
    return np.asarray(trace.kinds == region)


def region_values(traces: Sequence[Trace], name: str, region: str) -> NDArray[np.float64]:
    """Mean activation in a region of each latent of a set in each trace.

    Returns:
        (traces, latents); NaN where the trace has no token in the region.
    """
    rows = []
    for trace in traces:
        values, inside = trace.activations[name], within(trace, region)
        none = np.full(len(values), math.nan)
        rows.append(values[:, inside].mean(1, dtype=float) if inside.any() else none)
    return np.array(rows)


def _of(traces: Sequence[Trace], region: str) -> list[Trace]:
    return [trace for trace in traces if trace.steered != (region == UNSTEERED)]


def _clusters(traces: Sequence[Trace], region: str) -> list[int | str]:
    """Steered answers are alike by the boosted latent; in unsteered ones it has no part."""
    if region == UNSTEERED:
        return [trace.trial.topic for trace in traces]
    return [trace.trial.latent for trace in traces]


def _region_mean(traces: Sequence[Trace], name: str, region: str) -> RegionMean:
    own = _of(traces, region)
    tokens = sum(int(within(trace, region).sum()) for trace in own)
    if not tokens:
        return RegionMean(name, region, math.nan, None, None, 0, len(own), 0)
    values = region_values(own, name, region).mean(1)
    known = ~np.isnan(values)
    clusters = [label for label, use in zip(_clusters(own, region), known, strict=True) if use]
    places = {label: index for index, label in enumerate(dict.fromkeys(clusters))}
    mean, low, high = clustered_mean(values[known].tolist(), [places[label] for label in clusters])
    count = int(known.sum())
    return RegionMean(name, region, mean, low, high, count, len(own) - count, tokens)


def _contrast(traces: Sequence[Trace], name: str, first: str, second: str) -> RegionContrast:
    paired = UNSTEERED not in (first, second)
    sides = []
    for region in (first, second):
        own = _of(traces, region)
        values = region_values(own, name, region)
        sides.append(values.mean(1) if len(own) else np.empty(0))
    labels = [_clusters(_of(traces, region), region) for region in (first, second)]
    known = [~np.isnan(side) for side in sides]
    if paired:
        known = [known[0] & known[1]] * 2
    sides = [side[use] for side, use in zip(sides, known, strict=True)]
    labels = [
        [label for label, kept in zip(side, use, strict=True) if kept]
        for side, use in zip(labels, known, strict=True)
    ]
    if not all(map(len, sides)):
        return RegionContrast(name, first, second, paired, None, None)
    if paired:
        contrast = paired_contrast(*sides)
        difference = mean_difference(sides[1] - sides[0], labels[1])
    else:
        contrast = independent_contrast(*sides)
        difference = difference_of_means(sides[0], labels[0], sides[1], labels[1])
    return RegionContrast(name, first, second, paired, contrast, difference)


def _corrected(contrasts: Sequence[RegionContrast]) -> list[RegionContrast]:
    adjusted = holm(
        {
            "rank_p": [one.contrast.rank_p if one.contrast else None for one in contrasts],
            "t_p": [one.contrast.t_p if one.contrast else None for one in contrasts],
            "clustered_p": [
                one.difference.p_value if one.difference else None for one in contrasts
            ],
        }
    )
    triples = zip(adjusted["rank_p"], adjusted["t_p"], adjusted["clustered_p"], strict=True)
    return [
        replace(one, rank_p=rank_p, t_p=t_p, clustered_p=clustered_p)
        for one, (rank_p, t_p, clustered_p) in zip(contrasts, triples, strict=True)
    ]
