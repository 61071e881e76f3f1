"""What a section of the report is made of, before it becomes HTML and CSV."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import pandas as pd

from esr_eval.errors import EsrError
from esr_eval.logs.conditions import Condition
from esr_eval.logs.stored import StoredLog, without_place
from esr_eval.report.comparisons import Compared
from esr_eval.text import one_line


@dataclass(frozen=True)
class Evidence:
    """All that sections are made from: the logs, their conditions, and how these compare."""

    logs: list[StoredLog]
    conditions: list[Condition]
    compared: list[Compared]

    def of(self, *experiments: str) -> list[Condition]:
        """The conditions of some experiments."""
        return [
            one for one in self.conditions if one.experiment and one.experiment.id in experiments
        ]

    def logs_of(self, experiment: str) -> list[StoredLog]:
        """The logs of an experiment, those without trials among them."""
        return [log for log in self.logs if log.experiment and log.experiment.id == experiment]


class Table(NamedTuple):
    """A table to be read; its first column names the row.

    Attributes:
        caption: What it shows.
        columns: Heads.
        rows: Texts, one for each column.
        notes: How to read it.
    """

    caption: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: str = ""
    kind: str = "table"


class Picture(NamedTuple):
    """A figure: an SVG as data, and what it shows for those who do not see it.

    Wide ones take the page's width, and scroll in a box of their own where that is too narrow.
    """

    source: str
    alt: str
    caption: str
    wide: bool = False


class Pictures(NamedTuple):
    """Figures side by side."""

    pictures: list[Picture]
    kind: str = "pictures"


class Paragraph(NamedTuple):
    """A computed sentence or two."""

    text: str
    kind: str = "paragraph"


class Block(NamedTuple):
    """Anything else, shown by the template macro of its name."""

    kind: str
    data: Any


Part: TypeAlias = Table | Pictures | Paragraph | Block


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        id: Anchor in the page.
        title: Its heading.
        question: What it answers.
        answers: What came out, as computed sentences.
        parts: Tables, figures and further text.
        tables: Numbers for CSV files, by the files' names.
        experiment: Id of the experiment that it alone reports on.
    """

    id: str
    title: str
    question: str = ""
    answers: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    experiment: str | None = None


def unusable(log: StoredLog, error: EsrError) -> str:
    """What is told in place of an answer where a log's activations or verdicts cannot be used."""
    return f"{one_line(log.condition)}: {one_line(without_place(error.message, log.path), 300)}"
