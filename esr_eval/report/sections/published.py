"""Published figures beside ours."""

import pandas as pd

from esr_eval.logs.conditions import Condition
from esr_eval.logs.measures import SHARES, TITLES
from esr_eval.report.published import (
    OTHER_CONDITION,
    Figure,
    Verdict,
    statements,
    verdicts,
)
from esr_eval.report.section import Evidence, Section, Table
from esr_eval.report.text import NONE, count, mean, percent
from esr_eval.text import one_line


def section(evidence: Evidence) -> Section | None:
    """One row for each published figure of an experiment that ran."""
    every = [(one, verdict) for one in evidence.conditions for verdict in verdicts(one)]
    matched = {verdict.figure for _, verdict in every if OTHER_CONDITION not in verdict.reasons}
    # A figure of another condition stands here only where its own was not run.
    found = [
        (one, verdict)
        for one, verdict in every
        if OTHER_CONDITION not in verdict.reasons or verdict.figure not in matched
    ]
    said = [
        (experiment.title, text)
        for experiment in dict.fromkeys(log.experiment for log in evidence.logs if log.experiment)
        for text in statements(experiment.id)
    ]
    if not found and not said:
        return None
    table = Table(
        "Published and ours",
        ("condition", "number", "published", "for", "n", "ours", "n of ours", "published lies"),
        [_row(one, verdict) for one, verdict in found],
        "Published: arXiv 2602.06941. A figure is compared only where model, layers, judge, "
        "temperature and length of answers are those of the paper. Inside our interval does not "
        "mean equal: a short run has a wide interval.",
    )
    quotes = Table("Published otherwise", ("experiment", "published"), said)
    return Section(
        id="published",
        title="Published figures beside ours",
        question="Do these runs reproduce what was published?",
        answers=[_answer([verdict for _, verdict in found])],
        parts=[part for part in (table, quotes) if part.rows],
        tables={"published": pd.DataFrame([_numbers(one, verdict) for one, verdict in found])},
    )


def figure_text(figure: Figure) -> str:
    """The published figure as it was published."""
    least, most = (_number(bound, figure.metric in SHARES) for bound in figure.bounds)
    if figure.value is not None:
        return most
    if figure.least is not None and figure.most is not None:
        return f"{least} to {most}"
    return f"at most {most}" if figure.most is not None else f"at least {least}"


def _number(value: float, share: bool) -> str:
    # A product such as 100 * 0.074 is a hair off.
    return f"{round(100 * value, 4):g} %" if share else f"{value:g}"


def _answer(found: list[Verdict]) -> str:
    comparable = [one for one in found if not one.reasons]
    if not comparable:
        why = dict.fromkeys(reason for one in found for reason in one.reasons)
        return (
            f"None of {count(len(found), 'published figure')} can be compared with these runs "
            f"({', '.join(why) or 'nothing published as a single figure'})."
        )
    places = {place: sum(one.place == place for one in comparable) for place in _PLACES}
    return (
        f"Of {count(len(comparable), 'comparable figure')}, {places['inside']} lie inside our "
        f"interval, {places['below']} below and {places['above']} above; "
        f"{len(found) - len(comparable)} more cannot be compared."
    )


_PLACES = ("inside", "below", "above")


def _row(condition: Condition, verdict: Verdict) -> tuple[str, ...]:
    figure, ours = verdict.figure, verdict.ours
    shown = percent(ours) if figure.metric in SHARES else mean(ours)
    return (
        one_line(condition.name),
        TITLES.get(figure.metric, figure.metric),
        figure_text(figure),
        ", ".join(filter(None, (figure.subject or "five models", figure.judge, figure.note))),
        NONE if figure.n is None else f"{figure.n:,}",
        shown,
        NONE if ours is None else f"{ours.n:,}",
        verdict.text,
    )


def _numbers(condition: Condition, verdict: Verdict) -> dict[str, object]:
    figure, ours = verdict.figure, verdict.ours
    return {
        "condition": one_line(condition.name),
        "metric": figure.metric,
        "published_for": figure.subject or "five models",
        "published": figure.value,
        "published_least": figure.least,
        "published_most": figure.most,
        "published_n": figure.n,
        "published_judge": figure.judge,
        "ours": ours.value if ours else None,
        "low": ours.low if ours else None,
        "high": ours.high if ours else None,
        "n": ours.n if ours else 0,
        "verdict": verdict.text,
    }
