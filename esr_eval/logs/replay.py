"""Trials of a stored log, to be run again; its judged responses, to be judged by others.

Source of the latter: the paper's cross-judge experiment: all multi-attempt responses and random
others, at least 100 of every model.
"""

import logging
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from inspect_ai.log import (
    EvalLog,
    EvalSample,
    read_eval_log,
    read_eval_log_sample_summaries,
    read_eval_log_samples,
)

from esr_eval._util.paths import given_path
from esr_eval.data.trial import Condition, Trial
from esr_eval.dataset import Planned
from esr_eval.errors import EsrError
from esr_eval.logs.reading import ATTEMPTS, read_each, read_trial, reading, source_of, subject_of

logger = logging.getLogger(__name__)

OFF_TOPIC = 50.0
"""A steered answer whose first attempt scored less is taken for off-topic."""
NOT_OURS = ": replay a log of esr_eval/esr or one of its variants."


class Replayed(NamedTuple):
    """A log's trials, and how a new log names where they came from."""

    planned: list[Planned]
    source: dict[str, str]


class Response(NamedTuple):
    """A log's trial with what was asked and answered."""

    trial: Trial
    text: str
    response: str
    first_score: float | None = None
    """Of its first attempt, by the log's first judge; None where there is no verdict."""


def replay_log(path: str, condition: Condition | None = None) -> Replayed:
    """Read the latents, strengths, tasks and seeds of a log.

    Args:
        path: An Inspect log of one of this project's tasks.
        condition: Turn the boost off ("unsteered"), or insist that it is on; None leaves each
            trial as it was.

    Raises:
        EsrError: The log cannot be read, holds no trials, or was itself unsteered where a boost
            is asked for.
    """
    path = given_path(path)
    with reading(path):
        header = read_eval_log(path, header_only=True)
        summaries = read_eval_log_sample_summaries(path)
    place = {name: at for at, name in enumerate(header.eval.dataset.sample_ids or [])}
    planned = []
    unfound = 0
    for summary in sorted(summaries, key=lambda s: place.get(s.id, len(place))):
        if summary.epoch != 1:
            continue
        trial = read_trial(path, summary, NOT_OURS)
        if trial.pending:  # it failed before its latent or strength was found
            unfound += 1
            continue
        if condition == "steered" and trial.condition != "steered":
            raise EsrError(f"The log {path} is unsteered: it has no strengths to replay.")
        if condition == "unsteered":
            off = {"condition": "unsteered", "strength": 0.0, "strength_found": None}
            trial = trial.model_copy(update=off)
        if not isinstance(summary.input, str):
            raise EsrError(f"The log {path} gave its answers a beginning: it cannot be replayed.")
        planned.append(Planned(trial, summary.input))
    if not planned:
        raise EsrError(f"The log {path} holds no trials to replay.")
    if unfound:
        logger.warning("%s: %d trials without a strength are not replayed.", path, unfound)
    return Replayed(planned, source_of(header))


def read_responses(path: str) -> tuple[list[Response], dict[str, str]]:
    """Every trial of a log that has a response, and how a new log names that log.

    Raises:
        EsrError: The log cannot be read, or holds no trials.
    """
    path = given_path(path)
    with reading(path):
        header = read_eval_log(path, header_only=True)
        responses = [
            Response(
                read_trial(path, sample, NOT_OURS),
                str(sample.input),
                sample.output.completion,
                _first_score(sample),
            )
            for sample in read_eval_log_samples(path, all_samples_required=False)
            if sample.epoch == 1 and sample.error is None and sample.output.completion.strip()
        ]
    if not responses:
        raise EsrError(f"The log {path} holds no responses.")
    return responses, source_of(header)


def _first_score(sample: EvalSample) -> float | None:
    scores = sample.scores or {}
    value = next((scores[name].value for name in scores if ATTEMPTS.fullmatch(name)), None)
    found = value.get("first_score") if isinstance(value, dict) else None
    return None if not isinstance(found, int | float) or math.isnan(found) else float(found)


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
    """Judged responses of some logs, the logs' own names, and what was left out and why.

    Attributes:
        responses: What there is to judge.
        logs: Where it came from.
        left_out: Responses that are none, counted by reason.
        notes: Logs that were left out, a sentence each.
    """

    responses: list[Judged]
    logs: list[dict[str, str]]
    left_out: dict[str, int]
    notes: list[str]


def read_judged(source: str) -> Stored:
    """Read the responses of logs that a judge has scored.

    Args:
        source: Logs, comma-separated, or folders of logs. Which logs count is said in
            `esr_eval.logs.reading.read_each`.

    Raises:
        EsrError: A log that is named cannot be read or has no scores of `esr_eval/attempts`, or
            there is no response at all.
    """
    found: dict[str, Judged] = {}
    logs: dict[str, dict[str, str]] = {}
    left_out: Counter[str] = Counter()
    notes: list[str] = []
    paths = [given_path(part.strip()) for part in source.split(",") if part.strip()]
    for header, samples in read_each(paths, _scored_log, notes.append):
        logs[header.eval.eval_id] = source_of(header)
        for one in samples:
            if isinstance(one, str):
                left_out[one] += 1
            else:
                found[one.id] = one
    if not found:
        raise EsrError(f"There is no judged response in {source}.")
    return Stored(list(found.values()), list(logs.values()), dict(left_out), notes)


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


def _scored_log(path: str) -> tuple[EvalLog, list[Judged | str]]:
    """A log's header and, of each sample, the judged response or why it is none."""
    with reading(path):
        header = read_eval_log(path, header_only=True)
        if not _is_scored(header):
            raise EsrError(
                f"{path} has no scores of esr_eval/attempts of its own responses: score it with "
                "`inspect score --scorer esr_eval/attempts`, or name another log."
            )
        samples = read_eval_log_samples(path, all_samples_required=False)
        return header, [_judged(header, sample) for sample in samples]


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
        trial = read_trial("the log", sample)
    except EsrError:
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
