"""Numbers in words, and text from models as runs of plain and of otherwise invisible characters."""

import math
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from esr_eval.analysis.intervals import with_interval
from esr_eval.analysis.report.measures import Measured

NONE = "–"
_MOST_MARKS = 3
"""Combining marks left on one character; letters of living languages carry no more."""


class Characters(NamedTuple):
    """A stretch of text; a special one names characters that would not show, or would misplace."""

    text: str
    special: bool = False


def percent(measured: Measured | None) -> str:
    """A rate in percent, such as `7.4 % (6.6 to 8.3)`."""
    if measured is None:
        return NONE
    return with_interval(measured.value, measured.low, measured.high, ".1f", " %", 100)


def mean(measured: Measured | None) -> str:
    """A mean score, such as `26.3 (25.1 to 27.5)`."""
    if measured is None:
        return NONE
    return with_interval(measured.value, measured.low, measured.high, ".1f")


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


def shown(text: str) -> list[Characters]:
    """Text from a model, with what cannot be seen or would reorder the page spelled out.

    Control, formatting (right-to-left marks among them), private and lone surrogate characters
    become their code points, and piles of combining marks are told by their number.
    """
    runs: list[Characters] = []
    for one in _pieces(text):
        if runs and runs[-1].special == one.special and not one.special:
            runs[-1] = Characters(runs[-1].text + one.text)
        else:
            runs.append(one)
    return runs


def one_line(text: str, limit: int = 120) -> str:
    """The same for names and labels: one bounded line without any special character."""
    line = " ".join("".join(run.text for run in shown(text[: 4 * limit])).split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def _pieces(text: str) -> Iterator[Characters]:
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        if category in ("Mn", "Me"):
            marks += 1
            if marks <= _MOST_MARKS:
                yield Characters(character)
            continue
        if marks > _MOST_MARKS:
            yield Characters(f"[+{marks - _MOST_MARKS} marks]", True)
        marks = 0
        if character in "\n\t" or category not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            yield Characters(character)
        else:
            yield Characters(f"[U+{ord(character):04X}]", True)
    if marks > _MOST_MARKS:
        yield Characters(f"[+{marks - _MOST_MARKS} marks]", True)
