"""Region statistics as tables on the terminal and as one CSV."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from esr_eval._util.spreadsheet import write_frame
from esr_eval._util.terminal import Terminal
from esr_eval.episodes.activations import TraceLog, read_traces
from esr_eval.episodes.latent_effects import LatentEffect, halves, latent_effects
from esr_eval.episodes.regions import RegionContrast, RegionStatistics, region_statistics
from esr_eval.logs.reading import Note, read_only
from esr_eval.report.intervals import with_interval
from esr_eval.text import one_line

TITLES = {
    "on_topic_before": "on-topic, before any drift",
    "off_topic": "off-topic",
    "correction": "correction",
    "on_topic": "on-topic, after the drift",
    "unsteered": "unsteered answers",
}
"""Regions as tables name them."""
NONE = "-"


def region_table(log: TraceLog, statistics: RegionStatistics) -> Table:
    """Mean activation of each set of latents by region, and who has the region."""
    table = Table(
        title=f"Mean activations at layer {log.layer}, {one_line(log.subject)}, regions marked by "
        f"{one_line(log.judge)}; 95 % intervals clustered by latent (unsteered: by topic)",
        caption=_caption(log, statistics),
    )
    _columns(table, ("latents", "region"), ("mean", "answers", "without", "tokens"))
    last = None
    for mean in statistics.means:
        if last not in (None, mean.latents):
            table.add_section()
        last = mean.latents
        table.add_row(
            set_title(log, mean.latents),
            TITLES[mean.region],
            with_interval(mean.mean, mean.low, mean.high, ".4g") if mean.episodes else NONE,
            str(mean.episodes),
            str(mean.without),
            str(mean.tokens),
        )
    return table


def contrast_table(log: TraceLog, statistics: RegionStatistics) -> Table:
    """The second region against the first: effect sizes and corrected p values."""
    table = Table(
        title="Contrasts; p values after Holm's correction over the table's rows",
        caption="Wilcoxon's signed-rank and the paired t test for regions of the same episodes, "
        "the rank-sum test and Welch's t against unsteered answers, episodes as units; the "
        "interval and the clustered p take boosted latents as units. What differs from unsteered "
        "answers may be the boost's own doing; within an episode it is on throughout.",
    )
    numbers = ("n", "difference", "Cohen's d", "Cliff's delta", "rank p", "t p", "clustered p")
    _columns(table, ("latents", "contrast"), numbers)
    for one in statistics.contrasts:
        name = (
            set_title(log, one.latents),
            f"{TITLES[one.second]} less {TITLES[one.first]}",
        )
        found, difference = one.contrast, one.difference
        if found is None or difference is None:
            table.add_row(*name, "0", *[NONE] * 6)
            continue
        count = f"{found.n_first}" if one.paired else f"{found.n_second} against {found.n_first}"
        table.add_row(
            *name,
            count,
            with_interval(difference.value, difference.low, difference.high, "+.4g"),
            _number(found.cohens_d, "+.2f"),
            _number(found.cliffs_delta, "+.2f"),
            *(_p_value(p) for p in (one.rank_p, one.t_p, one.clustered_p)),
        )
    return table


def latent_table(effects: Sequence[LatentEffect], title: str, top: int = 30) -> Table:
    """Latents ranked by Cohen's d; of more than `top`, the ends of the ranking.

    Args:
        effects: See `latent_effects`.
        title: Whose they are.
        top: Most rows.
    """
    positive, negative = halves(effects)
    rows = list(effects)
    shown = rows if len(rows) <= top else rows[: top - top // 2] + rows[len(rows) - top // 2 :]
    table = Table(
        title=f"Latents of {title} by Cohen's d of off-topic text",
        caption=f"{len(positive)} rise and {len(negative)} fall in off-topic text; "
        f"{len(shown)} of {len(rows)} shown. p values after Holm's correction over the latents.",
    )
    numbers = ("off-topic", "on-topic", "unsteered", "d on-topic", "p", "d unsteered", "p")
    _columns(table, (), ("latent", *numbers))
    for one in shown:
        table.add_row(
            str(one.latent),
            *(_number(value, ".4g") for value in (one.off_topic, one.on_topic, one.unsteered)),
            _number(one.d_on_topic, "+.2f"),
            _p_value(one.p_on_topic),
            _number(one.d_unsteered, "+.2f"),
            _p_value(one.p_unsteered),
        )
    return table


def region_frame(
    statistics: RegionStatistics, effects: dict[str, list[LatentEffect]]
) -> pd.DataFrame:
    """All numbers as one long table: means, contrasts and single latents, told apart by `row`."""
    rows: list[dict[str, Any]] = [{"row": "mean", **asdict(mean)} for mean in statistics.means]
    rows += [_contrast_row(one) for one in statistics.contrasts]
    rows += [
        {"row": "latent", "latents": name, **asdict(one)}
        for name, found in effects.items()
        for one in found
    ]
    return pd.DataFrame(rows)


def set_title(log: TraceLog, name: str) -> str:
    """A set of latents as tables name it: what it is, and which."""
    if name not in log.sets:
        return "boosted latent"
    found = log.sets[name]
    return f"{name} ({one_line(found.name, 40)}, {len(found.latents)})"


def _contrast_row(one: RegionContrast) -> dict[str, Any]:
    plain_row: dict[str, Any] = {
        "row": "contrast",
        "latents": one.latents,
        "first": one.first,
        "second": one.second,
        "paired": one.paired,
        "rank_p_holm": one.rank_p,
        "t_p_holm": one.t_p,
        "clustered_p_holm": one.clustered_p,
    }
    if one.contrast is None or one.difference is None:
        return plain_row
    found = {f"{key}_mean" if key in _SIDES else key: v for key, v in asdict(one.contrast).items()}
    difference = {
        "difference": one.difference.value,
        "low": one.difference.low,
        "high": one.difference.high,
        "clustered_p": one.difference.p_value,
        "clusters": one.difference.clusters,
    }
    return {**plain_row, **found, **difference}


_SIDES = ("first", "second")


def _caption(log: TraceLog, statistics: RegionStatistics) -> str:
    kind = "multi-attempt" if log.which == "multi_attempt" else "steered"
    said = [f"{statistics.episodes} {kind} and {statistics.baseline} unsteered answers"]
    if statistics.unjudged:
        said.append(f"{statistics.unjudged} without a usable verdict on their regions")
    if log.errored:
        said.append(f"{log.errored} failed")
    if log.missing:
        said.append(f"{log.missing} whose activations are missing beside the log")
    return "; ".join(said) + "."


def _columns(table: Table, texts: Sequence[str], numbers: Sequence[str]) -> None:
    for name in texts:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")


def _number(value: float | None, form: str) -> str:
    return NONE if value is None or math.isnan(value) else f"{value:{form}}"


def _p_value(value: float | None) -> str:
    if value is None:
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def report_activations(path: str | Path, csv: Path | None, note: Note) -> None:
    """Print a log's tables, and write its numbers to a CSV where one is named.

    Args:
        path: The log, or the folder that it is in.
        csv: The file.
        note: Told of what is left out of the folder.

    Raises:
        EsrError: See `read_traces`.
    """
    log = read_only(path, read_traces, note)
    statistics = region_statistics(log.traces)
    effects = {
        name: latent_effects(log.traces, found.latents, name) for name, found in log.sets.items()
    }
    console = Terminal()
    console.print(region_table(log, statistics))
    console.print(contrast_table(log, statistics))
    for name, found in effects.items():
        if any(one.d is not None for one in found):
            console.print(latent_table(found, set_title(log, name)))
    if csv is not None:
        write_frame(csv, region_frame(statistics, effects))
