"""Find a judge's quotes again in the response that it judged.

Judges copy almost letter by letter. A quote is looked for as it stands; then in a reduced form of
both texts without case, white space, markdown and differences of Unicode, that keeps for every
character where it stood; and only when neither is anywhere in the response, more leniently:

- without punctuation (an added full stop, outer quotation marks, dropped backticks or bullets),
- without the numbers of lists ("1. Mix"),
- piece by piece, where an ellipsis stands for words left out.

Lenient places begin and end between words, need three letters or digits, and are counted. Words
that are not in the response, or not in this order, have no place.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

_SAME = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛`´ʼ′", "'"),
        **dict.fromkeys("“”„‟«»″", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
    }
)
_MARKDOWN = frozenset("*_#~>")
_ELLIPSIS = re.compile(
    r"\[\s{0,3}(?:\.{3}|…)\s{0,3}\]|\(\s{0,3}(?:\.{3}|…)\s{0,3}\)|\.{3,}|…|\.(?: \.){2,}"
)
_LIST_MARK = re.compile(
    r"^[ \t>*_#]*(?:[-+•‣◦▪●·–—]|\(?(?:\d{1,3}|[A-Za-z])[.)])[*_]*(?=\s)", re.MULTILINE
)
_KEPT_MARKS = frozenset("%/&@")
"""Punctuation that means something by itself."""
_OTHER_MARKS = frozenset("`^~|$▪●◦■□")
"""Not punctuation in Unicode's eyes, but as easily dropped."""

_PLACES = 1000
"""Places of a quote that are looked at before it counts as not found."""
_LONGEST = 2000
"""Characters of a quote that is looked for leniently; 4 to 8 words were asked for."""
_PIECES = 6
_GAP = 500
"""Characters that one ellipsis may stand for."""
_CHAINS = 64

_CONTROLS = re.compile(
    r"[\b\f\t\r](?=[A-Za-z])|\n(?=(?:u|abla|eq?|ot|eg|i|in|mid|exists|ewline)(?![A-Za-z]))"
)
_COMMANDS = {"\b": r"\b", "\f": r"\f", "\t": r"\t", "\r": r"\r", "\n": r"\n"}


class Span(NamedTuple):
    """Characters `start` up to `end` (not included) of the response."""

    start: int
    end: int


class Reduced(NamedTuple):
    """A text without what graders change, and where each character came from."""

    text: str
    origin: Sequence[int]


def reduce(text: str) -> Reduced:
    """Fold case, Unicode's forms, quotation marks and dashes; drop white space and markdown."""
    if text.isascii():
        pairs = [
            (char, index)
            for index, char in enumerate(text.lower())
            if char > " " and char != "\x7f" and char not in _MARKDOWN
        ]
        folded = "".join(char for char, _ in pairs).translate(_SAME)
        return Reduced(folded, [index for _, index in pairs])
    pairs = [(char, index) for index, whole in enumerate(text) for char in _folded(whole)]
    _order_marks(pairs)
    return Reduced("".join(char for char, _ in pairs), [index for _, index in pairs])


@lru_cache(maxsize=4096)
def _folded(char: str) -> str:
    """What stands for a character in the reduced form: decomposed, as all normal forms can be."""
    variant = "\ufe00" <= char <= "\ufe0f"
    if char in _MARKDOWN or variant or unicodedata.category(char) in ("Cc", "Cf"):
        return ""
    decomposed = unicodedata.normalize("NFKD", char.translate(_SAME)).casefold()
    folded = unicodedata.normalize("NFKD", decomposed).translate(_SAME)
    return "".join(one for one in folded if not one.isspace())


def _order_marks(pairs: list[tuple[str, int]]) -> None:
    """Put the marks on one letter in Unicode's order: texts in no normal form have another."""
    at = 0
    while at < len(pairs):
        end = at
        while end < len(pairs) and unicodedata.combining(pairs[end][0]):
            end += 1
        if end - at > 1:
            pairs[at:end] = sorted(pairs[at:end], key=lambda pair: unicodedata.combining(pair[0]))
        at = max(end, at + 1)


def _without_marks(form: Reduced) -> Reduced:
    """A reduced form without punctuation, but for what stands between two digits ("3.5")."""
    text = form.text
    kept = [
        at
        for at, char in enumerate(text)
        if not _is_mark(char)
        or (0 < at < len(text) - 1 and text[at - 1].isdigit() and text[at + 1].isdigit())
    ]
    return Reduced("".join(text[at] for at in kept), [form.origin[at] for at in kept])


def _without(form: Reduced, left_out: Iterable[Span]) -> Reduced:
    out = {index for span in left_out for index in range(*span)}
    kept = [at for at, index in enumerate(form.origin) if index not in out]
    return Reduced("".join(form.text[at] for at in kept), [form.origin[at] for at in kept])


@lru_cache(maxsize=4096)
def _is_mark(char: str) -> bool:
    if char in _KEPT_MARKS:
        return False
    return char in _OTHER_MARKS or unicodedata.category(char).startswith("P")


class Finder:
    """Search in one response; its reduced forms are made once, and only when they are needed.

    Attributes:
        response: What is searched.
        lenient: How many quotes `first` has found only by leaving more than the reduced form
            leaves out.
    """

    def __init__(self, response: str) -> None:
        self.response = response
        self.lenient = 0

    def first(self, quote: str, start: int = 0) -> Span | None:
        """The earliest place of the quote at or after `start`."""
        found = self._close(quote, start, len(self.response), last=False)
        if found is None:
            found = self._lenient(quote, start, len(self.response), last=False)
            self.lenient += found is not None
        return found

    def last(self, quote: str, start: int, end: int) -> Span | None:
        """The latest place of the quote between `start` and `end`."""
        found = self._close(quote, start, end, last=True)
        return found or self._lenient(quote, start, end, last=True)

    @cached_property
    def _has_words(self) -> bool:
        return any(map(str.isalnum, self.response))

    @cached_property
    def _reduced(self) -> Reduced:
        return reduce(self.response)

    @cached_property
    def _words(self) -> Reduced:
        return _without_marks(self._reduced)

    @cached_property
    def _unlisted(self) -> Reduced:
        marks = (Span(*mark.span()) for mark in _LIST_MARK.finditer(self.response))
        return _without_marks(_without(self._reduced, marks))

    def _close(self, quote: str, start: int, end: int, *, last: bool) -> Span | None:
        """As it stands, or in the reduced form."""
        readings = [(one, reduce(one).text) for one in _readings(quote)]
        exact = Reduced(self.response, range(len(self.response)))
        for reading, needle in readings:
            if not needle:
                continue
            alone = len(reading) == 1
            # One mark, or an ellipsis, says nothing of a place among words.
            if self._has_words and (alone or not reading.strip(".… ")) and _is_mark(reading[0]):
                continue
            if found := self._search(exact, reading, start, end, last, alone):
                return found
        for reading, needle in readings:
            # Punctuation alone is everywhere once its variants count as one.
            if not needle or all(map(_is_mark, needle)):
                continue
            alone = len(reading) == 1
            if found := self._search(self._reduced, needle, start, end, last, alone):
                return found
        return None

    def _lenient(self, quote: str, start: int, end: int, *, last: bool) -> Span | None:
        """More leniently, for quotes that stand nowhere else in the response more exactly."""
        if len(quote) > _LONGEST or self._close(quote, 0, len(self.response), last=False):
            return None
        for unlisted in (False, True):
            found = self._by_words(quote, start, end, last, unlisted)
            if found is not None:
                return found
            if self._by_words(quote, 0, len(self.response), False, unlisted) is not None:
                return None
        return self._by_pieces(quote, start, end, last)

    def _by_words(
        self, quote: str, start: int, end: int, last: bool, unlisted: bool
    ) -> Span | None:
        for reading in _readings(quote):
            said = _LIST_MARK.sub("", reading) if unlisted else reading
            needle = _without_marks(reduce(said)).text
            if not _is_enough(needle):
                continue
            form = self._unlisted if unlisted else self._words
            if found := self._search(form, needle, start, end, last, alone=True):
                return found
        return None

    def _by_pieces(self, quote: str, start: int, end: int, last: bool) -> Span | None:
        for reading in _readings(quote):
            pieces = [piece for piece in _ELLIPSIS.split(reading) if any(map(str.isalnum, piece))]
            if pieces == [reading] or not 0 < len(pieces) <= _PIECES:
                continue
            found = None
            at = start
            for _ in range(_CHAINS):
                chain = self._chain(pieces, at, end)
                if chain is None:
                    break
                found, at = chain, chain.start + 1
                if not last:
                    break
            if found is not None:
                return found
        return None

    def _chain(self, pieces: list[str], start: int, end: int) -> Span | None:
        """The earliest place of all pieces in their order, none far from the one before."""
        for _ in range(_CHAINS):
            head = self._piece(pieces[0], start, end)
            if head is None:
                return None
            reached = head.end
            for piece in pieces[1:]:
                found = self._piece(piece, reached, min(end, reached + _GAP + 2 * len(piece)))
                if found is None:
                    break
                reached = found.end
            else:
                return Span(head.start, reached)
            start = head.start + 1
        return None

    def _piece(self, piece: str, start: int, end: int) -> Span | None:
        for unlisted in (False, True):
            if found := self._by_words(piece, start, end, False, unlisted):
                return found
        return None

    def _search(
        self, form: Reduced, needle: str, start: int, end: int, last: bool, alone: bool
    ) -> Span | None:
        """The needle's first or last place in a form, between `start` and `end` of the response.

        Args:
            form: The response's form.
            needle: What to find in it.
            start: Where the place begins at the earliest.
            end: Where it ends at the latest.
            last: Take the last place, not the first.
            alone: The place must begin and end between words.
        """
        text, origin = form
        low, high = bisect_left(origin, start), bisect_left(origin, end)
        for _ in range(_PLACES):
            at = text.rfind(needle, low, high) if last else text.find(needle, low, high)
            if at < 0:
                return None
            after = at + len(needle)
            span = Span(origin[at], origin[after - 1] + 1)
            # "cafe" is not in "café", whose accent may be a character of its own.
            cut = after < len(text) and _continues(text[after])
            if not cut and not (alone and self._cuts_words(span)):
                return span
            low, high = (low, after - 1) if last else (at + 1, high)
        return None

    def _cuts_words(self, span: Span) -> bool:
        edges = ((span.start - 1, span.start), (span.end, span.end - 1))
        for outside, inside in edges:
            if not 0 <= outside < len(self.response):
                continue
            near, own = self.response[outside], self.response[inside]
            if _is_solid(near) and _is_solid(own):
                return True
        return False


def _readings(quote: str) -> list[str]:
    r"""What a judge may have meant by a quote that has gone through JSON, the likeliest first.

    "\frac" written into JSON with one backslash comes out as a form feed and "rac"; a line's end
    escaped twice comes out as a backslash and an "n".
    """
    commands = _CONTROLS.sub(lambda found: _COMMANDS[found[0]], quote)
    unescaped = quote.replace("\\n", "\n").replace("\\t", "\t").replace('\\"', '"')
    return list(dict.fromkeys(_trimmed(one) for one in (commands, quote, unescaped)))


def _trimmed(quote: str) -> str:
    """Without an ellipsis at either end, unless it is all there is."""
    whole = quote.strip()
    inner = whole
    if inner.startswith("…"):
        inner = inner[1:]
    elif inner.startswith("..."):
        inner = inner.lstrip(".")
    inner = inner.lstrip()
    if inner.endswith("…"):
        inner = inner[:-1]
    elif inner.endswith("..."):
        inner = inner.rstrip(".")
    return inner.rstrip() or whole


def _is_enough(needle: str) -> bool:
    """Three letters or digits, or two of a script that writes words without spaces."""
    return sum(1 + (unicodedata.category(char) == "Lo") for char in needle if char.isalnum()) >= 3


def _continues(char: str) -> bool:
    """Whether it belongs to the character before it: an accent, or a later part of a syllable."""
    return unicodedata.combining(char) != 0 or "\u1160" <= char <= "\u11ff"


def _is_solid(char: str) -> bool:
    """Whether words do not end beside it: letters of scripts with spaces, digits, accents."""
    return unicodedata.category(char) in ("Lu", "Ll", "Lt", "Nd", "Mn")
