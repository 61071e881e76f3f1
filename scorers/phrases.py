"""The phrase detector: restarts, where a response says that it starts over. No judge is asked.

Restart phrases are searched beside the judge, because an independent group found that it missed
two of three restarts that a phrase search found. The search is precise and knows the usual phrases,
but by no means all wordings:
`python -m esr_eval.scorers.phrases tests/data/restarts.jsonl` measures it on three sets: "dev"
(patterns were fitted to it), "held_out" (written before the patterns, by the same hand) and "fresh"
(deliberately unusual wordings, written after them and never used to change them).
"""

import json
import re
import sys
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from esr_eval.scorers.cleaning import plain
from esr_eval.scorers.patterns import STRONG, WEAK
from esr_eval.scorers.scores import NAN, errored, keyed_metrics

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


# What a response only quotes: speech, dialogue, letter templates. A restart phrase in there is a
# character's or a letter's, not the model's own.
_QUOTED = re.compile(
    r'"[^"\n]{1,400}"'
    r"|“[^”\n]{1,400}”"
    r"|„[^“”\n]{1,400}[“”]"
    r"|«[^»\n]{1,400}»"
    # Single quotes only where they cannot be an apostrophe: after a space and before a non-letter.
    r"|(?:(?<=\s)|(?<=^))['‘][^\n'‘’]{0,200}(?:['’]\w[^\n'‘’]{0,200}){0,9}['’](?!\w)"
)
_SPEAKER = re.compile(r"^[ \t*_]*([A-Z][A-Za-z.' ]{0,24}?)[*_]*:[*_]*[ \t]+\S.*$", re.MULTILINE)
_SALUTATION = re.compile(
    r"^[ \t>*]*(?:Subject:.*|(?:Dear|Hi|Hello|Hey|Liebe[rs]?|Sehr geehrte[rs]?|Estimad[oa]|Hola)\b"
    r"[^\n]{0,60},[ \t*]*)$",
    re.MULTILINE,
)
_CLOSING = re.compile(
    r"^[ \t>*]*(?:(?:Kind|Best|Warm|Kindest|Warmest) (?:regards|wishes)|Best|Regards|Sincerely"
    r"|Thanks|Thank you|Cheers|Yours\b[^\n]{0,20}|Mit freundlichen Grüßen|Viele Grüße"
    r"|Un saludo|Saludos|Atentamente)[,.!]?[ \t*]*$",
    re.MULTILINE,
)
_LONGEST_LETTER = 3000
_BLANK = "\x00"


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
    hits = _hits(_mask_quoted(response))
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


def _mask_quoted(text: str) -> str:
    """The text with quoted parts blanked out, all other characters at the same places."""
    text = _mask_letters(text)
    text = _QUOTED.sub(_blank, text)
    return _mask_dialogue(text)


def _mask_letters(text: str) -> str:
    """Blank from a salutation or subject line to the closing that follows it, if one does."""
    closings = [match.end() for match in _CLOSING.finditer(text)]
    parts: list[str] = []
    cursor = 0
    for opening in _SALUTATION.finditer(text) if closings else ():
        at = bisect_right(closings, opening.end())
        if opening.start() < cursor or at == len(closings):
            continue
        end = closings[at]
        if end - opening.end() <= _LONGEST_LETTER:
            parts += [text[cursor : opening.start()], _blanked(text[opening.start() : end])]
            cursor = end
    return "".join([*parts, text[cursor:]])


def _mask_dialogue(text: str) -> str:
    """Blank lines such as `Anna: ...`, once two speakers take turns."""
    speakers = [match[1].strip() for match in _SPEAKER.finditer(text)]
    names = (
        {name for name in speakers if speakers.count(name) > 1} if len(speakers) < 200 else set()
    )
    if not names or len(set(speakers)) < 2:
        return text
    return _SPEAKER.sub(_blank, text)


def _blank(match: re.Match[str]) -> str:
    return _blanked(match[0])


def _blanked(text: str) -> str:
    return re.sub(r"[^\n]", _BLANK, text)


@scorer(metrics=keyed_metrics(["restart_phrase"]) | keyed_metrics((), ["restarts"]))
def restarts() -> Scorer:
    """Whether, and how often, the response says in so many words that it starts over."""

    async def score(state: TaskState, target: Target) -> Score:
        if errored() is not None:
            return Score(value={"restart_phrase": NAN, "restarts": NAN}, answer="errored")
        found = find_restarts(state.output.completion)
        phrases = "\n".join(f"- “{plain(restart.phrase)}”" for restart in found[:12])
        return Score(
            value={"restart_phrase": float(bool(found)), "restarts": float(len(found))},
            answer=str(len(found)),
            explanation=phrases or "No restart phrase.",
            metadata={"restarts": [restart._asdict() for restart in found[:20]]},
        )

    return score


class Accuracy(NamedTuple):
    """Restarts found against restarts labelled."""

    correct: int
    invented: int
    missed: int

    @property
    def precision(self) -> float:
        """Share of what was found that is there."""
        return self.correct / max(1, self.correct + self.invented)

    @property
    def recall(self) -> float:
        """Share of what is there that was found."""
        return self.correct / max(1, self.correct + self.missed)


def measure(examples: Iterable[dict[str, Any]]) -> Accuracy:
    """Count per example (`text`, `restarts`) what was found, invented and missed."""
    correct = invented = missed = 0
    for example in examples:
        found, labelled = len(find_restarts(example["text"])), example["restarts"]
        correct += min(found, labelled)
        invented += max(found - labelled, 0)
        missed += max(labelled - found, 0)
    return Accuracy(correct, invented, missed)


def _main(path: str) -> None:
    lines = Path(path).read_text("utf-8").splitlines()
    examples = [json.loads(line) for line in lines if line.strip()]
    for split in sorted({example["split"] for example in examples}):
        chosen = [example for example in examples if example["split"] == split]
        found = measure(chosen)
        print(
            f"{split}: {len(chosen)} responses, precision {found.precision:.2f}, "
            f"recall {found.recall:.2f} (found {found.correct}, invented {found.invented}, "
            f"missed {found.missed})"
        )


if __name__ == "__main__":
    _main(sys.argv[1])
