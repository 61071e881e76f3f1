"""First scores: how they are spread, over the strength of the boost, and latent by latent."""

import pandas as pd

from esr_eval.logs.conditions import Condition
from esr_eval.logs.measures import Measured, measure
from esr_eval.report.evidence import Evidence
from esr_eval.report.plots import CHANGE_BINS, SCORE_BINS, curves, histogram, scatter
from esr_eval.report.section import (
    Paragraph,
    Part,
    Picture,
    Pictures,
    Section,
    Table,
    count,
    mean,
    percent,
    trials,
)
from esr_eval.stats.rates import Floats
from esr_eval.text import one_line


def distributions_section(evidence: Evidence) -> Section | None:
    """Histograms, the main run's outline over the others' first scores."""
    scored = [one for one in evidence.conditions if "first_score" in one.measures]
    if not scored:
        return None
    changed = [one for one in scored if "change" in one.measures]
    firsts = [
        histogram(
            _values(one, "first_score"),
            SCORE_BINS,
            title=one_line(one.name, 44),
            xlabel="score of the first attempt",
            reference=_main(one, evidence),
        )
        for one in scored
    ]
    changes = [
        histogram(
            _values(one, "change"),
            CHANGE_BINS,
            title=one_line(one.name, 44),
            xlabel="last score minus first",
        )
        for one in changed
    ]
    without = [one_line(one.name) for one in scored if one not in changed]
    parts: list[Part] = [Pictures(firsts)]
    if changes:
        parts.append(Pictures(changes))
    if without:
        parts.append(
            Paragraph(
                f"No trial had several attempts, so no score changed, in: {'; '.join(without)}."
            )
        )
    return Section(
        id="distributions",
        title="First scores, and changes of score",
        question="How far do first attempts drift, and how far do later attempts come back?",
        answers=[_medians(scored, changed)],
        parts=parts,
        tables={"distributions": _quartiles(scored)},
    )


def _values(condition: Condition, key: str) -> Floats:
    return condition.trials[key].dropna().to_numpy(float)


def _main(condition: Condition, evidence: Evidence) -> Floats | None:
    found = next((one.main for one in evidence.compared if one.condition is condition), None)
    return None if found is None else _values(found, "first_score")


def _medians(scored: list[Condition], changed: list[Condition]) -> str:
    medians = "; ".join(
        f"{one_line(one.name)} {one.trials['first_score'].median():.0f}" for one in scored
    )
    said = f"Median first score: {medians}."
    if not changed:
        return said
    medians = "; ".join(
        f"{one_line(one.name)} {one.trials['change'].median():+.0f} "
        f"(n = {one.measures['change'].n})"
        for one in changed
    )
    return f"{said} Median change over multi-attempt trials: {medians}."


def _quartiles(scored: list[Condition]) -> pd.DataFrame:
    rows = []
    for one in scored:
        for key in ("first_score", "change"):
            values = one.trials[key].dropna()
            if len(values):
                quarters = values.quantile([0, 0.25, 0.5, 0.75, 1]).tolist()
                names = ("least", "lower_quarter", "median", "upper_quarter", "greatest")
                rows.append(
                    {"condition": one_line(one.name), "metric": key, "n": len(values)}
                    | dict(zip(names, quarters, strict=True))
                )
    return pd.DataFrame(rows)


Levels = list[tuple[float, dict[str, Measured]]]


def sweep_section(evidence: Evidence) -> Section | None:
    """Two figures and a table for every condition whose trials have levels."""
    swept = [one for one in evidence.conditions if one.trials["level"].notna().any()]
    found = [(one, _levels(one)) for one in swept]
    if not found:
        return None
    figures: list[Part] = [Pictures(_pictures(one, levels)) for one, levels in found]
    return Section(
        id="sweep",
        title="Over the strength of the boost",
        question="How do first scores and corrections depend on the strength?",
        answers=[_peak(one, levels) for one, levels in found],
        figures=figures,
        parts=[_level_table(one, levels) for one, levels in found],
        tables={"sweep": _level_numbers(found)},
        experiment="boost_sweep",
    )


def _levels(condition: Condition) -> Levels:
    groups = condition.trials.groupby("level", sort=True)
    return [(float(str(level)), measure(group)) for level, group in groups]


def _pictures(one: Condition, levels: Levels) -> list[Picture]:
    title, xlabel = one_line(one.name, 40), "strength, SDs from the calibrated mean"
    keys = (("multi-attempt", "multi_attempt"), ("ESR", "esr"))
    rates = {name: _series(levels, key) for name, key in keys}
    scores = {"first score": _series(levels, "first_score")}
    improved = {"improved, of multi-attempt": _series(levels, "improved")}
    return [
        curves(series, title=f"{title}: {what}", xlabel=xlabel, ylabel=what, scale=scale, top=top)
        for series, what, scale, top in (
            (rates, "rate, %", 100, None),
            (improved, "improved, %", 100, 102),
            (scores, "mean first score", 1, 102),
        )
        if any(series.values())
    ]


def _series(levels: Levels, key: str) -> list[tuple[float, Measured]]:
    return [(level, found[key]) for level, found in levels if key in found]


def _level_table(one: Condition, levels: Levels) -> Table:
    rows = []
    for level, found in levels:
        strength = one.trials.loc[one.trials["level"] == level, "strength"].mean()
        rows.append(
            (
                f"{level:+.2f} SD",
                f"{strength:.4g}",
                trials(found.get("multi_attempt")),
                percent(found.get("multi_attempt")),
                percent(found.get("confirmed")),
                percent(found.get("esr")),
                percent(found.get("esr_margin")),
                percent(found.get("recovered")),
                percent(found.get("improved")),
                mean(found.get("first_score")),
                percent(found.get("degraded")),
                percent(found.get("degenerate")),
            )
        )
    columns = (
        "level",
        "strength",
        "n",
        "multi-attempt",
        "found by both",
        "ESR",
        "by the margin",
        "recovered",
        "improved",
        "first score",
        "degraded",
        "loops",
    )
    return Table(
        f"By level: {one_line(one.name)}",
        columns,
        rows,
        f"By the margin, recovered: {one.bars}. Found by both: by judge and phrase detector.",
    )


def _peak(one: Condition, levels: Levels) -> str:
    multi, first = _series(levels, "multi_attempt"), _series(levels, "first_score")
    if not multi or not first:
        return f"{one_line(one.name)}: no trial of the sweep could be scored."
    level, peak = max(multi, key=lambda point: point[1].value)
    if peak.hits:
        said = (
            f"several attempts were most frequent at {level:+.2f} SD: {percent(peak)}, n = {peak.n}"
        )
    else:
        trials = sum(found.n for _, found in multi)
        said = f"no trial at any of {len(multi)} strengths (n = {trials}) held several attempts"
    (low, weakest), (high, strongest) = first[0], first[-1]
    return (
        f"{one_line(one.name)}: {said}; the mean first score went from {mean(weakest)} at "
        f"{low:+.2f} SD (n = {weakest.n}) to {mean(strongest)} at {high:+.2f} SD "
        f"(n = {strongest.n})."
    )


def _level_numbers(found: list[tuple[Condition, Levels]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"condition": one_line(one.name), "level": level, "metric": key, **value._asdict()}
            for one, levels in found
            for level, values in levels
            for key, value in values.items()
        ]
    )


FEWEST = 3
"""Latents below which a scatter says nothing."""


def latents_section(evidence: Evidence) -> Section | None:
    """A figure for every main run, and for every condition that replays one."""
    steered = [
        one
        for one in evidence.of("esr", "vectors", "finetuned")
        if one.steering != "unsteered" and one.trials["strength"].nunique() > 1
    ]
    tables = [(one, _by_latent(one)) for one in steered]
    tables = [(one, table) for one, table in tables if len(table) >= FEWEST]
    pictures = [
        scatter(
            table["strength"].to_numpy(float),
            table["first_score"].to_numpy(float),
            title=one_line(one.name, 44),
            xlabel="strength of the boost",
            ylabel="mean first score",
            noun=one.direction,
        )
        for one, table in tables
    ]
    frames = [_labelled(one, table) for one, table in tables]
    said = [
        f"{one_line(one.name)}: mean first scores of {count(len(table), one.direction)} range from "
        f"{table['first_score'].min():.0f} to {table['first_score'].max():.0f} "
        f"(middle half {table['first_score'].quantile(0.25):.0f} to "
        f"{table['first_score'].quantile(0.75):.0f})."
        for one, table in tables
    ]
    for condition, main in _replays(evidence):
        picture = _against(condition, main)
        if picture is not None:
            pictures.append(picture)
    if not pictures:
        return None
    return Section(
        id="latents",
        title="Latent by latent",
        question="Is the boost as strong for every latent, and do conditions act alike on all?",
        answers=said,
        parts=[Pictures(pictures)],
        tables={"latents": pd.concat(frames)} if frames else {},
    )


def _by_latent(condition: Condition) -> pd.DataFrame:
    known = condition.trials[condition.trials["first_score"].notna()]
    groups = known.groupby("latent", sort=True)
    return groups.agg(
        label=("label", "first"),
        strength=("strength", "mean"),
        first_score=("first_score", "mean"),
        multi_attempt=("multi_attempt", "mean"),
        trials=("first_score", "size"),
    )


def _labelled(condition: Condition, table: pd.DataFrame) -> pd.DataFrame:
    table = table.reset_index()
    table.insert(0, "condition", one_line(condition.name))
    return table


def _replays(evidence: Evidence) -> list[tuple[Condition, Condition]]:
    pairs = {one.condition.name: (one.condition, one.main) for one in evidence.compared}
    return list(pairs.values())


def _against(condition: Condition, main: Condition) -> Picture | None:
    joined = _by_latent(main)[["first_score"]].join(
        _by_latent(condition)[["first_score"]], how="inner", lsuffix="_main"
    )
    if len(joined) < FEWEST:
        return None
    return scatter(
        joined["first_score_main"].to_numpy(float),
        joined["first_score"].to_numpy(float),
        title=one_line(condition.name, 44),
        xlabel="mean first score in the main run",
        ylabel="in this condition",
        diagonal=True,
    )
