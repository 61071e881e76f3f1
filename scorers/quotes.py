"""Find a grader's quotes again in the response that it judged.

Graders copy almost letter by letter: they straighten quotation marks, drop markdown and collapse
white space. So a quote is looked for as it stands, and then in a reduced form of both texts that
keeps, for every character, where it stood.
"""

import re
import unicodedata
from bisect import bisect_left
from typing import NamedTuple

_SAME = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛`´ʼ′", "'"),
        **dict.fromkeys("“”„‟«»″", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
    }
)
_MARKDOWN = frozenset("*_#~>")
_ELLIPSIS = re.compile(r"^(?:\.{3,}|…)\s*|\s*(?:\.{3,}|…)$")


class Span(NamedTuple):
    """Characters `start` up to `end` (not included) of the response."""

    start: int
    end: int


class Reduced(NamedTuple):
    """A text without what graders change, and where each character came from."""

    text: str
    origin: list[int]


def reduce(text: str) -> Reduced:
    """Fold case, quotation marks and dashes; drop white space, markdown and invisible marks."""
    if text.isascii():
        pairs = [
            (char, index)
            for index, char in enumerate(text.lower())
            if char > " " and char != "\x7f" and char not in _MARKDOWN
        ]
        folded = "".join(char for char, _ in pairs).translate(_SAME)
        return Reduced(folded, [index for _, index in pairs])
    chars: list[str] = []
    origin: list[int] = []
    for index, char in enumerate(text):
        if char.isspace() or char in _MARKDOWN or unicodedata.category(char) in ("Cc", "Cf"):
            continue
        for folded_char in unicodedata.normalize("NFKC", char.translate(_SAME)).casefold():
            if not folded_char.isspace():
                chars.append(folded_char)
                origin.append(index)
    return Reduced("".join(chars), origin)


class Finder:
    """Search in one response; the reduced form is made once, and only when it is needed."""

    def __init__(self, response: str) -> None:
        self.response = response
        self._reduced: Reduced | None = None

    def first(self, quote: str, start: int = 0) -> Span | None:
        """The earliest place of the quote at or after `start`."""
        return self._find(quote, start, len(self.response), last=False)

    def last(self, quote: str, start: int, end: int) -> Span | None:
        """The latest place of the quote between `start` and `end`."""
        return self._find(quote, start, end, last=True)

    def _find(self, quote: str, start: int, end: int, *, last: bool) -> Span | None:
        quote = _ELLIPSIS.sub("", quote.strip()) or quote.strip()
        needle = reduce(quote).text
        if not needle:
            return None
        search = self.response.rfind if last else self.response.find
        at = search(quote, start, end)
        if at >= 0:
            return Span(at, at + len(quote))
        if self._reduced is None:
            self._reduced = reduce(self.response)
        text, origin = self._reduced
        low, high = _bounds(origin, start, end)
        at = (text.rfind if last else text.find)(needle, low, high)
        if at < 0:
            return None
        return Span(origin[at], origin[at + len(needle) - 1] + 1)


def _bounds(origin: list[int], start: int, end: int) -> tuple[int, int]:
    return bisect_left(origin, start), bisect_left(origin, end)
