"""The ways out: on the terminal names and labels are text, in a CSV nothing is a formula."""

import csv
import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from esr_eval._util.files import write_whole
from esr_eval.errors import EsrError
from esr_eval.text import harmless

if TYPE_CHECKING:
    import pandas as pd


def tell(text: object, *, err: bool = False) -> None:
    """Print a sentence on the terminal.

    Args:
        text: What is said.
        err: To standard error: what is no result.
    """
    click.echo(harmless(str(text)), err=err)


def note(text: object) -> None:
    """Print a remark, such as what was left out, where it does not mix with results."""
    tell(text, err=True)


@contextmanager
def aside(wanted: bool = True) -> Iterator[None]:
    """What is printed within goes where remarks go: Inspect greets on standard output.

    Args:
        wanted: False leaves it where it is.
    """
    if wanted:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield


def tell_frame(frame: "pd.DataFrame") -> None:
    """Print a data frame as JSON, for machines: a list of objects, undefined numbers as null."""
    # ASCII alone: whatever names hold, a terminal shows it and does not obey.
    click.echo(frame.to_json(orient="records", indent=2, force_ascii=True))


class Terminal(Console):
    """A rich console for which text is text: no markup, no emoji codes, no control characters.

    Styles are given as `rich.text.Text`, or as arguments.
    """

    def __init__(self, **settings: Any) -> None:
        """Take the settings of `rich.console.Console`."""
        super().__init__(**settings | {"markup": False, "emoji": False})

    def render_str(self, text: str, *args: Any, **settings: Any) -> Text:
        """Every text on its way out passes here: cells, titles, captions, lines."""
        return super().render_str(
            harmless(text), *args, **settings | {"markup": False, "emoji": False}
        )


_FORMULA = re.compile(r"[\t\r\n]|[\s\x00-\x1f\u200b-\u200f\u2028-\u202e\ufeff]*[=+\-@＝＋－＠]")
"""How a text begins that a spreadsheet takes for a formula."""
_QUOTED = re.compile(rf"'+(?:{_FORMULA.pattern})")


_END = "\r\n"
"""Of a line, as RFC 4180 has it; with another one, Python's writer leaves a lone \\r unquoted, at
which spreadsheets begin a new line."""


def cell(value: object) -> object:
    """A cell of a CSV: text that a spreadsheet would run gets an apostrophe before it."""
    runs = isinstance(value, str) and (_FORMULA.match(value) or _QUOTED.match(value))
    return f"'{value}" if runs else value


def uncell(text: str) -> str:
    """What `cell` was given, from a CSV that is read again."""
    return text[1:] if text.startswith("'") and _QUOTED.match(text) else text


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows, the first of them the heads, as a CSV that no spreadsheet runs.

    Raises:
        EsrError: The file cannot be written.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=_END).writerows(map(cell, row) for row in rows)
    try:
        write_whole(path, text.getvalue().encode(errors="replace"))
    except OSError as error:
        raise EsrError(f"{path} cannot be written: {error.strerror}.") from None


def write_frame(path: Path, frame: "pd.DataFrame") -> None:
    """The same of a data frame.

    Raises:
        EsrError: The file cannot be written.
    """
    try:
        frame.map(cell).to_csv(path, index=False, lineterminator=_END, errors="replace")
    except OSError as error:
        raise EsrError(f"{path} cannot be written: {error.strerror}.") from None
