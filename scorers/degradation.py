"""Degradation: text that only repeats itself. No judge is asked.

Two rules stand side by side, and rates are reported without the trials of either. `degraded` is the
protocol's: a word of two or more characters five or more times in a row. `degenerate` is every
shape in which texts were seen to fall into a loop (`degeneration` names it): that one, two or three
words in turn, a phrase, a list item or line, letters or syllables, punctuation or emoji.

A loop goes on until the text is cut, while rhyme, refrains, tables and laughter end after a few
rounds: so every shape is one unit over and over with nothing between, and how many rounds it takes
follows from how long the unit is. Code repeats by nature, and numbers and single letters do in
matrices and rhyme schemes; they take more. Placeholders in brackets ("[Skill]") say nothing.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from esr_eval.scorers.cleaning import plain
from esr_eval.scorers.scores import NAN, errored, headlines

Shape = Literal["word", "words in turn", "phrase", "line", "letters", "marks"]

RUN = 5
"""Repetitions in a row that make an output degraded (the protocol's number)."""

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_LETTERS = re.compile(r"[^\W\d_]{2}")

_ROUNDS = ((3, 5), (14, 4), (60, 3))
"""Up to so many words in the unit, so many rounds: songs sing a word or three up to four times
("let it be"), and a short line up to three ("this little light of mine")."""
_NO_WORD_ROUNDS = 12
"""Rounds of numbers or single letters alone."""
_CODE_ROUNDS = 12
_LONGEST_UNIT = _ROUNDS[-1][0]
_LONGEST_LINES = 4
"""Lines in a unit of lines."""

_CODE = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL)
_PLACEHOLDER = re.compile(r"\[[^\]\n]{0,80}\]")
_LIST_MARK = re.compile(r"\s*(?:[-*+•>#]+|\(?\d{1,3}[.):]|\(?[A-Za-z][.)])\s+")

_LONGEST_SOUND = 5000
"""Characters that are read of text without a space."""
_UNSPACED = re.compile(r"\S{15,}")
_SOUNDS = (
    # "Aaaaargh" and "nooooooo" have about ten; x and its like are masks of numbers.
    re.compile(r"(?=[^\W\d_xX])(\w)\1{14,}"),
    # "Hahahahahaha" has six or seven.
    re.compile(r"(?=[^\W\d_])([^\W\d_]{2,4}?)\1{9,}"),
    # Words that run together, and languages that have no spaces.
    re.compile(r"(?=[^\W\d_])([^\W_]{5,30}?)\1{4,}"),
)
_MARKS = (
    # Any mark that no rule, table, blank or row of dots is made of: nine stars are a rating.
    re.compile(r"(?![-=_*~#.+|<>/\\·—─━═])([^\w\s])(?:[\uFE0F\s]?\1){19,}"),
    # "Wow!!!!!" is prose; emoji stand in threes and fives.
    re.compile(r"((?:[\U0001F000-\U0001FAFF\u2600-\u27BF][\uFE0F\u200D]?\s?){1,4}?)\1{9,}"),
    # A rule is as long as a line.
    re.compile(r"([^\w\s])(?:[^\S\n]?\1){199,}"),
    re.compile(r"(([^\w\s]) ?(?!\2)[^\w\s] ?(?:[^\w\s] ?){0,2})\1{39,}"),
)


class Degeneration(NamedTuple):
    """What a text repeats over and over.

    Attributes:
        shape: Kind of unit.
        unit: The unit, as it stands in the text.
    """

    shape: Shape
    unit: str


@scorer(metrics=[headlines(("degraded", "degenerate"), ())])
def degradation() -> Scorer:
    """Whether the response is degraded by the protocol's rule, and by any; needs no grader."""

    async def score(state: TaskState, target: Target) -> Score:
        if errored() is not None:
            return Score(value={"degraded": NAN, "degenerate": NAN}, answer="errored")
        response = state.output.completion
        found = degeneration(response)
        return Score(
            value={
                "degraded": float(is_degraded(response)),
                "degenerate": float(found is not None),
            },
            answer=found.shape if found else "sound",
            explanation=told(found),
        )

    return score


def longest_run(words: Iterable[str]) -> int:
    """Length of the longest run of one word of two or more characters."""
    return max((len(list(run)) for word, run in groupby(words) if len(word) > 1), default=0)


def is_degraded(response: str) -> bool:
    """Whether a word stands five times in a row, whatever its case and the punctuation between."""
    return longest_run(_words(response)) >= RUN


def degeneration(response: str) -> Degeneration | None:
    """The loop that a text falls into, in whatever shape.

    Args:
        response: What the model wrote.

    Returns:
        The unit that repeats and its shape; None for a text without a loop.
    """
    if is_degraded(response):
        runs = ((word, len(list(run))) for word, run in groupby(_words(response)))
        return Degeneration("word", next(w for w, n in runs if len(w) > 1 and n >= RUN))
    code = "\n".join(match[0] for match in _CODE.finditer(response))
    prose = _PLACEHOLDER.sub(" ", _CODE.sub("\n", response))
    return (
        _of_words(prose, 0) or _of_lines(prose) or _of_characters(prose)
        # Fences hold code, which a loop may reach all the same.
        or _of_words(code, _CODE_ROUNDS)
    )  # fmt: skip


def told(found: Degeneration | None) -> str:
    """The loop for the viewer: its shape and unit, or `no`."""
    return f"yes, {found.shape} in a loop: “{plain(found.unit, 60)}”" if found else "no"


def _words(text: str) -> list[str]:
    # A blank to fill in ("____") is no word.
    return [match[0].casefold() for match in _WORD.finditer(text) if match[0].strip("_")]


def _of_words(text: str, least: int) -> Degeneration | None:
    words = _words(text)
    start_size = _cycle(words, [1] * len(words), _LONGEST_UNIT, least)
    if start_size is None:
        return None
    start, size = start_size
    shape: Shape = "word" if size == 1 else "words in turn" if size <= _ROUNDS[0][0] else "phrase"
    return Degeneration(shape, " ".join(words[start : start + size]))


def _of_lines(text: str) -> Degeneration | None:
    """List items and other lines, whatever their numbers; rows of a table are none."""
    lines = []
    for line in text.splitlines():
        bare = line.strip()
        while mark := _LIST_MARK.match(bare):
            bare = bare[mark.end() :]
        if not bare.startswith("|") and (words := _words(bare)):
            lines.append(" ".join(words))
    start_size = _cycle(lines, [len(line.split()) for line in lines], _LONGEST_LINES, 0)
    if start_size is None:
        return None
    start, size = start_size
    return Degeneration("line", " / ".join(lines[start : start + size]))


def _cycle(
    items: Sequence[str], words: Sequence[int], longest: int, least: int
) -> tuple[int, int] | None:
    """First item and length of the shortest unit that fills a stretch over and over."""
    # Here, since every `inspect` command imports the scorers.
    import numpy as np

    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(item, len(numbers)) for item in items], dtype=np.int64)
    for size in range(1, min(longest, len(ids) // 3) + 1):
        same = np.concatenate([[False], ids[size:] == ids[:-size], [False]])
        edges = np.flatnonzero(same[1:] != same[:-1])
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            rounds = (end - start) // size + 1
            if rounds >= max(least, _needed(items, words, start, size)):
                return start, size
    return None


def _needed(items: Sequence[str], words: Sequence[int], start: int, size: int) -> int:
    """Rounds that it takes of the unit there."""
    unit = range(start, start + size)
    if not any(_LETTERS.search(items[at]) for at in unit):
        return _NO_WORD_ROUNDS
    total = sum(words[at] for at in unit)
    return next((rounds for most, rounds in _ROUNDS if total <= most), _ROUNDS[-1][1])


def _of_characters(text: str) -> Degeneration | None:
    for part in _UNSPACED.finditer(text):
        sounds = part[0][:_LONGEST_SOUND].casefold()
        if found := _first(_SOUNDS, sounds):
            return Degeneration("letters", found)
    found = _first(_MARKS, text)
    return Degeneration("marks", found) if found else None


def _first(patterns: Sequence[re.Pattern[str]], text: str) -> str | None:
    return next((match[1] for one in patterns if (match := one.search(text))), None)
