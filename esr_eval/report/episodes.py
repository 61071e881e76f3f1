"""One response with its attempts marked, shortened, and nothing in it trusted."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from inspect_ai.log import EvalSample

from esr_eval.text import Characters, one_line, shown

LENGTH = 3000
"""Characters of a response that are shown."""
MOST_PIECES = 12
LEAST_PIECE = 160


class Piece(NamedTuple):
    """A stretch of the response.

    Attributes:
        head: Its beginning, or all of it.
        omitted: Characters left out after the head.
        tail: Its end.
        number: Of the attempt that it is; None between attempts.
        score: Of the attempt.
    """

    head: list[Characters]
    omitted: int
    tail: list[Characters]
    number: int | None
    score: float | None


class Episode(NamedTuple):
    """One response with its attempts marked."""

    condition: str
    why: str
    label: str
    facts: str
    task: str
    scores: str
    pieces: list[Piece]
    more: int
    length: int


def episode(sample: EvalSample, scorer: str, condition: str, why: str) -> Episode | None:
    """What is shown of a sample; None when it has no response.

    Args:
        sample: With its output and scores.
        scorer: Whose attempts are marked.
        condition: What it ran under.
        why: Why it is shown.
    """
    response = sample.output.completion
    if not response:
        return None
    spans = _spans(sample, scorer, len(response))
    pieces, more = _pieces(response, spans)
    trial = sample.metadata
    return Episode(
        condition=one_line(condition),
        why=why,
        label=one_line(str(trial.get("label", ""))),
        facts=_facts(trial),
        task=one_line(_task(sample), 300),
        scores=" → ".join(f"{score:.0f}" for _, _, score in spans[:MOST_PIECES]),
        pieces=pieces,
        more=more,
        length=len(response),
    )


def _facts(trial: dict[str, Any]) -> str:
    strength = trial.get("strength")
    told = f"{strength:.4g}" if isinstance(strength, int | float) else "?"
    return f"latent {trial.get('latent')}, strength {told}, seed {trial.get('seed')}"


def _task(sample: EvalSample) -> str:
    if isinstance(sample.input, str):
        return sample.input
    return next((message.text for message in sample.input if message.role == "user"), "")


def _spans(sample: EvalSample, scorer: str, length: int) -> list[tuple[int, int, float]]:
    """Attempts as start, end and score, in order and without overlap; nothing else is trusted."""
    score = (sample.scores or {}).get(scorer)
    listed = ((score.metadata if score else None) or {}).get("attempts")
    found: list[tuple[int, int, float]] = []
    for one in listed if isinstance(listed, list) else []:
        try:
            start, end, given = int(one["start"]), int(one["end"]), float(one["score"])
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        end = min(end, length)
        if (found[-1][1] if found else 0) <= start < end and math.isfinite(given):
            found.append((start, end, given))
    return found


def _pieces(response: str, spans: Sequence[tuple[int, int, float]]) -> tuple[list[Piece], int]:
    """The response cut at its attempts, shortened to about `LENGTH` characters in all."""
    cuts = list(_cut(len(response), spans))
    shown_cuts, rest = cuts[:MOST_PIECES], cuts[MOST_PIECES:]
    room = _rooms([end - start for start, end, _, _ in shown_cuts])
    pieces = []
    for (start, end, number, score), size in zip(shown_cuts, room, strict=True):
        text = response[start:end]
        if len(text) <= size:
            pieces.append(Piece(shown(text), 0, [], number, score))
            continue
        head, tail = text[: 2 * size // 3], text[len(text) - size // 3 :]
        pieces.append(
            Piece(shown(head), len(text) - len(head) - len(tail), shown(tail), number, score)
        )
    return pieces, sum(end - start for start, end, _, _ in rest)


def _cut(
    length: int, spans: Sequence[tuple[int, int, float]]
) -> Iterator[tuple[int, int, int | None, float | None]]:
    cursor = 0
    for number, (start, end, score) in enumerate(spans, 1):
        if start > cursor:
            yield cursor, start, None, None
        yield start, end, number, score
        cursor = end
    if cursor < length:
        yield cursor, length, None, None


def _rooms(sizes: Sequence[int]) -> list[int]:
    """How many characters each piece may take: short ones all theirs, long ones share the rest."""
    rooms = [0] * len(sizes)
    left, places = LENGTH, sorted(range(len(sizes)), key=lambda at: sizes[at])
    for done, at in enumerate(places):
        rooms[at] = min(sizes[at], max(LEAST_PIECE, left // (len(places) - done)))
        left -= rooms[at]
    return rooms
