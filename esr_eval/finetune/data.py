"""What a training example is, and files of them."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esr_eval._util.files import write_whole
from esr_eval.errors import EsrError

Part = Literal["off_topic", "correction", "on_topic"]
Kind = Literal["correction", "plain", "subject"]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Segment(_Data):
    """A stretch of an answer, and whether the loss counts its tokens."""

    part: Part
    text: str = Field(min_length=1)
    trained: bool


class Push(_Data):
    """The boost that is on while the example is trained: strength * W_dec[latent]."""

    latent: int = Field(ge=0)
    strength: float = Field(gt=0, allow_inf_nan=False)


class Example(_Data):
    """One task with an answer in segments.

    A "correction" has three parts: off-topic text (never trained), the words that notice it, and
    an answer to the task. A "plain" example answers a task and a "subject" one tells about an
    off-topic subject that was asked for: neither restarts, so that the words of a restart are not
    learned for any text whatever.
    """

    id: str
    kind: Kind
    prompt: str = Field(min_length=1, description="The user's message.")
    topic: str = Field(description="The task's topic, or the subject that is asked about.")
    segments: tuple[Segment, ...] = Field(min_length=1)
    ended: bool = Field(description="Whether the answer ends by itself: then its end is trained.")
    subject: str | None = Field(default=None, description="What the off-topic part drifts to.")
    boost: Push | None = Field(default=None, description="On in training; None leaves it off.")
    writer: str = Field(description="The model that wrote it, or `offline`.")

    @model_validator(mode="after")
    def _parts_in_order(self) -> Self:
        parts = [segment.part for segment in self.segments]
        expected = ["off_topic", "correction", "on_topic"] if self.kind == "correction" else None
        if parts != (expected or ["on_topic"]):
            raise ValueError(f"a {self.kind} example cannot have the parts {', '.join(parts)}")
        if any(s.part == "off_topic" and s.trained for s in self.segments):
            raise ValueError("off-topic text is never trained")
        return self

    def text_of(self, part: Part) -> str:
        """The text of a part; empty where the example has none."""
        return "".join(segment.text for segment in self.segments if segment.part == part)

    @property
    def answer(self) -> str:
        """The whole answer."""
        return "".join(segment.text for segment in self.segments)


def read_examples(path: Path) -> list[Example]:
    """Read a file of examples, one JSON object a line.

    Raises:
        EsrError: It cannot be read, or a line is no example.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise EsrError(f"The examples {path} cannot be read: {error.strerror}.") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(Example.model_validate_json(line))
        except ValidationError as error:
            told = error.errors()[0]["msg"]
            raise EsrError(f"Line {number} of {path} is no training example: {told}.") from None
    if not found:
        raise EsrError(f"{path} holds no training examples.")
    return found


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write a file of examples; a run cut short leaves the old file as it was."""
    write_whole(path, "".join(one.model_dump_json() + "\n" for one in examples).encode())


class Journal:
    """JSON lines that are appended one by one, so that an interrupted run goes on.

    A last line that was cut short in writing is dropped.
    """

    def __init__(self, path: Path) -> None:
        """Open a journal and read what it holds already."""
        self.path = path
        self.entries: list[dict[str, object]] = []
        kept = []
        for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
            try:
                self.entries.append(json.loads(line))
            except ValueError:
                break
            kept.append(line + "\n")
        write_whole(path, "".join(kept).encode())

    def append(self, entries: Iterable[dict[str, object]]) -> None:
        """Add entries and see them to the disk."""
        new = list(entries)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in new)
            file.flush()
            os.fsync(file.fileno())
        self.entries += new
