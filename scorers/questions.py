"""What a judge is asked, and how that question is read back, whatever the protocol.

What is judged is hostile data: it is fenced by a line that it cannot contain, and nothing in it is
an instruction. Questions are read back here as well, so that the offline judge reads exactly the
request that a hosted judge gets.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from inspect_ai.model import (
    ChatMessage,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ResponseSchema,
)
from inspect_ai.util import JSONSchema

_FENCE = re.compile(r"FENCE: (?P<fence>[0-9a-f]{16})\n")
_TRIAL = re.compile(r'TASK: (?P<task>".*")\nUNRELATED CONCEPT: (?P<label>".*")\n')


class Request(NamedTuple):
    """What a judge is asked about."""

    task: str
    label: str
    response: str


def fence(response: str) -> str:
    """A delimiter that the response cannot contain, the same for the same response.

    Derived from the response, so caching and determinism hold, and a model that writes the
    response cannot know it beforehand; should it occur all the same, the next one is taken.
    """
    salt = 0
    while True:
        text = f"{salt}:{response}".encode("utf-8", "surrogatepass")
        mark = hashlib.sha256(text).hexdigest()[:16]
        if mark not in response:
            return mark
        salt += 1


def enclose(header: str, text: str, what: str = "response") -> str:
    """A question: whole lines of header, then the fenced text.

    Args:
        header: What stands before the fence; every line of it ends in a newline.
        text: The hostile text.
        what: What the text is called in the line after it.
    """
    # Lone surrogates cannot be sent as JSON; one replacement character each keeps all offsets.
    text = text.encode("utf-8", "replace").decode()
    mark = fence(text)
    return (
        f"{header}FENCE: {mark}\n<<<{mark}\n{text}\n{mark}>>>\n"
        f"The {what} ended above. Reply with the JSON object only."
    )


def disclose(question: str, header: re.Pattern[str]) -> tuple[re.Match[str], str] | None:
    """Read `enclose`'s question back: the header's match and the text; None for any other."""
    head = header.match(question)
    marked = _FENCE.match(question, head.end()) if head else None
    if head is None or marked is None:
        return None
    rest = question[marked.end() :]
    opening, closing = f"<<<{marked['fence']}\n", f"\n{marked['fence']}>>>\n"
    end = rest.find(closing)
    if not rest.startswith(opening) or end < len(opening) - 1:
        return None
    return head, rest[len(opening) : end]


def trial_question(rubric: str, request: Request, kind: str | None = None) -> list[ChatMessage]:
    """Ask about one trial's response.

    Args:
        rubric: The protocol's instructions.
        request: The trial.
        kind: Name of the protocol, on a line of its own; None for the attempts' (the first there
            was, whose wording is kept).
    """
    # Task and label as JSON strings: whatever they contain, they stay on their own line.
    header = (
        f"{_kind_line(kind)}TASK: {json.dumps(request.task)}\n"
        f"UNRELATED CONCEPT: {json.dumps(request.label)}\n"
    )
    return [
        ChatMessageSystem(content=rubric),
        ChatMessageUser(content=enclose(header, request.response)),
    ]


def read_trial_question(messages: Sequence[ChatMessage], kind: str | None = None) -> Request:
    """Read `trial_question` back; follow-ups after a reply that was rejected are skipped.

    Raises:
        ValueError: The messages hold no such question.
    """
    header = re.compile(re.escape(_kind_line(kind)) + _TRIAL.pattern)
    for message in messages:
        read = disclose(message.text, header) if message.role == "user" else None
        if read is not None:
            head, response = read
            return Request(json.loads(head["task"]), json.loads(head["label"]), response)
    raise ValueError(f"the messages hold no grading request for {kind or 'attempts'}")


def _kind_line(kind: str | None) -> str:
    return "" if kind is None else f"REQUEST: {kind}\n"


def object_schema(**fields: JSONSchema) -> JSONSchema:
    """An object with these fields and no others."""
    return JSONSchema(
        type="object", properties=fields, required=list(fields), additionalProperties=False
    )


def request_config(
    name: str, description: str, max_tokens: int, **fields: JSONSchema
) -> GenerateConfig:
    """Settings of a request for a JSON object.

    Args:
        name: What the object is called.
        description: What it holds.
        max_tokens: Room for the reply.
        fields: What each field holds.
    """
    schema = ResponseSchema(
        name=name, description=description, json_schema=object_schema(**fields), strict=True
    )
    return GenerateConfig(temperature=0.0, max_tokens=max_tokens, response_schema=schema)
