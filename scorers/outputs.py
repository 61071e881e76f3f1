"""From a judge's output to checked data, or to a reason why not, whatever the protocol.

Nothing is guessed: an output that cannot be read to the letter is a `Rejected` with its reason.
"""

import json
import re
from typing import Any, Literal, TypeVar

from inspect_ai.model import ModelOutput
from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)

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
    "incomplete",
    "grader_error",
]
"""Why a verdict could not be used."""


class Rejected(Exception):  # noqa: N818 - an outcome that is passed on, not a fault
    """A verdict that could not be used; the message is told to the grader on the retry."""

    def __init__(self, reason: Reason, problem: str) -> None:
        super().__init__(problem)
        self.reason: Reason = reason
        self.problem = problem


_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", re.DOTALL | re.IGNORECASE)
_REFUSAL = re.compile(
    r"\A\W*(?:i(?:'m| am) (?:sorry|unable|not able)|sorry,|i (?:can(?:'t|not)|won't|must decline)|"
    r"i apologi[sz]e|as an ai\b)",
    re.IGNORECASE,
)


def plain_number(value: Any) -> Any:
    """For a `BeforeValidator`: numbers only, where pydantic would take true and "7" as well."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("the score must be a number")
    return value


def completed(output: ModelOutput, advice: str = "answer more briefly") -> str:
    """The text of an output that ended of its own accord.

    Args:
        output: What the judge said.
        advice: What would have kept the answer within its limit.

    Raises:
        Rejected: It did not.
    """
    if output.error:
        raise Rejected("grader_error", output.error)
    if output.stop_reason == "content_filter":
        raise Rejected("content_filter", "the provider's content filter stopped the answer")
    if output.stop_reason in ("max_tokens", "model_length"):
        raise Rejected("truncated", f"the answer was cut off: {advice}")
    return output.completion


def read_json(text: str, form: type[M]) -> M:
    """Read a judge's JSON, which may stand in one code fence but among no other words.

    Raises:
        Rejected: It is no JSON, or not of this form.
    """
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
        return form.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:60]
        raise Rejected("invalid_schema", f"at {where or 'the top'}: {first['msg'][:120]}") from None
