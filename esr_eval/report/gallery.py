"""Episodes to read: the few samples whose responses the report opens."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from inspect_ai.log import read_eval_log_sample

from esr_eval.logs.conditions import Condition
from esr_eval.logs.measures import HOLISTIC
from esr_eval.report.episodes import Episode, episode
from esr_eval.report.section import Block, Evidence, Section
from esr_eval.report.text import count

EPISODES = 12
LEAST_DRIFTS = 3
"""Places kept for typical drifts, however many episodes have several attempts."""
MOST_GRADUAL = 3


class Pick(NamedTuple):
    """A sample to open, and why."""

    condition: Condition
    id: str
    epoch: int
    why: str


def section(evidence: Evidence) -> Section | None:
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
