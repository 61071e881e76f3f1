"""One table for the terminal and for the report's page, from the same cells."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeAlias

from rich.table import Table as RichTable
from rich.text import Text

from esr_eval.report.text import NONE


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

    def __rich__(self) -> RichTable:
        """The table as the terminal shows it: what is too wide is folded, never cut."""
        table = RichTable(
            title=self.title,
            caption=self.notes or None,
            show_lines=any(isinstance(cell, str) and "\n" in cell for r in self.rows for cell in r),
        )
        for head, align, whole in self.heads:
            overflow: Literal["ellipsis", "fold"] = "ellipsis" if whole else "fold"
            table.add_column(head, justify=align, no_wrap=whole, overflow=overflow)
        for row in self.rows:
            if row:
                cells = (_text(cell, "-", "") for cell in row)
                table.add_row(
                    *(Text(c, "bold red") if isinstance(c, Alarm) else c for c in cells),
                    style="dim" if self.faint else None,
                )
            else:
                table.add_section()
        return table


def _text(cell: Cell, undefined: str, thousands: str) -> str:
    if cell is None:
        return undefined
    return cell if isinstance(cell, str) else f"{cell:{thousands}}"
