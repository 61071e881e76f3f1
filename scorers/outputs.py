"""From a judge's output to checked data, or to a reason why not, whatever the protocol.

A reply is read generously where there is one way to read it, and nothing is guessed: what is
missing, of another scale, or there twice with two meanings is a `Rejected` with its reason.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, Literal, TypeVar, get_args, get_origin

from inspect_ai.model import ModelOutput
from pydantic import BaseModel, ValidationError

from esr_eval.scorers.replies import Broken, find_json, without_thinking
from esr_eval.scorers.secrets import without_secrets

M = TypeVar("M", bound=BaseModel)

Reason = Literal[
    "refusal",
    "content_filter",
    "truncated",
    "empty_output",
    "invalid_json",
    "invalid_schema",
    "ambiguous",
    "score_out_of_range",
    "score_not_whole",
    "quote_not_found",
    "out_of_order",
    "incomplete",
    "grader_error",
]
"""Why a verdict could not be used."""

REASONS: tuple[Reason, ...] = get_args(Reason)
"""All of them."""


class Rejected(Exception):  # noqa: N818 - an outcome that is passed on, not a fault
    """A verdict that could not be used; the message is told to the grader on the retry."""

    def __init__(self, reason: Reason, problem: str) -> None:
        super().__init__(problem)
        self.reason: Reason = reason
        self.problem = problem


_HUGE = 10**9
_NO_JSON = "the answer was not one JSON object and nothing else"
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
    # JSON's whole numbers have no bound, and floats have; -0 is 0.
    return value + 0 if abs(value) < _HUGE else math.inf


def check_score(score: float, top: int, what: str) -> None:
    """Refuse a score that is not on the scale of whole numbers from 0 to `top`.

    85.0 and 1e1 are whole numbers; 0.85 and 7.5 are not, and are of another scale.

    Args:
        score: What the judge gave.
        top: The upper end of the scale that it was asked for.
        what: What the score is called when that is told.

    Raises:
        Rejected: It is not.
    """
    if not 0 <= score <= top:
        raise Rejected("score_out_of_range", f"{what} is not in 0-{top}")
    if score != int(score):
        raise Rejected(
            "score_not_whole", f"{what} is {score:g}, and not a whole number from 0 to {top}"
        )


def completed(output: ModelOutput, advice: str = "answer more briefly") -> str:
    """The text of an output that ended of its own accord.

    Args:
        output: What the judge said.
        advice: What would have kept the answer within its limit.

    Raises:
        Rejected: It did not.
    """
    if output.error:
        raise Rejected("grader_error", without_secrets(output.error))
    if output.stop_reason == "content_filter":
        raise Rejected("content_filter", "the provider's content filter stopped the answer")
    if output.stop_reason in ("max_tokens", "model_length"):
        raise Rejected("truncated", f"the answer was cut off: {advice}")
    return output.completion


def read_json(text: str, form: type[M]) -> M:
    """Read a judge's JSON.

    It is the whole reply, or a code fence's, as a rule. If not, it is looked for: after tags of
    thinking, among other words, and mended where that has one meaning (a trailing comma, line ends
    and backslashes that are not escaped). A bare list stands for the form's only field; fields that
    nobody asked for are passed over. The same answer twice is one answer; two that differ, or one
    beside another that is broken, are `ambiguous`, for a response that is quoted may hold one.

    Raises:
        Rejected: There is no such JSON, or not of this form.
    """
    text = text.strip().strip("\ufeff").strip()
    if not text:
        raise Rejected("empty_output", "the answer was empty")
    answered = without_thinking(text).strip()
    for whole in dict.fromkeys((text, answered)):
        fenced = _FENCED.match(whole)
        try:
            data = json.loads(fenced[1] if fenced else whole)
        except (ValueError, RecursionError):
            continue
        return _whole(data, form)
    found: list[M] = []
    problems: list[Rejected] = []
    for value in find_json(answered):
        try:
            found += _answers(value, form)
        except Rejected as why:
            problems.append(why)
    if found and (problems or any(other != found[0] for other in found)):
        raise Rejected("ambiguous", "the answer held more than one JSON object of this form")
    if found:
        return found[0]
    if problems:
        raise problems[0]
    if _REFUSAL.match(answered.translate({0x2019: "'"})):
        raise Rejected("refusal", "the grader declined to grade")
    raise Rejected("invalid_json", _NO_JSON)


def _whole(data: Any, form: type[M]) -> M:
    """Data that is the whole reply: whatever it is, it is meant as the answer."""
    if data == [] and (field := _list_of(form)):
        data = {field: []}
    found = list(_answers(data, form))
    return found[0] if len(found) == 1 else _validated(data, form)


def _answers(value: Any, form: type[M]) -> Iterator[M]:
    """The answers in one piece of JSON, which may be wrapped once; none where it is about else."""
    fields = form.model_fields.keys()
    if isinstance(value, Broken):
        listed = value.text.startswith("[") and _list_of(form) is not None
        if not value.echo and (listed or any(f'"{field}"' in value.text for field in fields)):
            raise Rejected("invalid_json", _NO_JSON)
    elif isinstance(value, dict) and fields & value.keys():
        yield _validated(value, form)
    elif isinstance(value, dict):
        for inner in value.values():
            if isinstance(inner, dict) and fields & inner.keys():
                yield _validated(inner, form)
    elif isinstance(value, list) and len(value) == 1 and _has_any(value[0], fields):
        yield _validated(value[0], form)
    elif isinstance(value, list) and value and (field := _list_of(form)):
        yield _validated({field: value}, form)


def _has_any(value: Any, fields: Any) -> bool:
    return isinstance(value, dict) and bool(fields & value.keys())


def _list_of(form: type[BaseModel]) -> str | None:
    """The only field of a form that is a list and nothing else."""
    [(name, field), *more] = form.model_fields.items()
    return name if not more and get_origin(field.annotation) is list else None


def _validated(data: Any, form: type[M]) -> M:
    try:
        return form.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:60]
        raise Rejected("invalid_schema", f"at {where or 'the top'}: {first['msg'][:120]}") from None
