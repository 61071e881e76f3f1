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
from esr_eval.report.strips import Strips, strips_of
from esr_eval.text import Characters, one_line, shown

EPISODES = 36
LEAST_DRIFTS = 10
"""Places kept for typical drifts, however many episodes have several attempts."""
MOST_GRADUAL = 8
MOST_UNSTEERED = 4
"""Unsteered answers beside them, to compare with."""
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


class Attempt(NamedTuple):
    """A column of an episode: an attempt, and what stands between it and the next."""

    pieces: list[Piece]


class Episode(NamedTuple):
    """One response with its attempts marked.

    Attributes:
        condition: What it ran under.
        place: Of that condition, for filters.
        latent: What was boosted, for filters.
        restarts: Whether it holds several attempts.
        better: Whether the last scores above the first; None where there are not several.
        why: Why it is shown.
        label: Of the latent.
        facts: About the trial.
        task: What was asked.
        scores: Of the attempts.
        attempts: The response, cut at its attempts.
        more: Characters left out at its end.
        length: Of the response.
        strips: Activations over its text, where a log has them.
    """

    condition: str
    place: int
    latent: int
    restarts: bool
    better: bool | None
    why: str
    label: str
    facts: str
    task: str
    scores: str
    attempts: list[Attempt]
    more: int
    length: int
    strips: Strips | None


class Browser(NamedTuple):
    """Episodes, and what they can be filtered by: a class of the page, and what it says."""

    episodes: list[Episode]
    conditions: list[tuple[str, str]]
    latents: list[tuple[str, str]]
    restarts: tuple[tuple[str, str], ...] = (
        ("restart-yes", "starts over"),
        ("restart-no", "does not"),
    )
    improvements: tuple[tuple[str, str], ...] = (
        ("better-yes", "ends better"),
        ("better-no", "does not"),
    )

    @property
    def classes(self) -> list[str]:
        """All that can be chosen."""
        choices = (*self.conditions, *self.latents, *self.restarts, *self.improvements)
        return [value for value, _ in choices]


class Pick(NamedTuple):
    """A sample to open, and why."""

    condition: Condition
    id: str
    epoch: int
    why: str


def episodes_section(evidence: Evidence) -> Section | None:
    """Episodes to leaf through: several attempts first, then gradual improvement, then drifts."""
    strips = _strips(evidence)
    places = {one.name: at for at, one in enumerate(evidence.conditions)}
    picks = choose(evidence.conditions)
    opened = [_opened(pick, places[pick.condition.name]) for pick in picks]
    episodes = [
        episode._replace(strips=strips.get((episode.latent, response)))
        for found in opened
        if found is not None
        for episode, response in [found]
    ]
    if not episodes:
        return None
    multi = sum(int((one.trials["multi_attempt"] == 1).sum()) for one in evidence.conditions)
    conditions = {f"c{one.place}": one.condition for one in episodes}
    latents = {f"l{one.latent}": f"{one.latent} {one.label}".strip() for one in episodes}
    return Section(
        id="episodes",
        title="Episodes",
        question="What do the responses look like?",
        answers=[
            f"{count(len(episodes), 'response')} of {count(_total(evidence), 'scored trial')}, "
            f"{multi:,} of which hold several attempts. Attempts stand side by side as the judge "
            "found them; characters that would not show are spelled out."
        ],
        parts=[
            Block(
                "episodes",
                Browser(
                    episodes,
                    sorted(conditions.items(), key=lambda item: int(item[0][1:])),
                    sorted(latents.items(), key=lambda item: int(item[0][1:])),
                ),
            )
        ],
    )


def _strips(evidence: Evidence) -> dict[tuple[int, str], Strips]:
    """Activations by latent and response, for the episodes that a log has them of."""
    return {
        (trace.trial.latent, trace.response): strips
        for _, found in evidence.traces[0]
        for trace, strips in zip(found.traces, strips_of(found, found.traces), strict=False)
    }


def choose(conditions: Sequence[Condition]) -> list[Pick]:
    """Samples to show, each trial of a log once, whatever the number of judges."""
    steered = [one for one in conditions if (one.trials["strength"] != 0).any()]
    unsteered = [one for one in conditions if one.steering == "unsteered"]
    multi = _ranked(conditions, "change", lambda t: t["multi_attempt"] == 1, "several attempts")
    gradual = _ranked(
        steered,
        f"{HOLISTIC}improvement",
        lambda t: (t["multi_attempt"] != 1) & (t[f"{HOLISTIC}improving"] == 1),
        "improves without a restart",
    )
    taken: list[Pick] = []
    _take(taken, multi, EPISODES - LEAST_DRIFTS)
    _take(taken, gradual, min(EPISODES - LEAST_DRIFTS, len(taken) + MOST_GRADUAL))
    _take(
        taken, _typical(steered, "a typical drift"), max(len(taken) + LEAST_DRIFTS, EPISODES // 2)
    )
    _take(taken, _typical(unsteered, "an unsteered answer"), len(taken) + MOST_UNSTEERED)
    return taken


def _total(evidence: Evidence) -> int:
    return sum(int(one.trials["first_score"].notna().sum()) for one in evidence.conditions)


def _ranked(conditions: Sequence[Condition], key: str, wanted: Any, why: str) -> list[Pick]:
    """Of each condition in turn: the greatest value, the least, the next greatest, and so on."""
    queues = []
    for one in conditions:
        if key not in one.trials:
            continue
        table = one.trials[wanted(one.trials)].sort_values(key, ascending=False, kind="stable")
        found = [
            Pick(one, identifier, int(epoch), why)
            for identifier, epoch in table[["id", "epoch"]].itertuples(index=False)
        ]
        ends = [
            found[at // 2] if at % 2 == 0 else found[-(at + 1) // 2] for at in range(len(found))
        ]
        queues.append(ends[:EPISODES])
    return _in_turn(queues)


def _typical(conditions: Sequence[Condition], why: str) -> list[Pick]:
    """Of each condition in turn, single attempts nearest to its median first score."""
    queues = []
    for one in conditions:
        boosted = (one.trials["strength"] != 0) | (one.steering == "unsteered")
        table = one.trials[(one.trials["multi_attempt"] == 0) & boosted]
        distance = (table["first_score"] - table["first_score"].median()).abs()
        nearest: pd.DataFrame = table.loc[distance.sort_values(kind="stable").index]
        queues.append(
            [
                Pick(one, identifier, int(epoch), why)
                for identifier, epoch in nearest[["id", "epoch"]]
                .head(EPISODES)
                .itertuples(index=False)
            ]
        )
    return _in_turn(queues)


def _in_turn(queues: Sequence[Sequence[Pick]]) -> list[Pick]:
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


def _opened(pick: Pick, place: int) -> tuple[Episode, str] | None:
    """Read the sample itself; only here is a response looked at."""
    log = pick.condition.log
    summary = next(s for s in log.samples if (str(s.id), s.epoch) == (pick.id, pick.epoch))
    sample = read_eval_log_sample(
        log.path, id=summary.id, epoch=pick.epoch, exclude_fields={"events", "attachments", "store"}
    )
    found = episode(sample, pick.condition.scorer, pick.condition.name, pick.why)
    return None if found is None else (found._replace(place=place), sample.output.completion)


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
    several = len(spans) > 1
    return Episode(
        condition=one_line(condition),
        place=0,
        latent=int(trial["latent"]),
        restarts=several,
        better=spans[-1][2] > spans[0][2] if several else None,
        why=why,
        label=one_line(str(trial.get("label", ""))),
        facts=_facts(trial),
        task=one_line(_task(sample), 300),
        scores=" → ".join(f"{score:.0f}" for _, _, score in spans[:MOST_PIECES]),
        attempts=_columns(pieces),
        more=more,
        length=len(response),
        strips=None,
    )


def _columns(pieces: Sequence[Piece]) -> list[Attempt]:
    """An attempt each, with what follows it; what comes before the first stands with it."""
    columns: list[Attempt] = []
    for piece in pieces:
        begins = piece.number is not None and any(
            one.number for col in columns for one in col.pieces
        )
        if not columns or begins:
            columns.append(Attempt([]))
        columns[-1].pieces.append(piece)
    return columns


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
