"""Episodes to read: the few samples whose responses the report opens."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
from inspect_ai.log import EvalSample, read_eval_log_sample

from esr_eval.logs.conditions import Condition
from esr_eval.logs.measures import HOLISTIC
from esr_eval.report.evidence import Evidence
from esr_eval.report.section import Block, Section, count
from esr_eval.text import Characters, one_line, shown

EPISODES = 12
LEAST_DRIFTS = 3
"""Places kept for typical drifts, however many episodes have several attempts."""
MOST_GRADUAL = 3
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


class Pick(NamedTuple):
    """A sample to open, and why."""

    condition: Condition
    id: str
    epoch: int
    why: str


def episodes_section(evidence: Evidence) -> Section | None:
    """Up to 12 episodes: several attempts first, then gradual improvement, then typical drifts."""
    picks = choose(evidence.conditions)
    episodes = [found for pick in picks if (found := _opened(pick)) is not None]
    if not episodes:
        return None
    multi = sum(int((one.trials["multi_attempt"] == 1).sum()) for one in evidence.conditions)
    return Section(
        id="episodes",
        title="Episodes",
        question="What do the responses look like?",
        answers=[
            f"{count(len(episodes), 'response')} of {count(_total(evidence), 'scored trial')}, "
            f"{multi:,} of which hold several attempts. Attempts are highlighted as the judge "
            "found them; characters that would not show are spelled out."
        ],
        parts=[Block("episodes", episodes)],
    )


def choose(conditions: Sequence[Condition]) -> list[Pick]:
    """Samples to show, each trial of a log once, whatever the number of judges."""
    steered = [one for one in conditions if (one.trials["strength"] != 0).any()]
    multi = _ranked(steered, "change", lambda t: t["multi_attempt"] == 1, "several attempts")
    gradual = _ranked(
        steered,
        f"{HOLISTIC}improvement",
        lambda t: (t["multi_attempt"] != 1) & (t[f"{HOLISTIC}improving"] == 1),
        "improves without a restart",
    )
    taken: list[Pick] = []
    _take(taken, multi, EPISODES - LEAST_DRIFTS)
    _take(taken, gradual, min(EPISODES - LEAST_DRIFTS, len(taken) + MOST_GRADUAL))
    _take(taken, _typical(steered), EPISODES)
    return taken


def _total(evidence: Evidence) -> int:
    return sum(int(one.trials["first_score"].notna().sum()) for one in evidence.conditions)


def _ranked(conditions: Sequence[Condition], key: str, wanted: Any, why: str) -> list[Pick]:
    """Trials with the greatest values first; ties in the order of the logs."""
    rows: list[tuple[float, int, Pick]] = []
    for one in conditions:
        if key not in one.trials:
            continue
        table = one.trials[wanted(one.trials)]
        for identifier, epoch, value in table[["id", "epoch", key]].itertuples(index=False):
            rows.append((-value, len(rows), Pick(one, identifier, int(epoch), why)))
    return [pick for _, _, pick in sorted(rows, key=lambda row: row[:2])]


def _typical(conditions: Sequence[Condition]) -> list[Pick]:
    """Of each condition in turn, single attempts nearest to its median first score."""
    queues = []
    for one in conditions:
        table = one.trials[(one.trials["multi_attempt"] == 0) & (one.trials["strength"] != 0)]
        distance = (table["first_score"] - table["first_score"].median()).abs()
        nearest: pd.DataFrame = table.loc[distance.sort_values(kind="stable").index]
        queues.append(
            [
                Pick(one, identifier, int(epoch), "a typical drift")
                for identifier, epoch in nearest[["id", "epoch"]]
                .head(EPISODES)
                .itertuples(index=False)
            ]
        )
    return [queue[at] for at in range(EPISODES) for queue in queues if at < len(queue)]


def _take(taken: list[Pick], offered: Sequence[Pick], until: int) -> None:
    seen = {(pick.condition.log.path, pick.id, pick.epoch) for pick in taken}
    for pick in offered:
        if len(taken) >= until:
            return
        key = (pick.condition.log.path, pick.id, pick.epoch)
        if key not in seen:
            seen.add(key)
            taken.append(pick)


def _opened(pick: Pick) -> Episode | None:
    """Read the sample itself; only here is a response looked at."""
    log = pick.condition.log
    summary = next(s for s in log.samples if (str(s.id), s.epoch) == (pick.id, pick.epoch))
    sample = read_eval_log_sample(
        log.path, id=summary.id, epoch=pick.epoch, exclude_fields={"events", "attachments", "store"}
    )
    return episode(sample, pick.condition.scorer, pick.condition.name, pick.why)


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
