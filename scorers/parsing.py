"""From a grader's output to attempts with places in the response, or to a reason why not.

Nothing is guessed: an output that cannot be read to the letter is a `Rejected` with its reason.
"""

import json
import math
import re
from typing import Annotated, Any, Literal, NamedTuple

from inspect_ai.model import ModelOutput
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from esr_eval.scorers.quotes import Finder, Span

Reason = Literal[
    "refusal",
    "content_filter",
    "truncated",
    "empty_output",
    "invalid_json",
    "invalid_schema",
    "score_out_of_range",
    "quote_not_found",
    "out_of_order",
    "grader_error",
]
"""Why a verdict could not be used."""


class Attempt(NamedTuple):
    """One attempt: its characters in the response, and its score from 0 to 100."""

    start: int
    end: int
    score: float


class Rejected(Exception):  # noqa: N818 - an outcome that is passed on, not a fault
    """A verdict that could not be used; the message is told to the grader on the retry."""

    def __init__(self, reason: Reason, problem: str) -> None:
        super().__init__(problem)
        self.reason: Reason = reason
        self.problem = problem


def _plain_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("the score must be a number")
    return value


class _Quoted(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    first: str
    last: str
    score: Annotated[float, BeforeValidator(_plain_number)]


class _Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    attempts: list[_Quoted] = Field(max_length=64)


_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", re.DOTALL | re.IGNORECASE)
_REFUSAL = re.compile(
    r"\A\W*(?:i(?:'m| am) (?:sorry|unable|not able)|sorry,|i (?:can(?:'t|not)|won't|must decline)|"
    r"i apologi[sz]e|as an ai\b)",
    re.IGNORECASE,
)


def parse_output(output: ModelOutput, response: str) -> list[Attempt]:
    """Attempts of a grader's output, placed in the response.

    Raises:
        Rejected: The output cannot be used; it carries the reason.
    """
    if output.error:
        raise Rejected("grader_error", output.error)
    if output.stop_reason == "content_filter":
        raise Rejected("content_filter", "the provider's content filter stopped the answer")
    if output.stop_reason in ("max_tokens", "model_length"):
        raise Rejected("truncated", "the answer was cut off: use shorter quotes")
    return locate(parse_text(output.completion), response)


def parse_text(text: str) -> list[_Quoted]:
    """Read the verdict's JSON, which may stand in one code fence but among no other words."""
    text = text.strip()
    if not text:
        raise Rejected("empty_output", "the answer was empty")
    fenced = _FENCED.match(text)
    try:
        data = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        if _REFUSAL.match(text.translate({0x2019: "'"})):
            raise Rejected("refusal", "the grader declined to grade") from None
        raise Rejected(
            "invalid_json", "the answer was not one JSON object and nothing else"
        ) from None
    try:
        attempts = _Verdict.model_validate(data).attempts
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:60]
        raise Rejected("invalid_schema", f"at {where or 'the top'}: {first['msg'][:120]}") from None
    for number, attempt in enumerate(attempts, 1):
        if not (math.isfinite(attempt.score) and 0 <= attempt.score <= 100):
            raise Rejected("score_out_of_range", f"the score of attempt {number} is not in 0-100")
    return attempts


def locate(quoted: list[_Quoted], response: str) -> list[Attempt]:
    """Find each attempt's quotes in the response: in order, and without overlap.

    Each quote is first taken at its earliest place (if any placement in order exists, this finds
    one); then every attempt is stretched to the latest place of its last words before the next.
    """
    finder = Finder(response)
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
