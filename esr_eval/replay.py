"""Trials of a stored log, to be run again under another condition, trial by trial."""

from pathlib import Path
from typing import NamedTuple

from inspect_ai.log import read_eval_log, read_eval_log_sample_summaries
from pydantic import ValidationError

from esr_eval.dataset import Planned
from esr_eval.errors import EsrError
from esr_eval.trial import Condition, Trial


class Replayed(NamedTuple):
    """A log's trials, and how a new log names where they came from."""

    planned: list[Planned]
    source: dict[str, str]


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
    if not Path(path).is_file() and "://" not in path:
        raise EsrError(f"There is no log {path} to replay.")
    try:
        header = read_eval_log(path, header_only=True)
        summaries = read_eval_log_sample_summaries(path)
    except Exception as error:  # Inspect's readers raise whatever zip, JSON and files raise
        raise EsrError(f"The log {path} cannot be read ({type(error).__name__}).") from error
    planned = []
    for summary in sorted(summaries, key=lambda s: (s.epoch, str(s.id))):
        if summary.epoch != 1:
            continue
        try:
            trial = Trial.model_validate(summary.metadata)
        except ValidationError:
            raise EsrError(
                f"Sample {summary.id} of {path} carries no ESR trial: replay a log of "
                "esr_eval/esr or one of its variants."
            ) from None
        if condition == "steered" and trial.condition != "steered":
            raise EsrError(f"The log {path} is unsteered: it has no strengths to replay.")
        if condition == "unsteered":
            trial = trial.model_copy(update={"condition": "unsteered", "strength": 0.0})
        planned.append(Planned(trial, str(summary.input)))
    if not planned:
        raise EsrError(f"The log {path} holds no trials to replay.")
    source = {"eval_id": header.eval.eval_id, "task": header.eval.task, "model": header.eval.model}
    return Replayed(planned, source)
