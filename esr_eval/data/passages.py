"""Passages with known attempts, which judges and the phrase detector are tried on.

Each is an answer to a task, as a steered model may write it, with the attempts that its author put
into it and what each deserves. They are sorted by kind: ways to start over, and look-alikes that
correct nothing. Kinds whose split is "held_out" were never looked at while anything was fitted;
"fresh" ones are of kinds that were, in wordings that were not; "dev" is what things are fitted to.
"""

import json
import random
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esr_eval.data.arguments import SplitName, told
from esr_eval.errors import EsrError


class Attempt(BaseModel):
    """An attempt as its author labelled it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: str = Field(min_length=1, description="Its first words, as they stand in the text.")
    score: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="What it deserves, by the judges' rubric; without one it is only to be found.",
    )


class Passage(BaseModel):
    """An answer with known attempts; one attempt means that nothing in it starts over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: SplitName = Field(default="own", description="What it may be used for.")
    kind: str = Field(min_length=1, description="How it starts over, or what it looks like.")
    task: str = Field(min_length=1, description="What was asked.")
    label: str = Field(min_length=1, description="The unrelated concept.")
    text: str = Field(min_length=1, description="The answer.")
    attempts: tuple[Attempt, ...] = Field(min_length=1, description="In order.")

    @model_validator(mode="after")
    def _has_its_attempts(self) -> Self:
        self.starts()
        return self

    def starts(self) -> list[int]:
        """Where each attempt begins in the text.

        Raises:
            ValueError: One does not stand there, behind the one before it.
        """
        found: list[int] = []
        for number, attempt in enumerate(self.attempts, 1):
            at = self.text.find(attempt.first, found[-1] + 1 if found else 0)
            if at < 0:
                raise ValueError(
                    f"the first words of attempt {number} do not stand in the text"
                    + (", behind those of the attempt before" if found else "")
                )
            found.append(at)
        return found


def read_passages(path: str | Path | None = None) -> list[Passage]:
    """Read passages, one JSON object a line.

    Args:
        path: The file; None takes the passages that ship.

    Raises:
        EsrError: It cannot be read, a line is no passage, or there is none.
    """
    shipped = files("esr_eval.data") / "passages.jsonl"
    name = "the shipped passages" if path is None else str(path)
    try:
        text = (shipped if path is None else Path(path)).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise EsrError(f"{name} cannot be read: {why}.") from None
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(Passage.model_validate(json.loads(line)))
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            said = f"{place}: {told(error)}" if place else told(error)
        except (ValueError, RecursionError):
            said = "it is no JSON"
        else:
            continue
        raise EsrError(
            f"Line {number} of {name} is no passage ({said}): it takes kind, task, label, text and "
            "attempts, each with its first words and, where known, its score from 0 to 100."
        )
    if not found:
        raise EsrError(f"There is no passage in {name}.")
    return found


def choose_passages(
    passages: Sequence[Passage], split: str | None, limit: int | None, seed: int
) -> list[Passage]:
    """Some of the passages, in their order.

    Args:
        passages: All of them.
        split: Only this split's.
        limit: No more than these, drawn at random.
        seed: Of the draw.

    Raises:
        EsrError: There is none of that split.
    """
    chosen = [one for one in passages if split in (None, one.split)]
    if not chosen:
        there = ", ".join(dict.fromkeys(one.split for one in passages))
        raise EsrError(f"There is no passage of the split {split}; there are: {there}.")
    if limit is None or limit >= len(chosen):
        return chosen
    drawn = random.Random(f"passages-{seed}").sample(range(len(chosen)), limit)  # noqa: S311
    return [chosen[at] for at in sorted(drawn)]
