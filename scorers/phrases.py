"""Find the places where a response says in so many words that it starts over.

Beside the judge, because an independent group found that the judge missed two of three restarts
that a phrase search found. It is precise and knows the usual phrases, but by no means all wordings:
`python -m esr_eval.scorers.restarts tests/data/restarts.jsonl` measures it on three sets: "dev"
(patterns were fitted to it), "held_out" (written before the patterns, by the same hand) and "fresh"
(deliberately unusual wordings, written after them and never used to change them).
"""

import re
from typing import NamedTuple

from esr_eval.scorers.masking import mask_quoted
from esr_eval.scorers.phrase_patterns import STRONG, WEAK

_SEARCHED = 320
"""Characters of a sentence that are looked at: restarts stand at its beginning."""

_BREAK = re.compile(
    r"[.!?…]+[)\]\"'”’*_]*(?=\s|$)|\n+|[—–]|\s-\s|:(?=\s)|\.{3,}|…|\((?=\w)|\x00+"
    # A run-on sentence that interrupts itself: "... of the court, wait, that's not right"
    r"|[,;](?= (?:no,? )?(?:wait|hold on|hang on|oops|sorry|hmm+)\b[,.!…—–-])"
    # ... or has no end: "... of the court Wait, that's not right"
    r"|\s(?=(?-i:Wait|No,? wait|Hold on|Hang on|Oops|Sorry|Hmm+)\b[,.!…—–-])",
    re.IGNORECASE,
)
_DECORATION = re.compile(r"[\s*_#>~`\-•(\[\"'“”‘’.,:;!?…—–\x00]+|\d+[.)]\s+")
_STRAIGHT = str.maketrans("’‘ʼ`´", "'''''")
_WORD = re.compile(r"\w+")

_OPENING_WORDS = 4
"""After fewer words there is nothing to correct: the protocol ignores an opening restart."""

_INTERJECTION = re.compile(
    r"(?:(?:oh|no|um+|hm+|okay),? )?"
    r"(?:wait|hold on|hang on|oops|whoops|whoa|sorry|stop)[\s,.!…*_]*",
    re.IGNORECASE,
)

_REST_WORDS = 7
"""A restart's sentence that goes on for more words than these already answers anew."""

_BRIDGE = 15
"""Two hits with at most this many characters between their sentences are one restart."""


class Restart(NamedTuple):
    """One restart: where its words stand in the response, and the words."""

    start: int
    end: int
    phrase: str


class _Hit(NamedTuple):
    start: int
    end: int
    sentence_end: int
    weight: int


def find_restarts(response: str) -> list[Restart]:
    """The restarts of a response, in order.

    Speech, dialogue and letters inside the response are left out, and so are restarts at the very
    beginning (nothing to correct) and at the very end (no new attempt follows).
    """
    hits = _hits(mask_quoted(response))
    found: list[Restart] = []
    for group in _groups(hits, response):
        start, end = group[0].start, group[-1].end
        if sum(hit.weight for hit in group) < 2:
            continue
        if len(_WORD.findall(response, 0, min(start, 400))) < _OPENING_WORDS and start < 400:
            continue
        if _WORD.search(response, end) is None:
            continue
        found.append(Restart(start, end, " ".join(response[start:end].split())[:120]))
    return found


def _hits(text: str) -> list[_Hit]:
    hits: list[_Hit] = []
    spans = _sentences(text)
    for index, (start, end) in enumerate(spans):
        # "Wait! That's about ...": an interjection is read with the sentence after it.
        calls = _INTERJECTION.fullmatch(text, start, end) and index + 1 < len(spans)
        reach = min(spans[index + 1][1] if calls else end, start + _SEARCHED)
        plain = _comparable(text[start:reach])
        strong, weak = STRONG.match(plain), WEAK.match(plain)
        if match := strong or weak:
            # "To correct my answer, a meeting needs ...": the new attempt begins in the sentence.
            words_end = start + match.end()
            answers = len(_WORD.findall(text, words_end, end)) > _REST_WORDS
            last = words_end if answers or words_end > end else end
            hits.append(_Hit(start, last, max(end, last), 2 if strong else 1))
    return hits


def _comparable(sentence: str) -> str:
    """Lower case, straight apostrophes, no emphasis marks ("*Wait* that's"); length unchanged."""
    plain = sentence.translate(_STRAIGHT).replace("*", " ")
    lower = plain.lower()
    return lower if len(lower) == len(plain) else plain


def _sentences(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence, decoration such as list marks left out at its start."""
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _BREAK.finditer(text):
        spans.append((start, match.end()))
        start = match.end()
    spans.append((start, len(text)))
    trimmed: list[tuple[int, int]] = []
    for begin, end in spans:
        while (mark := _DECORATION.match(text, begin, end)) is not None:
            begin = mark.end()
        if begin < end:
            trimmed.append((begin, end))
    return trimmed


def _groups(hits: list[_Hit], response: str) -> list[list[_Hit]]:
    """Hits that follow one another belong to one restart ("Wait, no. Let me start over.")."""
    groups: list[list[_Hit]] = []
    for hit in hits:
        previous = groups[-1][-1] if groups else None
        if previous and len(response[previous.sentence_end : hit.start].strip()) <= _BRIDGE:
            groups[-1].append(hit)
        else:
            groups.append([hit])
    return groups
