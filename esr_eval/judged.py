"""Stored responses with the verdict of their judge of record, to be judged by others.

Source: the paper's cross-judge experiment: all multi-attempt responses and random others, at least
100 of every model.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from inspect_ai.log import (
    EvalLog,
    EvalSample,
    list_eval_logs,
    read_eval_log,
    read_eval_log_samples,
)
from pydantic import ValidationError

from esr_eval.errors import EsrError
from esr_eval.log_files import ATTEMPTS, reading, source_of, subject_of
from esr_eval.paths import given_path
from esr_eval.trial import Trial

CROSS_JUDGE = "cross_judge"


class Verdict(NamedTuple):
    """What a judge found: the scores of the attempts, in order."""

    judge: str
    scores: list[float]


class Judged(NamedTuple):
    """A stored response with the verdict that its log holds."""

    id: str
    subject: str
    trial: Trial
    text: str
    response: str
    record: Verdict

    @property
    def multi_attempt(self) -> bool:
        """Whether the judge of record found two attempts or more."""
        return len(self.record.scores) > 1


class Stored(NamedTuple):
    """Judged responses of some logs, the logs' own names, and what was left out and why."""

    responses: list[Judged]
    logs: list[dict[str, str]]
    left_out: dict[str, int]


def read_judged(source: str) -> Stored:
    """Read the responses of logs that a judge has scored.

    Args:
        source: Logs, comma-separated, or folders of logs; of a folder, logs without scores of
            `esr_eval/attempts` are left out and counted.

    Raises:
        EsrError: A log cannot be read or has no such scores, or there is no response at all.
    """
    found: dict[str, Judged] = {}
    logs: dict[str, dict[str, str]] = {}
    left_out: Counter[str] = Counter()
    for path, in_folder in _paths(source):
        with reading(path):
            header = read_eval_log(path, header_only=True)
        if not _is_scored(header):
            if in_folder:
                left_out["logs without scores of attempts"] += 1
                continue
            raise EsrError(
                f"{path} has no scores of esr_eval/attempts of its own responses: score it with "
                "`inspect score --scorer esr_eval/attempts`, or name another log."
            )
        logs[header.eval.eval_id] = source_of(header)
        for sample in read_eval_log_samples(path, all_samples_required=False):
            one = _judged(header, sample)
            if isinstance(one, str):
                left_out[one] += 1
            else:
                found[one.id] = one
    if not found:
        raise EsrError(f"There is no judged response in {source}.")
    return Stored(list(found.values()), list(logs.values()), dict(left_out))


def choose_judged(
    available: Sequence[Judged], n: int, min_per_model: int, seed: int
) -> list[Judged]:
    """Pick responses: all multi-attempt ones, then as many of every model, then random others.

    Args:
        available: What there is.
        n: How many to pick; fewer where there are fewer.
        min_per_model: Responses of each model, where it has as many and `n` leaves room.
        seed: Seed of the choice.

    Returns:
        The chosen ones, in the order in which they are available.

    Raises:
        EsrError: `n` cannot hold the multi-attempt responses.
    """
    chosen = [one for one in available if one.multi_attempt]
    if len(chosen) > n:
        raise EsrError(
            f"n={n} is less than the {len(chosen)} multi-attempt responses, all of which are "
            "judged: raise n, or name fewer logs as source."
        )
    others = [one for one in available if not one.multi_attempt]
    # Each response's place in the queue depends on its own id alone, not on its neighbours.
    others.sort(key=lambda one: random.Random(f"cross-judge-{seed}-{one.id}").random())  # noqa: S311
    counts = Counter(dict.fromkeys((one.subject for one in available), 0))
    counts.update(one.subject for one in chosen)
    queues = {name: [one for one in others if one.subject == name] for name in counts}
    while len(chosen) < n:
        short = [name for name in queues if queues[name] and counts[name] < min_per_model]
        if not short:
            break
        name = min(short, key=lambda name: counts[name])
        chosen.append(queues[name].pop(0))
        counts[name] += 1
    picked = {one.id for one in chosen}
    rest = [one for one in others if one.id not in picked]
    picked |= {one.id for one in rest[: n - len(chosen)]}
    return [one for one in available if one.id in picked]


def _paths(source: str) -> Iterator[tuple[str, bool]]:
    for part in (given_path(part.strip()) for part in source.split(",") if part.strip()):
        if Path(part).is_dir():
            for log in list_eval_logs(part, recursive=False, descending=False):
                yield log.name, True
        else:
            yield part, False


def _is_scored(header: EvalLog) -> bool:
    if (header.eval.metadata or {}).get("experiment_id") == CROSS_JUDGE:
        return False
    scores = header.results.scores if header.results else []
    return any(ATTEMPTS.fullmatch(score.scorer) for score in scores)


def _judged(header: EvalLog, sample: EvalSample) -> Judged | str:
    """The sample as a judged response, or why it is none."""
    scores = sample.scores or {}
    score = next((scores[name] for name in scores if ATTEMPTS.fullmatch(name)), None)
    if sample.error is not None or score is None:
        return "errored"
    if not sample.output.completion.strip():
        return "empty response"
    details = score.metadata or {}
    if not isinstance(score.value, dict) or score.value.get("unscored"):
        return "unscored by the judge of record"
    try:
        trial = Trial.model_validate(sample.metadata)
    except ValidationError:
        return "no ESR trial"
    asked = [message.text for message in sample.messages if message.role == "user"]
    epoch = "" if sample.epoch == 1 else f"-epoch{sample.epoch}"
    return Judged(
        id=f"{header.eval.eval_id[:8]}-{sample.id}{epoch}",
        subject=subject_of(header),
        trial=trial,
        text=asked[-1] if asked else str(sample.input),
        response=sample.output.completion,
        record=Verdict(
            str(details.get("judge", "?")),
            [float(attempt["score"]) for attempt in details.get("attempts", [])],
        ),
    )
