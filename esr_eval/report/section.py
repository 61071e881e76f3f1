"""What is shown, on the page and the terminal: tables, numbers in words, figures, sections."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table as RichTable
from rich.text import Text

from esr_eval.text import harmless

if TYPE_CHECKING:
    import pandas as pd

    from esr_eval.logs.measures import Measured
    from esr_eval.report.dots import Dots


class Bounded(Protocol):
    """A number with its interval, whose bounds are None or NaN where there is none."""

    @property
    def value(self) -> float: ...  # noqa: D102
    @property
    def low(self) -> float | None: ...  # noqa: D102
    @property
    def high(self) -> float | None: ...  # noqa: D102


NONE = "–"


def with_interval(found: Bounded | None, form: str, unit: str = "", scale: float = 1) -> str:
    """A number and, where there is one, its interval, such as `7.4 % (6.6 to 8.3)`.

    Parentheses, since rich reads square brackets as markup.

    Args:
        found: The number; None where it is not defined.
        form: How it and its bounds are formatted.
        unit: What stands behind the number.
        scale: What all three are multiplied by, 100 for percent.
    """
    if found is None:
        return NONE
    low, high = found.low, found.high
    text = f"{scale * found.value:{form}}{unit}"
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return text
    return f"{text} ({scale * low:{form}} to {scale * high:{form}})"


def percent(rate: Bounded | None) -> str:
    """A rate in percent, such as `7.4 % (6.6 to 8.3)`."""
    return with_interval(rate, ".1f", " %", 100)


def points(change: Bounded | None) -> str:
    """A difference of rates, such as `+19.8 points (9.4 to 32.3)`."""
    return with_interval(change, "+.1f", " points", 100)


def mean(score: Bounded | None) -> str:
    """A mean score, such as `26.3 (25.1 to 27.5)`."""
    return with_interval(score, ".1f")


def trials(measured: "Measured | None") -> str:
    """How many trials a number was taken over."""
    return f"{measured.n:,}" if measured else "0"


def p_value(value: float | None) -> str:
    """A p value, never rounded to 0."""
    if value is None or math.isnan(value):
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def certainty(value: float | None) -> str:
    """A corrected p value as a phrase: `p = 0.012`, `p < 0.001`, or that there is no test."""
    told = p_value(value)
    return "no test" if told == NONE else f"p {told if told.startswith('<') else f'= {told}'}"


def count(number: int, noun: str) -> str:
    """A number and what it counts: `1 trial`, `2,400 trials`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class Alarm(str):
    """A text that has to be seen: red on the terminal."""


Cell: TypeAlias = str | int | None
"""A text, a count, or a number that is not defined."""
RULE: tuple[Cell, ...] = ()
"""A row that sets off those above from those below, where there is room for a rule."""


class Column(NamedTuple):
    """The head of a column, and how its cells stand.

    Attributes:
        head: Its name.
        align: Texts stand left, numbers right.
        whole: Cells are never broken over lines.
    """

    head: str
    align: Literal["left", "right"] = "right"
    whole: bool = False


@dataclass(frozen=True)
class Table:
    """What a table shows; printed by `Terminal.print`, put on the page by its template.

    Attributes:
        title: What it shows.
        columns: Heads; those given by name alone stand right, but for the first.
        rows: Cells, one for each column, or `RULE`; the first cell names the row.
        notes: How to read it.
        faint: The rows are not what was looked for, only what comes closest.
    """

    title: str
    columns: Sequence[str | Column]
    rows: Sequence[tuple[Cell, ...]]
    notes: str = ""
    faint: bool = False
    kind: ClassVar[str] = "table"

    @property
    def heads(self) -> list[Column]:
        """The columns in full."""
        return [
            Column(one, "right" if at else "left") if isinstance(one, str) else one
            for at, one in enumerate(self.columns)
        ]

    def texts(self) -> Iterator[list[str]]:
        """The rows as the page shows them."""
        for row in self.rows:
            if row:
                yield [_text(cell, NONE, ",") for cell in row]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        """The table as the terminal shows it: no word is cut, and no number broken over lines.

        Where the terminal is too narrow, intervals stand below their numbers; where it is still
        too narrow, every row is a list of its own.
        """
        for stacked in (False, True):
            cells = [self._cells(row, stacked) for row in self.rows]
            widths = self._widths(cells, options.max_width)
            if widths is not None:
                yield self._drawn(cells, widths)
                return
        yield from self._listed()

    def _cells(self, row: tuple[Cell, ...], stacked: bool) -> list[str]:
        texts = [harmless(_text(cell, "-", "")) for cell in row]
        return [_stacked(text) for text in texts] if stacked else texts

    def _widths(self, rows: Sequence[list[str]], room: int) -> list[int] | None:
        """Width of each column; None where words or numbers would have to be broken."""
        least, most = [], []
        for at, (head, align, whole) in enumerate(self.heads):
            cells = [row[at] for row in rows if row]
            lines = [line for cell in cells for line in cell.splitlines()]
            words = [word for line in lines for word in line.split()]
            unbroken = lines if align == "right" or whole else words
            longest = max(map(cell_len, unbroken), default=0)
            longest = longest if align == "right" or whole else min(longest, LONGEST_WORD)
            least.append(max([longest, *map(cell_len, head.split())], default=0))
            most.append(max([least[-1], cell_len(head), *map(cell_len, lines)]))
        left = room - sum(least) - 3 * len(least) - 1
        if left < 0:
            return None
        for at in sorted(range(len(least)), key=lambda at: self.heads[at].align != "left"):
            more = min(left, most[at] - least[at])
            least[at] += more
            left -= more
        return least

    def _drawn(self, rows: Sequence[list[str]], widths: Sequence[int]) -> RichTable:
        table = RichTable(
            title=self.title,
            caption=self.notes or None,
            show_lines=any("\n" in cell for row in rows for cell in row),
        )
        for (head, align, _), width in zip(self.heads, widths, strict=True):
            table.add_column(head, justify=align, overflow="fold", width=width)
        for row, texts in zip(self.rows, rows, strict=True):
            if row:
                cells = zip(row, texts, strict=True)
                table.add_row(
                    *(Text(t, "bold red") if isinstance(c, Alarm) else t for c, t in cells),
                    style="dim" if self.faint else None,
                )
            else:
                table.add_section()
        return table

    def _listed(self) -> Iterator[Any]:
        yield Text(harmless(self.title), "bold")
        first, *others = self.heads
        for row in self.rows:
            if not row:
                continue
            name, *texts = self._cells(row, False)
            yield ""
            yield Text(": ".join(filter(None, (first.head, name))), "bold")
            grid = RichTable.grid(padding=(0, 2))
            grid.add_column(overflow="fold")
            grid.add_column(overflow="fold")
            for column, cell, text in zip(others, row[1:], texts, strict=True):
                shown = Text(text, "bold red") if isinstance(cell, Alarm) else text
                grid.add_row(f"  {harmless(column.head)}", shown)
            yield grid
        if self.notes:
            yield ""
            yield Text(harmless(self.notes), "italic")


LONGEST_WORD = 40
"""Of a text that is not to be broken; a path or a name beyond it is folded."""
_INTERVAL = re.compile(r"(.*\S) \(((?:[+-]?[\d.,]+)) to ((?:[+-]?[\d.,]+))\)(.*)")


def _stacked(text: str) -> str:
    """A number with its interval on the line below."""
    found = _INTERVAL.fullmatch(text)
    if found is None:
        return text
    value, low, high, rest = found.groups()
    signed = low[0] in "+-" or high[0] in "+-"
    return f"{value}{rest}\n{low} to {high}" if signed else f"{value}{rest}\n{low}–{high}"


def _text(cell: Cell, undefined: str, thousands: str) -> str:
    if cell is None:
        return undefined
    return cell if isinstance(cell, str) else f"{cell:{thousands}}"


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


Part: TypeAlias = "Table | Pictures | Paragraph | Block | Dots"


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
        verdict: What came out, in one line; the first answer where it is not given.
        figures: Shown at once, where parts are folded.
    """

    id: str
    title: str
    question: str = ""
    answers: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    tables: dict[str, "pd.DataFrame"] = field(default_factory=dict)
    experiment: str | None = None
    verdict: str = ""
    figures: list[Part] = field(default_factory=list)
