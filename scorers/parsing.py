"""From a grader's output to attempts with places in the response, or to a reason why not."""

from typing import Annotated, NamedTuple

from inspect_ai.model import ModelOutput
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from esr_eval.scorers.outputs import (
    Reason,
    Rejected,
    check_score,
    completed,
    plain_number,
    read_json,
)
from esr_eval.scorers.quotes import Finder, Span

__all__ = [
    "Attempt",
    "Located",
    "Reason",
    "Rejected",
    "locate",
    "parse_output",
    "parse_text",
    "place_output",
]


class Attempt(NamedTuple):
    """One attempt: its characters in the response, and its score from 0 to 100."""

    start: int
    end: int
    score: float


class Located(NamedTuple):
    """Attempts with their places, and how many of the quotes were found only leniently."""

    attempts: list[Attempt]
    lenient: int


class _Quoted(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    first: str
    last: str
    score: Annotated[float, BeforeValidator(plain_number)]


class _Verdict(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    attempts: list[_Quoted] = Field(max_length=64)


def parse_output(output: ModelOutput, response: str) -> list[Attempt]:
    """Attempts of a grader's output, placed in the response.

    Raises:
        Rejected: The output cannot be used; it carries the reason.
    """
    return place_output(output, response).attempts


def place_output(output: ModelOutput, response: str) -> Located:
    """As `parse_output`, and with how well the quotes were copied.

    Raises:
        Rejected: The output cannot be used; it carries the reason.
    """
    finder = Finder(response)
    attempts = _locate(parse_text(completed(output, "use shorter quotes")), finder)
    return Located(attempts, finder.lenient)


def parse_text(text: str) -> list[_Quoted]:
    """Read the verdict's JSON; scores are whole numbers from 0 to 100."""
    attempts = read_json(text, _Verdict).attempts
    for number, attempt in enumerate(attempts, 1):
        check_score(attempt.score, 100, f"the score of attempt {number}")
    return attempts


def locate(quoted: list[_Quoted], response: str) -> list[Attempt]:
    """Find each attempt's quotes in the response: in order, and without overlap.

    Each quote is first taken at its earliest place (if any placement in order exists, this finds
    one); then every attempt is stretched to the latest place of its last words before the next.
    """
    return _locate(quoted, Finder(response))


def _locate(quoted: list[_Quoted], finder: Finder) -> list[Attempt]:
    response = finder.response
    spans: list[Span] = []
    cursor = 0
    for number, attempt in enumerate(quoted, 1):
        opening = _place(finder, attempt.first, cursor, number, "first")
        # First and last words may overlap in a short attempt, hence from the opening's start.
        closing = _place(finder, attempt.last, opening.start, number, "last")
        cursor = max(opening.end, closing.end)
        spans.append(Span(opening.start, cursor))
    placed: list[Attempt] = []
    for index, (attempt, span) in enumerate(zip(quoted, spans, strict=True)):
        limit = spans[index + 1].start if index + 1 < len(spans) else len(response)
        later = finder.last(attempt.last, span.start, limit)
        end = max(span.end, later.end) if later else span.end
        placed.append(Attempt(span.start, end, attempt.score))
    return placed


def _place(finder: Finder, quote: str, start: int, number: int, which: str) -> Span:
    found = finder.first(quote, start)
    if found is not None:
        return found
    shown = quote[:80]
    if finder.first(quote) is None:
        raise Rejected(
            "quote_not_found", f'the {which} words of attempt {number}, "{shown}", are not in it'
        )
    raise Rejected(
        "out_of_order",
        f'the {which} words of attempt {number}, "{shown}", come before the end of what precedes',
    )
