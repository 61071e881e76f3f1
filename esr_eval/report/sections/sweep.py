"""Boost sweeps: rates and first scores over the strength."""

import pandas as pd

from esr_eval.logs.conditions import Condition
from esr_eval.logs.measures import Measured, measure
from esr_eval.report.plots import curves
from esr_eval.report.section import Evidence, Part, Picture, Pictures, Section, Table
from esr_eval.report.text import mean, percent
from esr_eval.text import one_line

Levels = list[tuple[float, dict[str, Measured]]]


def section(evidence: Evidence) -> Section | None:
    """Two figures and a table for every condition whose trials have levels."""
    swept = [one for one in evidence.conditions if one.trials["level"].notna().any()]
    found = [(one, _levels(one)) for one in swept]
    if not found:
        return None
    parts: list[Part] = []
    for one, levels in found:
        parts += [Pictures(_pictures(one, levels)), _table(one, levels)]
    return Section(
        id="sweep",
        title="Over the strength of the boost",
        question="How do first scores and corrections depend on the strength?",
        answers=[_answer(one, levels) for one, levels in found],
        parts=parts,
        tables={"sweep": _frame(found)},
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


def _table(one: Condition, levels: Levels) -> Table:
    rows = []
    for level, found in levels:
        strength = one.trials.loc[one.trials["level"] == level, "strength"].mean()
        rows.append(
            (
                f"{level:+.2f} SD",
                f"{strength:.4g}",
                f"{n.n:,}" if (n := found.get("multi_attempt")) else "0",
                percent(found.get("multi_attempt")),
                percent(found.get("esr")),
                percent(found.get("improved")),
                mean(found.get("first_score")),
                percent(found.get("degraded")),
            )
        )
    columns = (
        "level",
        "strength",
        "n",
        "multi-attempt",
        "ESR",
        "improved",
        "first score",
        "degraded",
    )
    return Table(f"By level: {one_line(one.name)}", columns, rows)


def _answer(one: Condition, levels: Levels) -> str:
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


def _frame(found: list[tuple[Condition, Levels]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"condition": one_line(one.name), "level": level, "metric": key, **value._asdict()}
            for one, levels in found
            for level, values in levels
            for key, value in values.items()
        ]
    )
