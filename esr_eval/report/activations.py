"""Activations over episodes: traces with their regions, and the regions compared."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from esr_eval.episodes.regions import (
    NO_RESTART,
    UNSTEERED,
    LatentEffect,
    RegionContrast,
    RegionMean,
    RegionStatistics,
    halves,
    latent_effects,
    region_statistics,
)
from esr_eval.episodes.traces import Trace, TraceLog
from esr_eval.logs.stored import StoredLog
from esr_eval.report.evidence import Evidence
from esr_eval.report.plots import embed, look, trace_figure
from esr_eval.report.section import (
    RULE,
    Block,
    Cell,
    Column,
    Part,
    Picture,
    Pictures,
    Section,
    Table,
    certainty,
    count,
    p_value,
    with_interval,
)
from esr_eval.report.strips import strips_of
from esr_eval.stats.rates import Estimate
from esr_eval.text import one_line

TITLES = {
    "on_topic_before": "on-topic, before any drift",
    "off_topic": "off-topic",
    "correction": "correction",
    "on_topic": "on-topic, after the drift",
    "off_topic_no_restart": "off-topic, answers without a restart",
    "unsteered": "unsteered answers",
}
"""Regions as tables name them."""


def region_table(log: TraceLog, statistics: RegionStatistics) -> Table:
    """Mean activation of each set of latents by region, and who has the region."""
    rows: list[tuple[Cell, ...]] = []
    last = None
    for mean in statistics.means:
        if last not in (None, mean.latents):
            rows.append(RULE)
        last = mean.latents
        rows.append(
            (
                set_title(log, mean.latents),
                TITLES[mean.region],
                with_interval(Estimate(mean.mean, mean.low, mean.high), ".4g")
                if mean.episodes
                else None,
                mean.episodes,
                mean.without,
                mean.tokens,
            )
        )
    return Table(
        f"Mean activations at layer {log.layer}, {one_line(log.subject)}, regions marked by "
        f"{one_line(log.judge)}; 95 % intervals clustered by latent (unsteered: by topic)",
        ("latents", Column("region", "left"), "mean", "answers", "without", "tokens"),
        rows,
        _caption(log, statistics),
    )


def contrast_table(log: TraceLog, statistics: RegionStatistics) -> Table:
    """The second region against the first: effect sizes and corrected p values."""
    rows: list[tuple[Cell, ...]] = []
    for one in statistics.contrasts:
        name = (set_title(log, one.latents), f"{TITLES[one.second]} less {TITLES[one.first]}")
        found, difference = one.contrast, one.difference
        if found is None or difference is None:
            rows.append((*name, 0, *[None] * 6))
            continue
        rows.append(
            (
                *name,
                found.n_first if one.paired else f"{found.n_second} against {found.n_first}",
                with_interval(difference, "+.4g"),
                _number(found.cohens_d, "+.2f"),
                _number(found.cliffs_delta, "+.2f"),
                *(_p_value(p) for p in (one.rank_p, one.t_p, one.clustered_p)),
            )
        )
    numbers = ("n", "difference", "Cohen's d", "Cliff's delta", "rank p", "t p", "clustered p")
    return Table(
        "Contrasts; p values after Holm's correction over the table's rows",
        ("latents", Column("contrast", "left"), *numbers),
        rows,
        "Wilcoxon's signed-rank and the paired t test for regions of the same episodes, "
        "the rank-sum test and Welch's t against other answers, answers as units; the "
        "interval and the clustered p take boosted latents as units. What differs from unsteered "
        "answers may be the boost's own doing; within an episode it is on throughout.",
    )


def latent_table(effects: Sequence[LatentEffect], title: str, top: int = 30) -> Table:
    """Latents ranked by Cohen's d; of more than `top`, the ends of the ranking.

    Args:
        effects: See `latent_effects`.
        title: Whose they are.
        top: Most rows.
    """
    positive, negative = halves(effects)
    ranked = list(effects)
    shown = ranked
    if len(ranked) > top:
        shown = ranked[: top - top // 2] + ranked[len(ranked) - top // 2 :]
    numbers = ("off-topic", "on-topic", "unsteered", "d on-topic", "p", "d unsteered", "p")
    return Table(
        f"Latents of {title} by Cohen's d of off-topic text",
        (Column("latent"), *numbers),
        [
            (
                str(one.latent),
                *(_number(value, ".4g") for value in (one.off_topic, one.on_topic, one.unsteered)),
                _number(one.d_on_topic, "+.2f"),
                _p_value(one.p_on_topic),
                _number(one.d_unsteered, "+.2f"),
                _p_value(one.p_unsteered),
            )
            for one in shown
        ],
        f"{len(positive)} rise and {len(negative)} fall in off-topic text; "
        f"{len(shown)} of {len(ranked)} shown. p values after Holm's correction over the latents.",
    )


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
    if statistics.controls:
        said.append(
            f"{statistics.controls} steered answers without a restart beside them, "
            f"{log.matched} of the same latent"
        )
    if statistics.unjudged:
        said.append(f"{statistics.unjudged} without a usable verdict on their regions")
    if log.errored:
        said.append(f"{log.errored} failed")
    if log.missing:
        said.append(f"{log.missing} whose activations are missing beside the log")
    return "; ".join(said) + "."


def _number(value: float | None, form: str) -> str | None:
    return None if value is None or math.isnan(value) else f"{value:{form}}"


def _p_value(value: float | None) -> str | None:
    return None if value is None else p_value(value)


MOST_TRACES = 3
_LEVEL = 0.05
_LARGE = 0.5
"""Of the activation itself: an interval that holds such a difference tells nothing."""
SET_TITLES = {
    "detectors": "detectors",
    "backtracking": "backtracking latents",
    "boosted": "boosted latent",
}


def activations_section(evidence: Evidence) -> Section | None:
    """Statistics by region and a few traces; a log without its activations says so."""
    logs = evidence.logs_of("activations")
    if not logs:
        return None
    read, problems = evidence.traces
    answers = [*problems]
    parts: list[Part] = []
    figures: list[Part] = []
    verdicts: list[str] = []
    frames: list[pd.DataFrame] = []
    for log, found in read:
        statistics = region_statistics(found.traces)
        answers.append(_answer(log, found, statistics))
        main = _main_set(statistics)
        verdicts += [
            _sentence(one)
            for one in statistics.contrasts
            if one.latents == main and one.contrast and one.difference
        ][:1]
        parts += [region_table(found, statistics), contrast_table(found, statistics)]
        figures += [Block("strips", [one]) for one in strips_of(found, _episodes(found)[:1])]
        parts.append(Pictures(_traces(found)))
        effects = {
            name: latent_effects(found.traces, latents.latents, name)
            for name, latents in found.sets.items()
        }
        frame = region_frame(statistics, effects)
        frame.insert(0, "log", log.file)
        frames.append(frame)
    return Section(
        id="activations",
        title="Activations over episodes",
        question="Are detectors more active while the text is off-topic than after it?",
        answers=answers,
        verdict=" ".join(verdicts),
        figures=figures,
        parts=parts,
        tables={"activations": pd.concat(frames)} if frames else {},
        experiment="activations",
    )


def _answer(log: StoredLog, found: TraceLog, statistics: RegionStatistics) -> str:
    said = (
        f"{one_line(log.condition)}, layer {found.layer}, regions marked by "
        f"{one_line(found.judge)}: {count(statistics.episodes, 'steered answer')} and "
        f"{count(statistics.baseline, 'unsteered answer')} read"
        f"{_beside(found, statistics)}; {statistics.unjudged:,} without "
        f"regions, {found.errored:,} failed, {found.missing:,} without their activations file."
    )
    for one in statistics.contrasts:
        if one.latents == _main_set(statistics) and one.contrast and one.difference:
            said += f" {_sentence(one)}"
    tracked = what_is_tracked(statistics)
    return f"{said} {tracked}" if tracked else said


def _beside(found: TraceLog, statistics: RegionStatistics) -> str:
    if not statistics.controls:
        return ""
    return (
        f", and {count(statistics.controls, 'steered answer')} without a restart "
        f"({found.matched:,} of the same latent as one with)"
    )


def what_is_tracked(statistics: RegionStatistics) -> str | None:
    """Whether the main set goes with correction, or with off-topic text whoever corrects it.

    Returns:
        None where no answer without a restart was read.
    """
    name = _main_set(statistics)
    if not statistics.controls or not name:
        return None
    means = {one.region: one for one in statistics.means if one.latents == name}
    [one] = [
        one
        for one in statistics.contrasts
        if (one.latents, one.first, one.second) == (name, NO_RESTART, "off_topic")
    ]
    title = SET_TITLES[name].capitalize()
    if one.difference is None:
        return (
            f"{title}: no off-topic text on one of the sides, so whether they track off-topic text "
            "or its correction stays open."
        )
    figures = "; ".join(
        f"{told} {_mean(means[region])}"
        for region, told in (
            ("off_topic", "with a restart"),
            (NO_RESTART, "without one"),
            (UNSTEERED, "unsteered answers"),
        )
        if means[region].episodes
    )
    p = one.difference.p_value
    told = f"{figures}; difference {with_interval(one.difference, '+.3g')}, {certainty(p)}"
    if p is None:
        return f"{title} in off-topic text of steered answers: {told}."
    high = one.difference.high
    if p >= _LEVEL and high is not None and high > _LARGE * means["off_topic"].mean:
        return (
            f"{title} show no difference between off-topic text of steered answers with and "
            f"without a restart ({told}), but these are too few to rule out a large one: whether "
            "they track off-topic text or its correction stays open."
        )
    if p >= _LEVEL:
        return (
            f"{title} are as active in off-topic text of steered answers without a restart as of "
            f"those with one, as far as these can tell ({told}): they track off-topic text, not "
            "its correction."
        )
    if one.difference.value < 0:
        return (
            f"{title} are even more active in off-topic text of steered answers without a restart "
            f"({told}): they track off-topic text, not its correction."
        )
    return (
        f"{title} are more active in off-topic text of steered answers that restart than of those "
        f"that do not ({told}): they may have to do with correction."
    )


def _mean(one: RegionMean) -> str:
    return f"{with_interval(Estimate(one.mean, one.low, one.high), '.3g')}, n = {one.episodes}"


def _main_set(statistics: RegionStatistics) -> str:
    """The set that the experiment is about: the detectors, where they were read."""
    names = [one.latents for one in statistics.contrasts]
    return "detectors" if "detectors" in names else next(iter(names), "")


def _sentence(one: RegionContrast) -> str:
    assert one.contrast is not None and one.difference is not None
    n = f"n = {one.contrast.n_first}"
    if not one.paired:
        n = f"n = {one.contrast.n_second} against {one.contrast.n_first}"
    return (
        f"{SET_TITLES[one.latents].capitalize()}, {TITLES[one.second]} less {TITLES[one.first]}: "
        f"{one.difference.value:+.3g} ({n}, {certainty(one.clustered_p)} after Holm)."
    )


def _traces(found: TraceLog) -> list[Picture]:
    """Answers with the most regions first: those that go off, correct themselves and come back."""
    with look():
        return [_picture(trace) for trace in _episodes(found)[:MOST_TRACES]]


def _episodes(found: TraceLog) -> list[Trace]:
    episodes = [trace for trace in found.traces if trace.episode and len(trace.offsets)]
    return sorted(episodes, key=lambda trace: (-len(set(trace.kinds.tolist())), trace.sample_id))


def _picture(trace: Trace) -> Picture:
    kinds = [TITLES[kind] for kind in dict.fromkeys(trace.kinds.tolist()) if kind]
    means = "; ".join(
        f"{SET_TITLES[name]} mean {values.mean():.3g}, greatest {values.mean(0).max():.3g}"
        for name, values in trace.activations.items()
    )
    about = one_line(f"{trace.trial.label}, {trace.trial.topic}", 90)
    return embed(
        trace_figure(trace),
        alt=f"Activations over {len(trace.offsets)} tokens of one answer ({about}); regions: "
        f"{', '.join(kinds) or 'none marked'}; {means}.",
        caption=f"One answer, {about}",
        wide=True,
    )
