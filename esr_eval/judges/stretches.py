"""A response as successive stretches of text, each with how much it is about the task."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from esr_eval.judges.topicality import (
    MAX_SENTENCE_WORDS,
    MAX_SENTENCES,
    Encoder,
    relevance,
    variety,
    words_of,
)
from esr_eval.scorers.phrases import Restart, find_restarts

MAX_RESTARTS = 16
"""Restarts looked at; what follows belongs to the last part."""

_READ = 1000
"""Characters of a stretch that are read: more than MiniLM takes in."""

_END = re.compile(r"(?<=[.!?…])[\"'”’)*]*\s+|\n+")
_WORD = re.compile(r"\S+")
_FEWEST_WORDS = 4


class Stretch(NamedTuple):
    """Characters `start` up to `end` of the response; `on_topic` goes from 0 to 1."""

    start: int
    end: int
    words: tuple[str, ...]
    on_topic: float


class Part(NamedTuple):
    """What stands between two restarts; `restart` is the one before it."""

    restart: Restart | None
    stretches: list[Stretch]


def parts_of(response: str, task: str, label: str, encoder: Encoder) -> list[Part]:
    """The parts of a response, split at its restarts, each as stretches of about a sentence.

    A part without a word has no stretches.
    """
    restarts = find_restarts(response)[:MAX_RESTARTS]
    starts = [0, *(restart.end for restart in restarts)]
    ends = [*(restart.start for restart in restarts), len(response)]
    most = max(4, MAX_SENTENCES // len(starts))
    return [
        Part(restart, _stretches(response, start, end, most, task, label, encoder))
        for restart, start, end in zip([None, *restarts], starts, ends, strict=True)
    ]


def topicality(stretches: Sequence[Stretch]) -> float:
    """How much some stretches together are about the task, 0 to 1; less for repetition."""
    words = [word for one in stretches for word in one.words]
    if not words:
        return 0.0
    share = sum(len(one.words) * one.on_topic for one in stretches) / len(words)
    return share * variety(words)


def _stretches(
    response: str, start: int, end: int, most: int, task: str, label: str, encoder: Encoder
) -> list[Stretch]:
    spans = _sentences(response, start, end)
    size = -(-len(spans) // most)
    spans = [
        (spans[at][0], spans[min(at + size, len(spans)) - 1][1])
        for at in range(0, len(spans), size or 1)
    ]
    words = [tuple(words_of(response[first:last])) for first, last in spans]
    if not any(words):
        return []
    texts = [response[first : min(last, first + _READ)].strip() or "." for first, last in spans]
    return [
        Stretch(first, last, found, float(on_topic))
        for (first, last), found, on_topic in zip(
            spans, words, relevance(texts, task, label, encoder), strict=True
        )
    ]


def _sentences(response: str, start: int, end: int) -> list[tuple[int, int]]:
    """Spans of sentences without gaps; fragments join what follows, endless ones are cut."""
    words = [match.start() for match in _WORD.finditer(response, start, end)]
    if not words:
        return []
    cuts = [start]
    for mark in _END.finditer(response, start, end):
        count = bisect_right(words, mark.end() - 1) - bisect_right(words, cuts[-1] - 1)
        if count < _FEWEST_WORDS:
            continue
        cuts += _inner_cuts(words, cuts[-1], mark.end())
        cuts.append(mark.end())
    cuts += _inner_cuts(words, cuts[-1], end)
    if end - cuts[-1] and not words_of(response[cuts[-1] : end]) and len(cuts) > 1:
        cuts.pop()
    spans = list(zip(cuts, [*cuts[1:], end], strict=True))
    return [span for span in spans if span[0] < span[1]]


def _inner_cuts(words: list[int], start: int, end: int) -> list[int]:
    inside = words[bisect_right(words, start - 1) : bisect_right(words, end - 1)]
    return inside[MAX_SENTENCE_WORDS::MAX_SENTENCE_WORDS]
