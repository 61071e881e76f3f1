"""Activations over episodes: traces with their regions, and the regions compared."""

import pandas as pd

from esr_eval.episodes.activations import TraceLog, read_traces
from esr_eval.episodes.latent_effects import latent_effects
from esr_eval.episodes.regions import RegionContrast, RegionStatistics, region_statistics
from esr_eval.episodes.traces import Trace
from esr_eval.errors import EsrError
from esr_eval.logs.stored import StoredLog
from esr_eval.report.intervals import with_interval
from esr_eval.report.region_tables import TITLES, region_frame
from esr_eval.report.section import (
    Evidence,
    Part,
    Picture,
    Pictures,
    Section,
    Table,
    unusable,
)
from esr_eval.report.style import embed, look
from esr_eval.report.text import NONE, certainty, count, p_value
from esr_eval.report.trace_plot import trace_figure
from esr_eval.text import one_line

MOST_TRACES = 3
SET_TITLES = {
    "detectors": "detectors",
    "backtracking": "backtracking latents",
    "boosted": "boosted latent",
}


def section(evidence: Evidence) -> Section | None:
    """Statistics by region and a few traces; a log without its activations says so."""
    logs = evidence.logs_of("activations")
    if not logs:
        return None
    answers: list[str] = []
    parts: list[Part] = []
    frames: list[pd.DataFrame] = []
    for log in logs:
        try:
            found = read_traces(log.path)
        except EsrError as error:
            answers.append(unusable(log, error))
            continue
        statistics = region_statistics(found.traces)
        answers.append(_answer(log, found, statistics))
        parts += [_means(statistics), _contrasts(statistics), Pictures(_traces(found))]
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
        parts=parts,
        tables={"activations": pd.concat(frames)} if frames else {},
        experiment="activations",
    )


def _answer(log: StoredLog, found: TraceLog, statistics: RegionStatistics) -> str:
    said = (
        f"{one_line(log.condition)}, layer {found.layer}, regions marked by "
        f"{one_line(found.judge)}: {count(statistics.episodes, 'steered answer')} and "
        f"{count(statistics.baseline, 'unsteered answer')} read; {statistics.unjudged:,} without "
        f"regions, {found.errored:,} failed, {found.missing:,} without their activations file."
    )
    for one in statistics.contrasts:
        if one.latents == _main_set(statistics) and one.contrast and one.difference:
            said += f" {_sentence(one)}"
    return said


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


def _means(statistics: RegionStatistics) -> Table:
    rows = [
        (
            SET_TITLES[one.latents],
            TITLES[one.region],
            with_interval(one.mean, one.low, one.high, ".3g") if one.episodes else NONE,
            f"{one.episodes:,}",
            f"{one.without:,}",
            f"{one.tokens:,}",
        )
        for one in statistics.means
    ]
    return Table(
        "Mean activation by region",
        ("latents", "region", "mean", "answers", "answers without", "tokens"),
        rows,
        "Mean over the latents of the set and the tokens of the region, then over answers; 95 % "
        "intervals clustered by boosted latent (unsteered answers: by topic).",
    )


def _contrasts(statistics: RegionStatistics) -> Table:
    rows = []
    for one in statistics.contrasts:
        names = (SET_TITLES[one.latents], f"{TITLES[one.second]} less {TITLES[one.first]}")
        found, difference = one.contrast, one.difference
        if found is None or difference is None:
            rows.append((*names, "0", *[NONE] * 6))
            continue
        n = f"{found.n_first}" if one.paired else f"{found.n_second} against {found.n_first}"
        rows.append(
            (
                *names,
                n,
                with_interval(difference.value, difference.low, difference.high, "+.3g"),
                NONE if found.cohens_d is None else f"{found.cohens_d:+.2f}",
                f"{found.cliffs_delta:+.2f}",
                *(p_value(p) for p in (one.rank_p, one.t_p, one.clustered_p)),
            )
        )
    return Table(
        "Regions compared",
        (
            "latents", "contrast", "n", "difference", "Cohen's d", "Cliff's delta", "rank p", "t p",
            "clustered p",
        ),
        rows,
        "P values after Holm's correction over the table's rows. Rank and t tests take answers as "
        "units, as published; the clustered test takes boosted latents.",
    )  # fmt: skip


def _traces(found: TraceLog) -> list[Picture]:
    """Answers with the most regions first: those that go off, correct themselves and come back."""
    episodes = [trace for trace in found.traces if trace.steered and len(trace.offsets)]
    episodes.sort(key=lambda trace: (-len(set(trace.kinds.tolist())), trace.sample_id))
    with look():
        return [_picture(trace) for trace in episodes[:MOST_TRACES]]


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
