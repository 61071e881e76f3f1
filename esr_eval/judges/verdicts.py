"""The offline judge's verdict: attempts by restart phrases, scores by topicality."""

import json
import re

from esr_eval.judges.topicality import Encoder, score_attempt, words_of
from esr_eval.scorers.phrases import find_restarts
from esr_eval.scorers.rubric import Request

MAX_ATTEMPTS = 32
"""Attempts reported; what follows belongs to the last one."""

_QUOTE_WORDS = 6
_QUOTE_CHARACTERS = 120
_QUESTION_WORDS = 40


def verdict(request: Request, encoder: Encoder) -> str:
    """Judge a response as JSON, in the form that the rubric asks for.

    The text is only measured, never read as instructions: nothing in it can address this judge.
    """
    task, label, response = request
    found = [
        {**quotes(attempt), "score": round(score_attempt(content, task, label, encoder))}
        for attempt, content in _attempts(response)
    ]
    return json.dumps({"attempts": found}, ensure_ascii=False, separators=(",", ":"))


def _attempts(response: str) -> list[tuple[str, str]]:
    """Each attempt as it stands, and its content without the words of the restart."""
    if not words_of(response[:2000]) and not words_of(response):
        return []
    if _only_asks(response):
        return []
    restarts = find_restarts(response)[: MAX_ATTEMPTS - 1]
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
    first = re.match(rf"\S+(?:\s+\S+){{0,{_QUOTE_WORDS - 1}}}", attempt[: 4 * _QUOTE_CHARACTERS])
    last = re.search(rf"\S+(?:\s+\S+){{0,{_QUOTE_WORDS - 1}}}$", attempt[-4 * _QUOTE_CHARACTERS :])
    head = first[0] if first else attempt
    tail = last[0] if last else attempt
    return {"first": head[:_QUOTE_CHARACTERS].strip(), "last": tail[-_QUOTE_CHARACTERS:].strip()}
