"""Published figures beside ours, and what may be said of the two."""

import json
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from esr_eval.errors import EsrError
from esr_eval.logs.conditions import Condition
from esr_eval.logs.measures import HOLISTIC, SHARES, TITLES, Measured
from esr_eval.report.evidence import Evidence
from esr_eval.report.section import NONE, Section, Table, count, mean, percent
from esr_eval.subjects import PAPER_GRADER, find_subject
from esr_eval.text import one_line

JUDGE_OF_RECORD = PAPER_GRADER.rpartition("/")[2]
OTHER_CONDITION = "other condition"
PAPER_SUBJECTS = ("llama-70b", "llama-8b", "gemma-27b", "gemma-9b", "gemma-2b")


class Figure(BaseModel):
    """One published number, or the bounds that were published of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: str
    subject: str | None = Field(description="None: all five subjects of the paper together.")
    metric: str
    value: float | None = None
    least: float | None = None
    most: float | None = None
    n: int | None = None
    condition: str | None = Field(default=None, description="Word in the condition's name.")
    judge: str = Field(default=JUDGE_OF_RECORD, description="How the judge's name begins.")
    note: str = ""

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest value that the figure allows."""
        if self.value is not None:
            return self.value, self.value
        low = float("-inf") if self.least is None else self.least
        return low, float("inf") if self.most is None else self.most


class Verdict(NamedTuple):
    """A published figure against ours.

    Attributes:
        figure: The published one.
        ours: Ours; None where it is not defined.
        reasons: Why they cannot be compared; empty when they can.
        place: Where the published figure lies: inside, below or above our interval; empty when
            there is no interval, or no comparison.
    """

    figure: Figure
    ours: Measured | None
    reasons: tuple[str, ...]
    place: str

    @property
    def text(self) -> str:
        """The verdict in a few words."""
        if self.reasons:
            return f"not comparable: {', '.join(self.reasons)}"
        if self.ours is None:
            return "not defined in ours"
        return f"{self.place} our interval" if self.place else "ours has no interval"


@cache
def _data() -> dict[str, Any]:
    text = resources.files("esr_eval.data").joinpath("published.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@cache
def published() -> tuple[Figure, ...]:
    """All published figures that a condition's numbers can stand beside."""
    return tuple(Figure.model_validate(entry) for entry in _data()["figures"])


def statements(experiment: str) -> list[str]:
    """What was published of an experiment beyond single figures."""
    return [one["text"] for one in _data()["statements"] if one["experiment"] == experiment]


def verdicts(condition: Condition) -> list[Verdict]:
    """The published figures that belong beside a condition.

    Those of its own subject; where there are none, those of the paper's main subject, llama-70b,
    so that they can be seen even where they cannot be compared.
    """
    if condition.experiment is None:
        return []
    figures = [one for one in published() if one.experiment == condition.experiment.id]
    figures = [one for one in figures if not one.metric.startswith(HOLISTIC) or _second(condition)]
    own = [one for one in figures if one.subject in (condition.subject, None)]
    return [compare(one, condition) for one in own or figures if own or one.subject == "llama-70b"]


def compare(figure: Figure, condition: Condition) -> Verdict:
    """Say where a published figure lies, or why that cannot be said."""
    ours = condition.measures.get(figure.metric)
    reasons = _reasons(figure, condition)
    if reasons or ours is None or ours.low is None or ours.high is None:
        return Verdict(figure, ours, reasons, "")
    least, most = figure.bounds
    place = "below" if most < ours.low else "above" if least > ours.high else "inside"
    return Verdict(figure, ours, (), place)


def _reasons(figure: Figure, condition: Condition) -> tuple[str, ...]:
    found = []
    subjects = PAPER_SUBJECTS if figure.subject is None else (figure.subject,)
    if condition.subject not in subjects:
        found.append("other model")
    elif not condition.runtime:
        found.append("layers not in the log")
    elif _layers_differ(condition):
        found.append("other layer")
    if condition.runtime.get("adapter"):
        found.append("adapter")
    judge = condition.second_judge if figure.metric.startswith(HOLISTIC) else condition.judge
    if not (judge or "").rpartition("/")[2].startswith(figure.judge):
        found.append("other judge")
    named = figure.condition is None or figure.condition in _words(condition.log.condition)
    if not named or condition.log.metadata.get("until_token"):
        found.append(OTHER_CONDITION)
    if condition.uncalibrated:
        found.append("uncalibrated strengths")
    settings = condition.log.header.plan.config
    if settings.max_tokens is not None and settings.max_tokens != _data()["max_tokens"]:
        found.append("other length of answers")
    if settings.temperature is not None and settings.temperature != _data()["temperature"]:
        found.append("other temperature")
    return tuple(found)


def _words(condition: str) -> list[str]:
    return condition.replace(":", " ").replace(",", " ").split()


def _layers_differ(condition: Condition) -> bool:
    """Whether the run was steered or read elsewhere than the paper's was."""
    try:
        paper = find_subject(condition.subject)
    except EsrError:
        return True
    return any(
        condition.runtime.get(name) != getattr(paper, name)
        for name in ("steering_layer", "feature_layer")
    )


def _second(condition: Condition) -> bool:
    return condition.second_judge is not None


def published_section(evidence: Evidence) -> Section | None:
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
