"""Published figures beside ours, and what may be said of the two."""

import json
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from esr_eval.errors import EsrError
from esr_eval.logs.conditions import Condition
from esr_eval.logs.measures import HOLISTIC, Measured
from esr_eval.subjects import PAPER_GRADER, find_subject

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
