"""From a judge's reply to checked data, or to a reason why not, whatever the protocol.

A reply is read generously where there is one way to read it: its JSON is found among other text,
and mended where that has one meaning. Nothing is guessed: what is missing, of another scale, or
there twice with two meanings is a `Rejected` with its reason. Work is linear in the reply's length,
and hostile nesting ends in `Broken`, never in an exception.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from inspect_ai.model import ModelOutput
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from esr_eval.scorers.cleaning import without_secrets
from esr_eval.scorers.quotes import Finder, Span

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

_THINKING = re.compile(
    r"[<\[◁](?P<close>/?)(?:\w{1,12}:)?(?P<name>think(?:ing)?|thoughts?|reason(?:ing)?|analysis|"
    r"reflection|scratchpad)[>\]▷]"
    r"|(?P<final><\|channel\|>final<\|message\|>)",
    re.IGNORECASE,
)
_STARTS = re.compile(r'\{(?=\s*")|\[(?=\s*\{)')
# Strings end at the text's end at the latest: so no search begins twice inside of one.
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)'
_BRACKET = re.compile(rf"{_STRING}|[\[\]{{}}]", re.DOTALL)
_MENDABLE = re.compile(rf"{_STRING}|,(?=\s*[\]}}])|//[^\n]*", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:(?P<valid>[\"\\/bfnrt]|u[0-9a-fA-F]{4})|(?P<quote>')|)")
_PLACEHOLDERS = ("<", "...", "…")
# Line ends and tabs inside of strings are taken as they are.
_DECODER = json.JSONDecoder(strict=False)


def _plain_number(value: Any) -> Any:
    """Numbers only, where pydantic would take true and "7" as well."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("the score must be a number")
    # JSON's whole numbers have no bound, and floats have; -0 is 0.
    return value + 0 if abs(value) < _HUGE else math.inf


Number = Annotated[float, BeforeValidator(_plain_number)]
"""Field of a reply that is a number, of whatever scale."""


class Reply(BaseModel):
    """The JSON that a protocol asks for; fields that nobody asked for are passed over."""

    model_config = ConfigDict(extra="ignore", strict=True)


R = TypeVar("R", bound=Reply)


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


def place_quote(finder: Finder, quote: str, start: int, what: str, misplaced: str) -> Span:
    """The earliest place of a quote at or after `start`.

    Args:
        finder: Search in the response.
        quote: What the judge copied.
        start: Where the place begins at the earliest.
        what: What the quote is called when it has no such place.
        misplaced: What is wrong with it when it stands only before `start`.

    Raises:
        Rejected: It has no such place.
    """
    place = finder.first(quote, start)
    if place is not None:
        return place
    what = f'{what}, "{quote[:80]}",'
    if finder.first(quote) is None:
        raise Rejected("quote_not_found", f"{what} are not in it")
    raise Rejected("out_of_order", f"{what} {misplaced}")


def completed(output: ModelOutput, advice: str = "answer more briefly") -> str:
    """The text of an output that ended of its own accord.

    Args:
        output: What the judge said.
        advice: What would have kept the reply within its limit.

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


def read_json(text: str, form: type[R]) -> R:
    """Read a judge's JSON.

    It is the whole reply, or a code fence's, as a rule. If not, it is looked for: after tags of
    thinking, among other words, and mended where that has one meaning (a trailing comma, line ends
    and backslashes that are not escaped). A bare list stands for the form's only field; fields that
    nobody asked for are passed over. The same twice is one reply; two that differ, or one
    beside another that is broken, are `ambiguous`, for a response that is quoted may hold one.

    Raises:
        Rejected: There is no such JSON, or not of this form.
    """
    text = text.strip().strip("\ufeff").strip()
    if not text:
        raise Rejected("empty_output", "the answer was empty")
    said = without_thinking(text).strip()
    for whole in dict.fromkeys((text, said)):
        fenced = _FENCED.match(whole)
        try:
            data = json.loads(fenced[1] if fenced else whole)
        except (ValueError, RecursionError):
            continue
        return _whole(data, form)
    replies: list[R] = []
    problems: list[Rejected] = []
    for value in find_json(said):
        try:
            replies += _replies_in(value, form)
        except Rejected as why:
            problems.append(why)
    if replies and (problems or any(other != replies[0] for other in replies)):
        raise Rejected("ambiguous", "the answer held more than one JSON object of this form")
    if replies:
        return replies[0]
    if problems:
        raise problems[0]
    if _REFUSAL.match(said.translate({0x2019: "'"})):
        raise Rejected("refusal", "the grader declined to grade")
    raise Rejected("invalid_json", _NO_JSON)


def _whole(data: Any, form: type[R]) -> R:
    """Data that is the whole reply: whatever it is, it is meant as the form."""
    if data == [] and (field := _list_of(form)):
        data = {field: []}
    replies = list(_replies_in(data, form))
    return replies[0] if len(replies) == 1 else _validated(data, form)


def _replies_in(value: Any, form: type[R]) -> Iterator[R]:
    """The replies in one piece of JSON, which may be wrapped once; none where it is about else."""
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


def _list_of(form: type[Reply]) -> str | None:
    """The only field of a form that is a list and nothing else."""
    [(name, field), *more] = form.model_fields.items()
    return name if not more and get_origin(field.annotation) is list else None


def _validated(data: Any, form: type[R]) -> R:
    try:
        return form.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:60]
        raise Rejected("invalid_schema", f"at {where or 'the top'}: {first['msg'][:120]}") from None


class Broken(NamedTuple):
    """JSON that was begun and cannot be read; `echo` where it only repeats the form asked for."""

    text: str
    echo: bool


def without_thinking(reply: str) -> str:
    """A reply without what its tags call thinking.

    A closing tag without an opening one ends thinking that the prompt began; an opening tag
    without a closing one is only a word.
    """
    kept: list[str] = []
    at = 0
    opened: re.Match[str] | None = None
    for tag in _THINKING.finditer(reply):
        if tag["final"] or (tag["close"] and opened is None):
            kept, at, opened = [], tag.end(), None
        elif not tag["close"]:
            opened = opened or tag
        elif opened is not None and tag["name"].lower() == opened["name"].lower():
            kept.append(reply[at : opened.start()])
            at, opened = tag.end(), None
    return "".join([*kept, reply[at:]])


def find_json(text: str) -> Iterator[Any | Broken]:
    """Every outermost JSON object, and list of objects, among other text, in order.

    Nothing inside of what is broken is read by itself: a response that a judge quotes without
    escaping it could pose as the judge's own words there.
    """
    at = 0
    while (start := _STARTS.search(text, at)) is not None:
        try:
            value, at = _DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError) as error:
            at = _closing(text, start.start())
            broken = text[start.start() : at]
            where = getattr(error, "pos", len(text))
            try:
                value = _DECODER.decode(mend(broken))
            except (ValueError, RecursionError):
                value = Broken(broken, text.startswith(_PLACEHOLDERS, where))
        yield value


def mend(text: str) -> str:
    r"""JSON without trailing commas and comments, and with other backslashes ("\alpha") escaped."""
    return _MENDABLE.sub(_mended, text)


def _mended(token: re.Match[str]) -> str:
    if not token[0].startswith('"'):
        return ""
    return _ESCAPE.sub(_escaped, token[0])


def _escaped(mark: re.Match[str]) -> str:
    if mark["valid"]:
        return mark[0]
    return "'" if mark["quote"] else r"\\"


def _closing(text: str, start: int) -> int:
    """Where the bracket at `start` is closed, or the text's end."""
    depth = 0
    for token in _BRACKET.finditer(text, start):
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
            if depth == 0:
                return token.end()
    return len(text)
