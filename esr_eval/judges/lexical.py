"""A second offline judge: cue words for the attempts, shared words for their scores.

Cruder than the first and made differently on purpose, so that a cross-judge comparison without a
hosted model compares something: it knows no meaning, only which words the sentences share with
the task and with the unrelated concept's label.
"""

import json
import re
from itertools import pairwise

from esr_eval.judges.offline import MAX_ATTEMPTS, quotes
from esr_eval.judges.similarity import BEST, sentences, variety, words_of
from esr_eval.scorers.grader import Request

CUES = re.compile(
    r"(?:(?<=[.!?…]\s)|(?<=\n)|(?<=[—–-]\s))(?:oh,? |but |hmm,? |ok(?:ay)?,? |no,? )*"
    r"(?:wait\b|sorry\b|apologies\b|my apologies\b|actually,|correction\b|oops\b|scratch that\b|"
    r"let me (?:try|start|correct|rephrase|begin)\b|let's (?:try|start) |"
    r"i (?:made|need to correct)\b|"
    r"that(?:'s| is) not\b|never ?mind\b)",
    re.IGNORECASE,
)
"""Words at the beginning of a sentence that start another attempt."""

REACH = 2
"""A sentence without a word of the task counts as about it this far from one that has one."""
STEM = 5
"""Words are alike when this many of their first letters are."""

_COMMON = """
about after also and are because before can could does each explain from get have how into its just
like make may more most much need not one only other our out should some such than that the their
them then there these they this those through use used using very was way well were what when where
which while who will with without would you your
"""
_COMMON_WORDS = frozenset(_COMMON.split())


def verdict(request: Request) -> str:
    """Judge a response as JSON, in the form that the rubric asks for."""
    task, label, response = request
    found = [
        {**quotes(text), "score": round(score(text, task, label))} for text in attempts(response)
    ]
    return json.dumps({"attempts": found}, ensure_ascii=False, separators=(",", ":"))


def attempts(response: str) -> list[str]:
    """The response, cut before every cue but one at its very beginning."""
    starts = [found.start() for found in CUES.finditer(response)][: MAX_ATTEMPTS - 1]
    bounds = [0, *(start for start in starts if words_of(response[:start])), len(response)]
    pieces = [response[a:b].strip() for a, b in pairwise(bounds)]
    return [piece for piece in pieces if words_of(piece)]


def score(text: str, task: str, label: str) -> float:
    """Share of words in sentences near the task's words and without the label's, 0 to 100."""
    about, concept = stems(task), stems(label) - stems(task)
    pieces = sentences(text)
    if not pieces:
        return 0.0
    own = [stems(piece) for piece in pieces]
    hits = [bool(found & about) for found in own]
    weights = [max(1, len(words_of(piece))) for piece in pieces]
    on_topic = 0.0
    for index, weight in enumerate(weights):
        near = any(hits[max(0, index - REACH) : index + REACH + 1])
        if near and (hits[index] or not own[index] & concept):
            on_topic += weight * (0.5 if own[index] & concept else 1.0)
    return BEST * on_topic / sum(weights) * variety(words_of(text))


def stems(text: str) -> frozenset[str]:
    """First letters of the words that carry meaning."""
    return frozenset(w[:STEM] for w in words_of(text) if len(w) > 2 and w not in _COMMON_WORDS)
