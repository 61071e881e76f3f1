"""Find the JSON in a judge's reply, whatever stands around it, and mend what judges often break.

Work is linear in the reply's length, and hostile nesting ends in `Broken`, never in an exception.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

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


def _escaped(found: re.Match[str]) -> str:
    if found["valid"]:
        return found[0]
    return "'" if found["quote"] else r"\\"


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
