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

from esr_eval.episodes.traces import REGIONS, SETS, Trace
from esr_eval.stats.comparisons import holm
from esr_eval.stats.means import (
    Contrast,
    Difference,
    clustered_mean,
    difference_of_means,
    difference_of_sides,
    independent_contrast,
    mean_difference,
    paired_contrast,
)

UNSTEERED = "unsteered"
"""All tokens of an unsteered answer, as a region of its own."""
NO_RESTART = "off_topic_no_restart"
"""Off-topic text of steered answers without a restart, as a region of its own."""

CONTRASTS = (
    ("on_topic", "off_topic"),
    ("off_topic", "correction"),
    (UNSTEERED, "off_topic"),
    (UNSTEERED, "on_topic"),
)
"""What is compared: the second region against the first."""
WITH_CONTROLS = ((NO_RESTART, "off_topic"), (UNSTEERED, NO_RESTART))
"""What is compared besides, where steered answers without a restart were read."""


@dataclass(frozen=True)
class RegionMean:
    """Mean activation of a set of latents in one region, over episodes.

    Attributes:
        latents: Name of the set.
        region: One of `REGIONS`, `UNSTEERED` or `NO_RESTART`.
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
        episodes: Steered answers, but for the controls.
        baseline: Unsteered answers.
        unjudged: Steered answers whose regions could not be had from the judge.
        means: By set and region.
        contrasts: By set.
        controls: Steered answers without a restart, read beside those with one.
    """

    episodes: int
    baseline: int
    unjudged: int
    means: list[RegionMean]
    contrasts: list[RegionContrast]
    controls: int = 0


def region_statistics(traces: Sequence[Trace]) -> RegionStatistics:
    """Means and contrasts of all sets of latents over the traces' regions."""
    means: list[RegionMean] = []
    contrasts: list[RegionContrast] = []
    controls = sum(trace.control for trace in traces)
    # A log without controls has the rows, and so the corrected p values, that it always had.
    regions = (*REGIONS, NO_RESTART, UNSTEERED) if controls else (*REGIONS, UNSTEERED)
    pairs = (*CONTRASTS, *WITH_CONTROLS) if controls else CONTRASTS
    for name in SETS:
        found = [trace for trace in traces if name in trace.activations]
        if found:
            means += [_region_mean(found, name, region) for region in regions]
            contrasts += [_contrast(found, name, *pair) for pair in pairs]
    steered = [trace for trace in traces if trace.steered]
    return RegionStatistics(
        episodes=len(steered) - controls,
        baseline=len(traces) - len(steered),
        unjudged=sum(trace.regions is None for trace in steered),
        means=means,
        contrasts=_corrected(contrasts),
        controls=controls,
    )


def within(trace: Trace, region: str) -> NDArray[np.bool_]:
    """Which tokens of a trace lie in a region, (tokens,); all of an unsteered answer's do."""
    if not trace.steered:
        return np.full(len(trace.offsets), region == UNSTEERED)
    if trace.control:
        return np.asarray((trace.kinds == "off_topic") & (region == NO_RESTART))
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
    if region == UNSTEERED:
        return [trace for trace in traces if not trace.steered]
    return [trace for trace in traces if trace.steered and trace.control == (region == NO_RESTART)]


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
    mean, low, high = clustered_mean(values[known], clusters)
    count = int(known.sum())
    return RegionMean(name, region, mean, low, high, count, len(own) - count, tokens)


def _contrast(traces: Sequence[Trace], name: str, first: str, second: str) -> RegionContrast:
    paired = not {UNSTEERED, NO_RESTART} & {first, second}
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
        # Answers with and without a restart have boosted latents in common.
        compare = difference_of_means if UNSTEERED in (first, second) else difference_of_sides
        difference = compare(sides[0], labels[0], sides[1], labels[1])
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
    episodes = [trace for trace in read if trace.episode]
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
