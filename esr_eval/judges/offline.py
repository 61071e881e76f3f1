"""The offline judge: attempts by restart phrases, everything else by topicality.

Attempts begin where the phrase detector finds a restart. Improvement and regions compare successive
stretches of the response by their topicality; an explicit restart or a correction is only where the
phrase detector finds one. The text is only measured, never read as instructions: nothing in it can
address this judge, which knows nothing of correctness either.

The constants of improvement and regions were fitted by hand to the episodes marked "dev" in
`tests/data/episodes.jsonl`; `tests/test_scorers_improvement.py` and `tests/test_scorers_regions.py`
state how the judge does on those marked "held_out".
"""

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import NamedTuple

from esr_eval._util.minilm import SentenceEncoder
from esr_eval.judges.similarity import (
    MAX_SENTENCE_WORDS,
    MAX_SENTENCES,
    SENTENCE_END,
    relevance,
    score_attempt,
    variety,
    words_of,
)
from esr_eval.scorers.grader import Request
from esr_eval.scorers.improvement import Kind as Course
from esr_eval.scorers.phrases import Restart, find_restarts
from esr_eval.scorers.regions import MAX_REGIONS
from esr_eval.scorers.regions import Kind as RegionKind

MAX_ATTEMPTS = 32
"""Attempts reported; what follows belongs to the last one."""

_ATTEMPT_QUOTE_WORDS = 6
_ATTEMPT_QUOTE_CHARACTERS = 120
_QUESTION_WORDS = 40

FULL_GAIN = 0.8
"""Gain in topicality, end over beginning, that is an improvement of 10."""

LEAST_GAIN = 0.2
"""Smaller gains are what good and bad answers vary by anyway: no change."""

LEAST_SHARE = 0.2
"""Beginning and end are each at least this share of the words: one odd sentence is no course."""

SWITCH = 8.0
"""Words that a change of region must explain, so that single sentences do not make regions."""

SALAD = 0.3
"""Variety below which words about the task are nonsense all the same."""

_REGION_QUOTE_WORDS = (6, 12, 24, 48)
_REGION_QUOTE_CHARACTERS = 400

MAX_RESTARTS = 16
"""Restarts looked at; what follows belongs to the last part."""

_READ = 1000
"""Characters of a stretch that are read: more than MiniLM takes in."""

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


class _Cut(NamedTuple):
    gain: float
    explicit: bool


def verdict(request: Request, encoder: SentenceEncoder) -> str:
    """Judge a response as JSON, in the form that the rubric asks for."""
    task, label, response = request
    found = [
        {**quotes(attempt), "score": round(score_attempt(content, task, label, encoder))}
        for attempt, content in _attempts(response, task)
    ]
    return json.dumps({"attempts": found}, ensure_ascii=False, separators=(",", ":"))


def _attempts(response: str, task: str) -> list[tuple[str, str]]:
    """Each attempt as it stands, and its content without the words of the restart."""
    if not words_of(response[:2000]) and not words_of(response):
        return []
    if _only_asks(response):
        return []
    restarts = find_restarts(response, task)[: MAX_ATTEMPTS - 1]
    starts = [0, *(restart.start for restart in restarts)]
    contents = [0, *(restart.end for restart in restarts)]
    ends = [*starts[1:], len(response)]
    return [
        (response[start:end].strip(), response[content:end])
        for start, content, end in zip(starts, contents, ends, strict=True)
    ]


def _only_asks(response: str) -> bool:
    """Whether the response is a short question back and nothing else."""
    text = response.strip()
    if len(text) > 400 or not text.endswith("?"):
        return False
    return len(words_of(text)) <= _QUESTION_WORDS and not re.search(r"[.!:]\s", text)


def quotes(attempt: str) -> dict[str, str]:
    """Its first and last words, exactly as they stand, so that they are found again."""
    first = re.match(
        rf"\S+(?:\s+\S+){{0,{_ATTEMPT_QUOTE_WORDS - 1}}}", attempt[: 4 * _ATTEMPT_QUOTE_CHARACTERS]
    )
    last = re.search(
        rf"\S+(?:\s+\S+){{0,{_ATTEMPT_QUOTE_WORDS - 1}}}$",
        attempt[-4 * _ATTEMPT_QUOTE_CHARACTERS :],
    )
    head = first[0] if first else attempt
    tail = last[0] if last else attempt
    return {
        "first": head[:_ATTEMPT_QUOTE_CHARACTERS].strip(),
        "last": tail[-_ATTEMPT_QUOTE_CHARACTERS:].strip(),
    }


def improvement(request: Request, encoder: SentenceEncoder) -> str:
    """Judge a response's improvement as JSON, in the form that the rubric asks for."""
    parts = parts_of(request.response, request.task, request.label, encoder)
    score, kind = course(parts)
    return json.dumps({"improvement": score, "kind": kind})


def course(parts: Sequence[Part]) -> tuple[int, Course]:
    """Improvement from 0 to 10 and its kind, at the cut where the end most exceeds the beginning.

    A restart explains the improvement when cutting there gains nearly as much as anywhere.
    """
    cuts = list(_cuts(parts))
    best = max(cuts, default=_Cut(0.0, False))
    if best.gain < LEAST_GAIN:
        return max(0, round(10 * best.gain / FULL_GAIN)), "none"
    restart = max((cut for cut in cuts if cut.explicit), default=None)
    explicit = restart is not None and restart.gain >= max(LEAST_GAIN, best.gain / 2)
    gain = restart.gain if explicit and restart else best.gain
    return min(10, round(10 * gain / FULL_GAIN)), "explicit" if explicit else "gradual"


def _cuts(parts: Sequence[Part]) -> list[_Cut]:
    stretches = [one for part in parts for one in part.stretches]
    after_restart, count = set(), 0
    for part in parts:
        if part.restart is not None:
            after_restart.add(count)
        count += len(part.stretches)
    total = sum(len(one.words) for one in stretches)
    cuts, before = [], 0
    for at, (previous, _) in enumerate(pairwise(stretches), 1):
        before += len(previous.words)
        explicit = at in after_restart
        balanced = LEAST_SHARE * total <= before <= (1 - LEAST_SHARE) * total
        if balanced or explicit:
            gain = topicality(stretches[at:]) - topicality(stretches[:at])
            cuts.append(_Cut(gain, explicit))
    return cuts


def regions(request: Request, encoder: SentenceEncoder) -> str:
    """Mark a response's regions as JSON, in the form that the rubric asks for."""
    response = request.response
    marked = _marked(parts_of(response, request.task, request.label, encoder))
    marked = [(kind, _next_word(response, start)) for kind, start in marked]
    ends = [start for _, start in marked[1:]] + [len(response)]
    found, cursor = [], 0
    for (kind, start), end in zip(marked, ends, strict=True):
        quote = _quote(response, start, end, cursor)
        cursor = start + len(quote)
        found.append({"kind": kind, "first": quote})
    return json.dumps({"regions": found}, ensure_ascii=False, separators=(",", ":"))


def _next_word(response: str, start: int) -> int:
    word = _WORD.search(response, start)
    return word.start() if word else start


def _marked(parts: Sequence[Part]) -> list[tuple[RegionKind, int]]:
    marked: list[tuple[RegionKind, int]] = []
    for part in parts:
        if part.restart is not None:
            marked.append(("correction", part.restart.start))
        for stretch, on_topic in zip(part.stretches, _states(part.stretches), strict=True):
            kind: RegionKind = "on_topic" if on_topic else "off_topic"
            if not marked or marked[-1][0] != kind:
                marked.append((kind, stretch.start))
    return marked[:MAX_REGIONS] or [("off_topic", 0)]


def _states(stretches: Sequence[Stretch]) -> list[bool]:
    """On topic or not, with as few changes as the text warrants (Viterbi's algorithm)."""
    costs, choices = [0.0, 0.0], []
    for one in _sober(stretches):
        stay_or_switch = [
            min((costs[state], state), (costs[1 - state] + SWITCH, 1 - state)) for state in (0, 1)
        ]
        choices.append([came_from for _, came_from in stay_or_switch])
        costs = [
            cost + len(one.words) * abs(state - one.on_topic)
            for state, (cost, _) in enumerate(stay_or_switch)
        ]
    state = int(costs[1] < costs[0])
    states = []
    for came_from in reversed(choices):
        states.append(bool(state))
        state = came_from[state]
    return states[::-1]


def _sober(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Words about the task that only repeat one another answer nothing."""
    found = []
    for at, one in enumerate(stretches):
        near = [word for other in stretches[max(0, at - 1) : at + 2] for word in other.words]
        found.append(one if variety(near) >= SALAD else one._replace(on_topic=0.0))
    return found


def _quote(response: str, start: int, end: int, cursor: int) -> str:
    """A region's first words, as many as it takes to find the place again, where that can be."""
    ends = [
        word.end() for word in islice(_WORD.finditer(response, start, end), _REGION_QUOTE_WORDS[-1])
    ]
    quote = ""
    for count in _REGION_QUOTE_WORDS:
        quote = response[start : ends[min(count, len(ends)) - 1]][:_REGION_QUOTE_CHARACTERS]
        if response.find(quote, cursor) == start:
            break
    return quote.rstrip()


def parts_of(response: str, task: str, label: str, encoder: SentenceEncoder) -> list[Part]:
    """The parts of a response, split at its restarts, each as stretches of about a sentence.

    A part without a word has no stretches.
    """
    restarts = find_restarts(response, task)[:MAX_RESTARTS]
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
    response: str, start: int, end: int, most: int, task: str, label: str, encoder: SentenceEncoder
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
    for mark in SENTENCE_END.finditer(response, start, end):
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
