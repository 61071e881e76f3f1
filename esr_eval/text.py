"""Names, labels and paths on their way out: whatever they hold, they are shown and never obeyed.

Each medium has one way out that uses this: `esr_eval._util.output` (terminal and CSV), the
report's page (which escapes HTML besides). The Inspect viewer's markdown has
`esr_eval.scorers.cleaning.plain`.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_MOST_MARKS = 3
"""Combining marks left on one character; letters of living languages carry no more."""


class Characters(NamedTuple):
    """A stretch of text; a special one names characters that would not show, or would misplace."""

    text: str
    special: bool = False


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


def harmless(text: str) -> str:
    """Text of several lines without any character that a terminal or a browser would act on."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(run.text for run in shown(text))


def one_line(text: str, limit: int = 120) -> str:
    """The same for names and labels: one bounded line without any special character."""
    line = " ".join(harmless(text[: 4 * limit]).split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def numbered(names: Sequence[str], alike: Sequence[object] | None = None) -> list[str]:
    """Names told apart by a number where one stands more than once.

    Args:
        names: In the order in which they are numbered.
        alike: What makes two of them the same; the names themselves where it is not given.
    """
    keys = list(names if alike is None else alike)
    return [
        f"{name} ({keys[: at + 1].count(key)})" if keys.count(key) > 1 else name
        for at, (name, key) in enumerate(zip(names, keys, strict=True))
    ]


def told_apart(names: Sequence[str], facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Names that stand more than once, each with what it differs in; a number is the last resort.

    Args:
        names: The names.
        facts: Of each, what may tell it from others, in words, the most telling first; the last
            one tells any from any, but says nothing (a time).
    """
    told = list(names)
    groups: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        groups.setdefault(name, []).append(at)
    for group in groups.values():
        keys = [key for key in facts[group[0]] if len({facts[at].get(key) for at in group}) > 1]
        if len(group) < 2 or not keys:
            continue
        telling = keys[:-1] or keys
        alone = [key for key in telling if len({facts[at].get(key) for at in group}) == len(group)]
        key = (alone or keys)[0]
        for at in group:
            told[at] = ", ".join(filter(None, (names[at], facts[at].get(key))))
        rest = [{name: text for name, text in facts[at].items() if name != key} for at in group]
        for at, name in zip(group, told_apart([told[at] for at in group], rest), strict=True):
            told[at] = name
    return numbered(told)


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
