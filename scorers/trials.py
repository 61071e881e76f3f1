"""What every scorer needs to know of a trial."""

import re
from collections.abc import Mapping

from inspect_ai.event import ErrorEvent, SpanBeginEvent
from inspect_ai.log import transcript
from inspect_ai.scorer import Score
from inspect_ai.solver import TaskState

from esr_eval.data.trial import Trial
from esr_eval.errors import EsrError
from esr_eval.scorers.secrets import without_secrets


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


_INVISIBLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+"
)
# The viewer renders explanations as markdown: what would become markup, a link, an image or a
# formula there is replaced by a character that only looks like it.
_MARKUP = str.maketrans(
    {
        "<": "‹", ">": "›", "[": "［", "]": "］", "`": "ˋ", "*": "∗", "_": "＿", "$": "＄",
        "|": "｜", "\\": "＼", "~": "～", "#": "＃", "&": "＆", "!": "！",
    }
)  # fmt: skip


def plain(text: str, limit: int = 160) -> str:
    """Text from a model or a file as one harmless line: no control marks, no markup, bounded."""
    text = _INVISIBLE.sub(" ", text[: 4 * limit]).translate(_MARKUP)
    text = " ".join(text.split()).replace("://", ": //").replace("www.", "www .")
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"
