"""Trials of a stored log, to be run again under another condition, trial by trial."""

import logging
from typing import NamedTuple

from inspect_ai.log import (
    EvalSample,
    EvalSampleSummary,
    read_eval_log,
    read_eval_log_sample_summaries,
    read_eval_log_samples,
)
from pydantic import ValidationError

from esr_eval._util.paths import given_path
from esr_eval.data.trial import Condition, Trial
from esr_eval.dataset import Planned
from esr_eval.errors import EsrError
from esr_eval.logs.reading import reading, source_of

logger = logging.getLogger(__name__)


class Replayed(NamedTuple):
    """A log's trials, and how a new log names where they came from."""

    planned: list[Planned]
    source: dict[str, str]


class Response(NamedTuple):
    """A log's trial with what was asked and answered."""

    trial: Trial
    text: str
    response: str


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
        trial = _trial(path, summary)
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
            Response(_trial(path, sample), str(sample.input), sample.output.completion)
            for sample in read_eval_log_samples(path, all_samples_required=False)
            if sample.epoch == 1 and sample.error is None and sample.output.completion.strip()
        ]
    if not responses:
        raise EsrError(f"The log {path} holds no responses.")
    return responses, source_of(header)


def _trial(path: str, sample: EvalSampleSummary | EvalSample) -> Trial:
    try:
        return Trial.model_validate(sample.metadata)
    except ValidationError:
        raise EsrError(
            f"Sample {sample.id} of {path} carries no ESR trial: replay a log of esr_eval/esr or "
            "one of its variants."
        ) from None
