"""What is asked about injected thoughts: wordings, unrelated questions, and what one probe is.

Sources of the protocol, decision by decision: docs/injected-thoughts.md.
"""

import json
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageUser
from pydantic import Field

from esr_eval.data.trial import Trial
from esr_eval.spec import Span

Wording = Literal["half", "rare", "hints", "unprompted"]
Form = Literal["free", "prefilled"]
SpanName = Literal["both", "question", "answer", "token"]
Kind = Literal["thought", "no", "yes"]
"""Whether a thought is asked about, or something unrelated, and its true answer."""

WORDINGS: tuple[Wording, ...] = get_args(Wording)
FORMS: tuple[Form, ...] = get_args(Form)
SPANS: dict[SpanName, Span] = {
    "both": Span(),
    "question": Span(positions="prompt"),
    "answer": Span(positions="generated"),
    "token": Span(positions="generated", until_token=1),
}
"""Where an injection acts. A given beginning of the answer counts to the question."""
AS_REPLAYED = "as replayed"
"""Dose of a latent that has the strength of another log's trials."""


class Probe(Trial):
    """One question, with or without an injection; a trial, and stored like one."""

    kind: Kind = Field(description="What is asked: about a thought, or something unrelated.")
    wording: Wording = Field(description="How it is introduced, and how a thought is asked about.")
    form: Form = Field(description="Whether the answer is given its beginning.")
    turn: int = Field(ge=0, description="Number of the concept's trial: what pairs belong to.")
    dose: str | None = Field(default=None, description="The strength as asked for, 0.6rms say.")
    layer: int | None = Field(default=None, description="Where it is injected.")
    span: SpanName | None = Field(default=None, description="Which positions it touches.")


@cache
def _texts() -> dict[str, Any]:
    text = resources.files("esr_eval.data").joinpath("thoughts.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def unrelated_questions(truth: Literal["no", "yes"]) -> tuple[str, ...]:
    """Questions that have nothing to do with thoughts, by their true answer."""
    return tuple(_texts()[truth])


def messages(wording: Wording, form: Form, number: int, question: str | None) -> list[ChatMessage]:
    """The conversation up to the answer.

    Args:
        wording: How the experiment is introduced.
        form: Whether the answer is given its beginning.
        number: Of the trial, as the model is told.
        question: An unrelated question; None asks about a thought.
    """
    texts = _texts()
    thought: str = texts["thought"][wording]
    asked = thought.format(number=number)
    if question is not None:
        marker = asked.partition(" ")[0]
        asked = texts["unrelated"].format(marker=marker, number=number, question=question)
    chat: list[ChatMessage] = [
        ChatMessageUser(content=texts["preambles"][wording]),
        ChatMessageAssistant(content=texts["reply"]),
        ChatMessageUser(content=asked),
    ]
    if form == "prefilled":
        chat.append(ChatMessageAssistant(content=texts["prefill"]))
    return chat
