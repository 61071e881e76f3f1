"""The phrase detector: restarts, where a response turns away from itself. No judge is asked.

Restarts are searched beside the judge, because an independent group found that it missed two of
three restarts that a phrase search found. Two ways are joined. Cues of `patterns.py` that stand
close together are added up: what was written, what is wrong with it, what was asked, an excuse, a
slip in the first person, a new start. Runs of clauses without punctuation are read like sentences,
in twelve languages, and any number of restarts is found. And a trained reader (`turns.py`) adds
wordings that no cue names, and takes back what English cues find where it sees no turn at all. So
does the sentence encoder where a text was about its task already, and is no more so behind.

It does not know: a silent change of topic (no words turn away), a restart that a character or a
letter tells (left out on purpose), and irony. docs/judges.md has its precision and recall by kind,
on passages by other hands than those who wrote it.
"""

import math
import re
from bisect import bisect_left, bisect_right
from functools import lru_cache
from typing import NamedTuple

import anyio.to_thread
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from esr_eval.scorers.cleaning import plain
from esr_eval.scorers.patterns import ENOUGH, cues_for
from esr_eval.scorers.scores import NAN, errored, headlines, task_of
from esr_eval.scorers.turns import FEWEST_WORDS, LONGEST, RUN_ON, goes_on, places, turn_reader

_WORD = re.compile(r"[^\W_]+")
_HALF = re.compile("[\ud800-\udfff]")
"""Halves of characters, which no tokenizer takes."""
_STRAIGHT = str.maketrans("’‘ʼ`´*_", "'''''  ")

_GAP = 75
"""Characters between two cues of one restart, at most."""

_MOST = 250_000
"""Characters of a response that are read, more than any limit on its length lets through."""

_SPAN = 280
"""Characters from the first cue of a restart to the last, at most."""

_AFRESH = 25
"""So many characters after words that begin anew, another rejection is the next restart."""

_BEFORE = 90
"""Characters before a cue in which its clause may begin."""

SURE = 0.0
"""Logit from which the reader alone makes a restart; docs/judges.md tells on what it was set."""

_UNLIKELY, _NEVER = -4.0, -7.0
"""Below the first the reader takes back what cues find, below the second, together with the
encoder, also clear words. In text that has fallen apart it doubts restarts that a person sees
(docs/judges.md)."""

_FIRM = 3.0
"""Below this the reader does not hold against the encoder's word that there was nothing to turn
away from."""

_ABOUT = (30, 10)
"""Characters before the cues and behind them in which the reader may see the turn."""

_SEEN = 100
"""Characters behind the cues, at least, for the reader to deny them: it judges by what follows."""

_NEAR_TURN = 90
"""Places so many characters from a restart belong to it."""

_CLAUSE_END = re.compile(r"[.!?…:;]+[\"'”’)*_]*(?=\s|$)|\n")

_SENTENCE = re.compile(r"[.!?…;:\n(—–](?=\W)|\n|\(")
_TURN = re.compile(r"\b(?:but|yet|though|although|which|only|however|ok|okay|well|anyway)\b")
_AND = re.compile(r"\b(?:and|so|or|because|now)\b")
_LEAD = re.compile(
    r"(?:\b(?:but|and|so|or|yet|oh|no|okay|ok|well|now|actually|again|hmm?|then|because|though|sorry"
    r"|wait|anyway|alright|seriously|however|right|um|uh|ah)\b[\s,.!?…—–-]*)+$"
)
_NEAR = 40
"""A sentence that begins within so many characters before a cue begins the restart."""

_PREDICATE = re.compile(
    r"(?:not|n't|isn't|wasn't|is|was|were|are|has|have|had|do|does|did|don't|doesn't|didn't|will"
    r"|won't|can't|cannot|fails?|hardly|never|belong)\b"
)
_MORE = 2
_EDITING = re.compile(
    r"\b(?:edit|revis|rewrit|rephras|proofread|correct (?:the|this|any|all)|corrected\b|grammar"
    r"|spelling|errors?\b|mistakes?\b|improve the|evaluat|feedback|fix\b|identify)",
    re.IGNORECASE,
)
"""A task about mending texts or errors: its answer speaks of versions anyway, so more is needed."""

_FRAME = frozenset(
    re.findall(
        r"\w+",
        "explain how to do you the a an of for in on and or with your my is are what properly make"
        " write give perform basic good perfect effective successful create calculate from"
        " different without it that this by at as can i",
    )
)
"""Words of a task that do not say what it is about."""

_CONDITION = re.compile(
    r"\b(?:falls|wenn|sollten|si|cuando|quand|se|quando|als|jeśli|если"
    r"|if|unless|whether|in case|until|suppose|imagine|make sure|ensure|avoid|check that"
    r"|for (?:example|instance)|such as|say that|people|students|beginners|candidates?)\b"
)
_CALL_OR_END = re.compile(r"[.!?\n]|\b(?:wait|sorry|no|hold on|hang on|hmm+|oh)\b")
_OFFER = re.compile(r"\b(?:let me know|tell me|feel free|please (?:tell|say|ask)|just ask)\b")


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
    kind: str
    weight: int
    english: bool


class _ByWords(NamedTuple):
    """A restart that cues found.

    Attributes:
        restart: Where it stands.
        clear: Whether it says in so many words that it starts over. Then it takes reader and
            encoder together to deny it.
        strong: Whether it has more cues than it needs, or speaks another language. Then the encoder
            alone does not deny it.
    """

    restart: Restart
    clear: bool
    strong: bool


_ANNOUNCES = frozenset({"anew", "version", "back"})
"""Kinds of cue that begin anew, as all others turn away."""

_CLEAR = {"anew": 4, "stop": 2}
"""Kinds of cue that say by themselves that the answer starts over, from some weight on."""

_CALLS = frozenset({"stop", "sorry"})
"""Kinds of cue that open a restart: after a whole one, they open the next."""

_OF_TEXTS = frozenset({"version", "drop", "anew"})
"""Kinds of cue that also belong to an answer about mending texts."""


def find_restarts(response: str, task: str | None = None) -> list[Restart]:
    """The restarts of a response, in order.

    Speech, dialogue and letters inside the response are left out, and so are restarts at the very
    beginning (nothing to correct) and at the very end (no new attempt follows).

    Args:
        response: What the model wrote.
        task: What it was asked, where known: it decides cases that are otherwise too weak.
    """
    return list(_found(_HALF.sub("\ufffd", response), _HALF.sub("\ufffd", task or "")))


async def find_restarts_aside(response: str, task: str) -> list[Restart]:
    """The same in a thread: the reader takes long enough to starve an event loop."""
    return await anyio.to_thread.run_sync(find_restarts, response, task)


@lru_cache(maxsize=512)
def _found(response: str, task: str) -> tuple[Restart, ...]:
    masked = _mask_quoted(response[:_MOST])
    by_words = _by_words(response, masked, task)
    reader = turn_reader()
    if reader is None:
        return tuple(one.restart for one in by_words)
    read = response[:LONGEST]
    at = [place for place in places(read) if masked[place] != _BLANK]
    scores = reader.scores(read, at, task)

    def denied(restart: Restart, clear: bool = False, strong: bool = False) -> bool:
        """Whether the reader saw no turn there, or there was nothing to turn away from."""
        before, behind = _ABOUT
        low = bisect_left(at, restart.start - before)
        seen = scores[low : bisect_right(at, restart.end + behind)]
        peak = float(seen.max()) if len(seen) else math.nan
        if clear:
            return peak < _NEVER and goes_on(read, restart.start, task)
        if not strong and peak < _FIRM and goes_on(read, restart.start, task):
            return True
        # The reader has seen little run-on text, and denies no cue there.
        run_on = not _CLAUSE_END.search(response, max(restart.start - RUN_ON, 0), restart.start)
        return peak < _UNLIKELY and not run_on and len(response) - restart.end >= _SEEN

    found = [one.restart for one in by_words if not denied(*one)]
    learned: list[int] = []
    for place, score in zip(at, scores, strict=True):
        near = any(one.start - _NEAR_TURN <= place <= one.end + _NEAR_TURN for one in found)
        if score >= SURE and not near:
            if not learned or place - learned[-1] > _NEAR_TURN:
                # To the end of its clause: the reader tells where it begins, and no more.
                word = _WORD.search(response, place, place + _SPAN)
                clause = word and _CLAUSE_END.search(response, word.end(), place + _SPAN)
                one = _restart(response, place, clause.end() if clause else place + _SPAN)
                follow = _WORD.findall(response, one.end, one.end + _SPAN)
                found += [one] if word and len(follow) > FEWEST_WORDS and not denied(one) else []
            learned.append(place)
    return tuple(sorted(found))


def _restart(response: str, start: int, end: int) -> Restart:
    return Restart(start, end, " ".join(response[start:end].split())[:120])


def _by_words(response: str, masked: str, task: str) -> list[_ByWords]:
    """What the cues find, in the text without its quoted parts."""
    text = _comparable(masked)
    words = _content_words(task)
    more = _MORE if _EDITING.search(task) else 0
    found: list[_ByWords] = []
    for group in _groups(_hits(text)):
        weight = _weight(group)
        enough = ENOUGH + more * ({hit.kind for hit in group} <= _OF_TEXTS)
        if weight == enough - 1 and _turns_to(words, text, group):
            weight += 1
        if weight < enough:
            continue
        while _leads_only(text, group, enough):
            group = group[1:]
        first, end = group[0], group[-1].end
        calls = first.kind in _CALLS and first.weight > 1
        start = _clause_start(text, first.start, 0 if calls else _NEAR)
        if len(_WORD.findall(response, 0, min(start, 400))) < FEWEST_WORDS and start < 400:
            continue
        if _WORD.search(response, end) is None:
            continue
        more_than_enough = weight > enough
        called = any(hit.kind in _CALLS and hit.weight > 1 for hit in group)
        clear = (more_than_enough and called) or any(
            hit.english and hit.weight >= _CLEAR.get(hit.kind, math.inf) for hit in group
        )
        strong = more_than_enough or not all(hit.english for hit in group)
        found.append(_ByWords(_restart(response, start, end), clear, strong))
    return found


def _content_words(task: str) -> frozenset[str]:
    """Beginnings of the words that say what a task is about."""
    return frozenset(_stem(word) for word in _WORD.findall(task.lower()) if word not in _FRAME)


def _stem(word: str) -> str:
    return re.sub(r"(?:ing|ed|es|s|e)$", "", word)[:7]


def _turns_to(words: frozenset[str], text: str, group: list[_Hit]) -> bool:
    """Whether a restart's words name the task again, after words that did not."""
    if {hit.kind for hit in group} <= _ANNOUNCES:
        return False
    start, end = group[0].start, group[-1].end
    named = words & _stems(text[start : end + _NEAR])
    return bool(named - _stems(text[max(0, start - _NEAR) : start]))


def _stems(text: str) -> set[str]:
    return {_stem(word) for word in _WORD.findall(text)}


def _comparable(text: str) -> str:
    """Lower case, straight apostrophes, no emphasis marks ("*Wait* that's"); length unchanged."""
    straight = text.translate(_STRAIGHT)
    lower = straight.lower()
    return (
        lower
        if len(lower) == len(straight)
        else "".join(low if len(low := letter.lower()) == 1 else letter for letter in straight)
    )


def _hits(text: str) -> list[_Hit]:
    hits = [
        _Hit(
            match.start() + _blank_before(match[0]), match.end(), cue.kind, cue.weight, cue.english
        )
        for cue in cues_for(text)
        for match in cue.pattern.finditer(text)
    ]
    return sorted(hit for hit in hits if not _is_excluded(text, hit))


def _blank_before(words: str) -> int:
    return next((at for at, letter in enumerate(words) if letter.isalnum()), 0)


def _is_excluded(text: str, hit: _Hit) -> bool:
    """Whether the cue stands in a condition or an offer: "if this is not what you asked for"."""
    if hit.kind in _CALLS:
        return False
    before = _CALL_OR_END.split(text[max(0, hit.start - 60) : hit.start])[-1]
    after = re.split(r"[.!?\n]", text[hit.end : hit.end + 80])[0]
    return bool(_CONDITION.search(before) or _OFFER.search(before) or _OFFER.search(after))


def _groups(hits: list[_Hit]) -> list[list[_Hit]]:
    """Cues that stand close together: each group is a restart, if they weigh enough."""
    groups: list[list[_Hit]] = []
    kinds: set[str] = set()
    reach = 0
    for hit in hits:
        group = groups[-1] if groups else []
        gap = _NEAR if kinds <= {"stop"} else _GAP
        near = group and hit.start - reach <= gap and hit.end - group[0].start <= _SPAN
        announced = not kinds.isdisjoint(_ANNOUNCES) or hit.kind in _CALLS
        again = announced and hit.kind not in _ANNOUNCES and hit.start - reach > _AFRESH
        if near and not (again and _weight(group) >= ENOUGH):
            group.append(hit)
        else:
            groups.append([hit])
            kinds = set()
            reach = 0
        kinds.add(hit.kind)
        reach = max(reach, hit.end)
    return groups


def _weight(group: list[_Hit]) -> int:
    """Each kind of cue counts once, by its heaviest, and no words count for two kinds."""
    counted: dict[str, _Hit] = {}
    for hit in sorted(group, key=lambda hit: -hit.weight):
        kind = "call" if hit.kind in _CALLS else hit.kind
        if kind not in counted and not any(_shared(hit, other) for other in counted.values()):
            counted[kind] = hit
    return sum(hit.weight for hit in counted.values())


def _shared(one: _Hit, other: _Hit) -> bool:
    """Whether two cues are in good part the same words."""
    common = min(one.end, other.end) - max(one.start, other.start)
    return 3 * common >= min(one.end - one.start, other.end - other.start)


def _leads_only(text: str, group: list[_Hit], enough: int) -> bool:
    """Whether the first cue is a weak one of a sentence before the call that opens it."""
    first, rest = group[0], group[1:]
    if first.kind in _CALLS or first.weight > 2 or not rest or _weight(rest) < enough:
        return False
    calls = (hit.start for hit in rest if hit.kind in _CALLS and hit.weight > 1)
    return re.search(r"[.!?\n]", text[first.end : next(calls, first.end)]) is not None


def _clause_start(text: str, at: int, near: int) -> int:
    """Where the clause of the first cue begins: at its sentence, or at a word that turns."""
    low = max(0, at - _BEFORE)
    before = text[low:at]
    begin = max((match.end() for match in _SENTENCE.finditer(before)), default=-1)
    if turns := [match.start() for match in _TURN.finditer(before, max(begin, 0))]:
        begin = turns[-1]
    elif begin < 0 or len(before) - begin > near:
        if (lead := _LEAD.search(before)) is not None:
            begin = lead.start()
        elif _PREDICATE.match(text, at) is None:
            begin = len(before)
        elif begin < 0 and len(before) <= near:
            begin = 0
        elif begin < 0:
            begin = max((match.start() for match in _AND.finditer(before)), default=len(before))
    while begin < len(before) and not before[begin].isalnum():
        begin += 1
    return low + begin


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


@scorer(metrics=[headlines(("restart_phrase", "restarts"), ())])
def restarts() -> Scorer:
    """Whether, and how often, the response says in so many words that it starts over."""

    async def score(state: TaskState, target: Target) -> Score:
        if errored() is not None:
            return Score(value={"restart_phrase": NAN, "restarts": NAN}, answer="errored")
        found = await find_restarts_aside(state.output.completion, task_of(state))
        phrases = "\n".join(f"- “{plain(restart.phrase)}”" for restart in found[:12])
        return Score(
            value={"restart_phrase": float(bool(found)), "restarts": float(len(found))},
            answer=str(len(found)),
            explanation=phrases or "No restart phrase.",
            metadata={
                "restarts": [restart._asdict() for restart in found[:20]],
                "detector": "words alone" if turn_reader() is None else "words and reader",
            },
        )

    return score
