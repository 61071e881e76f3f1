"""For planning runs: how trials cluster in logs that exist, and how many a design needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from esr_eval.errors import EsrError
from esr_eval.logs.conditions import TrialKey, read_values, shared_trials
from esr_eval.logs.reading import Note, read_each
from esr_eval.report.section import Table
from esr_eval.stats.power import (
    PUBLISHED_LATENTS,
    PUBLISHED_TRIALS,
    Design,
    design_effect,
    latents_needed,
    power,
)
from esr_eval.stats.rates import cluster_counts, cross_correlation, intraclass_correlation

Values = Mapping[TrialKey, float]


@dataclass(frozen=True)
class Clustering:
    """What `esr_eval.stats.power.Design` needs to know of it; None where only one log tells."""

    icc: float
    latent_correlation: float | None = None
    pair_correlation: float | None = None


def clustering_of_logs(
    paths: Sequence[str | Path], metric: str = "multi_attempt", note: Note = lambda text: None
) -> dict[str, float]:
    """What is known of the clustering from no log, one log, or a log and its replay.

    Args:
        paths: Logs, or folders with no more of them.
        metric: Whose clustering.
        note: Told of what is left out, see `esr_eval.logs.reading.read_each`.

    Raises:
        EsrError: The logs cannot be used, or are more than two.
    """
    if not paths:
        return {}
    wanted = "Clustering is taken from one log, or from one and its replay"
    if len(paths) > 2:
        raise EsrError(f"{wanted}.")
    found = read_each(paths, lambda path: read_values(path, metric), note)
    if not 1 <= len(found) <= 2:
        raise EsrError(f"{wanted}, not from {len(found)}: name one, or two.")
    clustering = observed_pair_clustering(*found) if len(found) > 1 else observed_clustering(*found)
    return {name: value for name, value in asdict(clustering).items() if value is not None}


def observed_clustering(values: Values) -> Clustering:
    """Clustering within one condition.

    Raises:
        EsrError: It cannot be told from these trials.
    """
    latents = [key.latent for key in values]
    found = intraclass_correlation(list(values.values()), latents)
    if found is None:
        raise EsrError(
            "Clustering cannot be told from this log: it needs trials with the value and trials "
            "without it, and several trials of a latent."
        )
    # Estimates scatter around 0 when there is none; trials of a latent are not less alike.
    return Clustering(min(max(found, 0.0), 0.99))


def observed_pair_clustering(first: Values, second: Values) -> Clustering:
    """Clustering of two conditions that share trials.

    Raises:
        EsrError: It cannot be told from these trials.
    """
    before, after, latents = shared_trials(first, second)
    if not len(latents):
        raise EsrError("The two logs share no trial: the second is to be a replay of the first.")
    shared = [
        key for key in first if key in second and not np.isnan((first[key], second[key])).any()
    ]
    within = [
        observed_clustering({key: values[key] for key in shared}).icc for values in (first, second)
    ]
    icc = sum(within) / 2
    hits, trials = cluster_counts(before, latents)
    hits_after, _ = cluster_counts(after, latents)
    both, _ = cluster_counts(before * after, latents)
    between = cross_correlation(hits, hits_after, both, trials)
    assert between is not None  # as both conditions have a correlation of their own
    return Clustering(
        icc=icc,
        latent_correlation=min(max(between / icc, 0.0), 1.0) if icc else 1.0,
        # A replay that changed nothing would leave no variance to plan with.
        pair_correlation=min(float(np.corrcoef(before, after)[0, 1]), 0.99),
    )


def power_table(designs: Sequence[Design], chance: float = 0.8, alpha: float = 0.05) -> Table:
    """Needs of each design, and the power that the published one had at its clustering.

    Args:
        designs: Alike but for their clustering.
        chance: The power that is wanted.
        alpha: Level of the test.
    """
    one = designs[0]
    kind = "replayed pairs" if one.paired else "latents of its own each"
    needed = [latents_needed(design, chance, alpha) for design in designs]
    trials = [
        math.ceil(count * design.trials_per_latent)
        for count, design in zip(needed, designs, strict=True)
    ]
    published = PUBLISHED_TRIALS / PUBLISHED_LATENTS
    had = [
        power(replace(design, trials_per_latent=published), PUBLISHED_TRIALS, alpha)
        for design in designs
    ]
    return Table(
        f"{100 * one.base:g} % against {100 * one.reduced:g} %, {kind}, "
        f"two-sided at {100 * alpha:g} %",
        ("", *(f"ICC {one.icc:.2f}" if one.icc else "no clustering" for one in designs)),
        [
            ("design effect", *(f"{design_effect(design):.2f}" for design in designs)),
            (f"trials for {100 * chance:g} % power", *(f"{count:,}" for count in trials)),
            (
                f"latents, at {one.trials_per_latent:g} trials each",
                *(f"{count:,}" for count in needed),
            ),
            ("power of the published design", *(f"{100 * value:.0f} %" for value in had)),
        ],
        "trials and latents are of each condition; "
        f"published: {PUBLISHED_LATENTS} latents, {PUBLISHED_TRIALS:,} trials",
    )
