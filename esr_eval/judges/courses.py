"""The offline judge on a response's course: how it improves, and which regions it has.

Both compare successive stretches of the response by their topicality; an explicit restart or a
correction is only where the phrase detector finds one. Neither knows of correctness. The constants
were fitted by hand to the episodes marked "dev" in `tests/data/episodes.jsonl`;
`tests/test_scorers_improvement.py` and `tests/test_scorers_regions.py` state how the judge does
on those marked "held_out".
"""

import json
import re
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import NamedTuple

from esr_eval.judges.stretches import Part, Stretch, parts_of, topicality
from esr_eval.judges.topicality import Encoder, variety
from esr_eval.scorers.fencing import Request
from esr_eval.scorers.improvement_rubric import Kind as Course
from esr_eval.scorers.regions_rubric import MAX_REGIONS
from esr_eval.scorers.regions_rubric import Kind as RegionKind

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

_QUOTE_WORDS = (6, 12, 24, 48)
_QUOTE_CHARACTERS = 400
_WORD = re.compile(r"\S+")


class _Cut(NamedTuple):
    gain: float
    explicit: bool


def improvement(request: Request, encoder: Encoder) -> str:
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


def regions(request: Request, encoder: Encoder) -> str:
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
    ends = [word.end() for word in islice(_WORD.finditer(response, start, end), _QUOTE_WORDS[-1])]
    quote = ""
    for count in _QUOTE_WORDS:
        quote = response[start : ends[min(count, len(ends)) - 1]][:_QUOTE_CHARACTERS]
        if response.find(quote, cursor) == start:
            break
    return quote.rstrip()
