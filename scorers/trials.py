"""What every scorer needs to know of a trial, and how a judge's verdict on one becomes a score."""

from collections.abc import Mapping
from typing import Any

from inspect_ai.event import ErrorEvent, SpanBeginEvent
from inspect_ai.log import transcript
from inspect_ai.scorer import Score
from inspect_ai.solver import TaskState

from esr_eval.data.trial import Trial
from esr_eval.errors import EsrError
from esr_eval.scorers.cleaning import plain, without_secrets
from esr_eval.scorers.grader import Answered


def trial_of(state: TaskState) -> Trial:
    """The trial's metadata.

    Raises:
        EsrError: The sample is not an ESR trial.
    """
    try:
        return state.metadata_as(Trial)
    except ValueError:
        raise EsrError(
            f"Sample {state.sample_id} carries no ESR trial (condition, latent, label, strength, "
            "topic, seed) in its metadata, so it cannot be scored."
        ) from None


def task_of(state: TaskState) -> str:
    """What the model was asked: the last user message, or the sample's input."""
    for message in reversed(state.messages):
        if message.role == "user":
            return message.text
    return state.input_text


def errored() -> str | None:
    """The error that ended the sample before scoring, if one did.

    With `Task(score_on_error=True)` scorers see such samples, but neither their state nor Inspect's
    public interface says so: the transcript does, by an error event before the scorers' span. One
    after it is a scorer's own (of an earlier run, when a stored log is scored again), and the
    response is whole.
    """
    for event in transcript().events:
        if isinstance(event, SpanBeginEvent) and event.name == "scorers":
            return None
        if isinstance(event, ErrorEvent):
            return event.error.message
    return None


def failed(judge: str, values: Mapping[str, float]) -> Score | None:
    """The score of a sample that ended before it had a response; None where it has one.

    Args:
        judge: Who would have judged.
        values: A failed trial's numbers.
    """
    message = errored()
    if message is None:
        return None
    return Score(
        value=dict(values),
        answer="errored",
        explanation=f"Failed before there was a response: {plain(without_secrets(message), 400)}",
        reason="scoring_failed",
        metadata={"judge": judge},
    )


def judged(
    verdict: Answered[Any],
    judge: str,
    rubric: int,
    values: Mapping[str, float],
    answer: str,
    explanation: str,
    **details: Any,
) -> Score:
    """The score of a trial that a judge was asked about.

    Args:
        verdict: What the judge said.
        judge: Its name.
        rubric: Version of the wording that it was asked in.
        values: The trial's numbers.
        answer: The verdict in a few words.
        explanation: The verdict with its evidence.
        details: What tables and later analyses need, and no more: the log holds it twice.
    """
    asked = f", asked {verdict.retries + 1} times" if verdict.retries else ""
    return Score(
        value=dict(values),
        answer=answer,
        explanation=f"{explanation}\n- Judge: {plain(judge)}{asked}",
        reason=None if verdict.value is not None else "grader_failed",
        metadata={
            "judge": judge,
            "rubric": rubric,
            **details,
            "retries": verdict.retries,
            "unscored_because": verdict.reason,
        },
    )


def unscored_because(verdict: Answered[Any]) -> str:
    """Why a verdict could not be used, for the viewer."""
    return f"Unscored: {plain(verdict.problem, 300)}"
