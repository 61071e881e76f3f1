"""What a training example is: files and mixes of them, their tokens, and which ones are good.

Whatever a writer is refused is counted by its reason.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esr_eval._util.files import write_whole
from esr_eval.dataset import FRAMES, Prompt
from esr_eval.errors import EsrError
from esr_eval.scorers.phrases import find_restarts

Part = Literal["off_topic", "correction", "on_topic"]
Kind = Literal["correction", "plain", "subject"]
SUBJECT_FRAME = "Tell me about {subject}."

MIN_DRIFT_WORDS = 4
MIN_ANSWER_WORDS = 12
MOST_DRIFT_SCORE = 45.0
"""Topicality (0-100, offline judge's measure) above which an off-topic part is not off-topic."""
LEAST_ANSWER_SCORE = 65.0
"""Topicality below which an answer does not answer its task."""

SUBJECT_SHARE = 0.2
"""Of a mix's normal answers, how many tell about a subject that was asked for."""
IGNORED = -100
"""Label of a token that the loss leaves out (PyTorch's convention)."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Segment(_Data):
    """A stretch of an answer, and whether the loss counts its tokens."""

    part: Part
    text: str = Field(min_length=1)
    trained: bool


class TrainingBoost(_Data):
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
    boost: TrainingBoost | None = Field(
        default=None, description="On in training; None leaves it off."
    )
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


def mix(
    examples: Sequence[Example], percent: float, count: int | None = None, seed: int = 0
) -> list[Example]:
    """Draw a training set of a given composition.

    Nothing is drawn twice, so all mixes of one size are equally varied.

    Args:
        examples: What there is.
        percent: Share of self-correction examples, 0 to 100.
        count: Size of the set; None takes the largest that the composition allows.
        seed: Seed of the draw and of the order.

    Returns:
        The set, shuffled.

    Raises:
        EsrError: There are too few examples of a kind.
    """
    if not 0 <= percent <= 100:
        raise EsrError(f"A mix has 0 to 100 percent self-correction, not {percent:g}.")
    rng = random.Random(f"mix-{seed}")  # noqa: S311
    pools: dict[str, list[Example]] = {"correction": [], "plain": [], "subject": []}
    for example in examples:
        pools[example.kind].append(example)
    for pool in pools.values():
        rng.shuffle(pool)
    share = {
        "correction": percent / 100,
        "plain": (1 - percent / 100) * (1 - SUBJECT_SHARE),
        "subject": (1 - percent / 100) * SUBJECT_SHARE,
    }
    if not pools["subject"]:
        share["plain"], share["subject"] = share["plain"] + share["subject"], 0.0
    most = min(int(len(pools[kind]) / part + 1e-9) for kind, part in share.items() if part > 0)
    wanted = most if count is None else count
    if wanted < 1 or wanted > most:
        has = ", ".join(f"{len(pool)} {kind}" for kind, pool in pools.items())
        raise EsrError(
            f"{wanted} examples at {percent:g} % self-correction are more than there are ({has}): "
            f"ask for at most {most}, or write more."
        )
    corrections = round(wanted * share["correction"])
    subjects = min(round(wanted * share["subject"]), wanted - corrections)
    chosen = (
        pools["correction"][:corrections]
        + pools["subject"][:subjects]
        + pools["plain"][: wanted - corrections - subjects]
    )
    rng.shuffle(chosen)
    return chosen


class Encoded(NamedTuple):
    """One example for the trainer.

    Attributes:
        input_ids: The chat with its answer, special tokens included.
        labels: The same ids where they are trained, `IGNORED` elsewhere.
        boost: What is on while it is trained.
    """

    input_ids: list[int]
    labels: list[int]
    boost: TrainingBoost | None


def encode(example: Example, tokenizer: Any, max_length: int) -> Encoded:
    """Turn an example into tokens; a token is trained if its segment is.

    The answer is tokenised whole, as the model would write it. A token that straddles a border
    belongs to the segment of its last character. The end of the answer is trained where the
    answer ends by itself.

    Raises:
        EsrError: Nothing of the example is trained within `max_length` tokens.
    """
    prompt_text = tokenizer.apply_chat_template(
        [{"role": "user", "content": example.prompt}], tokenize=False, add_generation_prompt=True
    )
    prompt = list(tokenizer(prompt_text, add_special_tokens=False)["input_ids"])
    answer = tokenizer(example.answer, add_special_tokens=False, return_offsets_mapping=True)
    borders = _borders(example)
    labels = [
        token if _trained_at(end - 1, borders) else IGNORED
        for token, (_, end) in zip(answer["input_ids"], answer["offset_mapping"], strict=True)
    ]
    ids = list(answer["input_ids"])
    if example.ended:
        ids.append(tokenizer.eos_token_id)
        labels.append(tokenizer.eos_token_id if example.segments[-1].trained else IGNORED)
    ids, labels = (prompt + ids)[:max_length], ([IGNORED] * len(prompt) + labels)[:max_length]
    if all(label == IGNORED for label in labels):
        raise EsrError(
            f"Example {example.id} has nothing to train within {max_length} tokens: "
            "raise the sequence length."
        )
    return Encoded(ids, labels, example.boost)


def _borders(example: Example) -> list[tuple[int, bool]]:
    """Where each segment ends in the answer, and whether it is trained."""
    borders, at = [], 0
    for segment in example.segments:
        at += len(segment.text)
        borders.append((at, segment.trained))
    return borders


def _trained_at(character: int, borders: Sequence[tuple[int, bool]]) -> bool:
    return next((trained for end, trained in borders if character < end), borders[-1][1])


@cache
def _listed(file: str) -> dict[str, Any]:
    text = resources.files("esr_eval.data").joinpath(file).read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@cache
def training_tasks() -> tuple[Prompt, ...]:
    """The tasks that training asks, every topic in both wordings of the evaluation."""
    return tuple(
        Prompt(topic=topic, text=frame.format(topic=topic))
        for topic in _listed("training_tasks.json")["how_to"]
        for frame in FRAMES.values()
    )


@cache
def off_topic_subjects() -> tuple[str, ...]:
    """The 50 subjects that written examples drift to."""
    return tuple(_listed("offtopic_subjects.json")["subjects"])


class Rejects:
    """How many examples were good, and how many were refused for which reason."""

    def __init__(self) -> None:
        self.good = 0
        self.reasons: Counter[str] = Counter()

    def add(self, reason: str) -> None:
        """Count one refused example."""
        self.reasons[reason] += 1

    def count(self, reason: str | None) -> bool:
        """Count an example; True when it is good."""
        if reason is None:
            self.good += 1
            return True
        self.add(reason)
        return False

    def in_words(self) -> str:
        """The counts in words."""
        refused = sum(self.reasons.values())
        why = "; ".join(f"{reason}: {n}" for reason, n in self.reasons.most_common())
        return f"{self.good} good examples, {refused} refused" + (f" ({why})" if why else "")


Topicality = Callable[[str, str, str], float]
"""How much a text is about a task, 0 to 100, given both and what it should not be about."""


class Checker:
    """Checks examples against the phrase detector and a measure of topicality."""

    def __init__(self, topicality: Topicality | None = None) -> None:
        """Use this measure of topicality, or the offline judge's."""
        if topicality is None:
            from esr_eval._util.minilm import sentence_encoder
            from esr_eval.judges.similarity import score_attempt

            topicality = partial(score_attempt, encoder=sentence_encoder())
        self._topicality = topicality

    def why_not(self, example: Example) -> str | None:
        """Why an example is not to be trained on; None when it is good."""
        answer = example.text_of("on_topic")
        if len(answer.split()) < MIN_ANSWER_WORDS:
            return "answer too short"
        restarts = find_restarts(example.answer, example.prompt)
        if example.kind != "correction":
            if restarts:
                return "restarts where nothing is to be corrected"
        else:
            drift = example.text_of("off_topic")
            if len(drift.split()) < MIN_DRIFT_WORDS:
                return "off-topic part too short"
            if not restarts:
                return "correction not explicit"
            words = example.text_of("correction")
            inside = range(len(drift) - 2, len(drift) + len(words))
            # An abrupt return to the task may be taken for a restart: here nothing returns.
            aside = find_restarts(f"{drift}{words} {drift}", example.prompt)
            if not any(one.start in inside for one in aside):
                return "correction not explicit"
            if len(restarts) > 1 or restarts[0].start not in inside:
                return "restarts somewhere else than in the correction"
            if self._topicality(drift, example.prompt, example.subject or "") > MOST_DRIFT_SCORE:
                return "off-topic part is on topic"
        if self._topicality(answer, example.prompt, example.subject or "") < LEAST_ANSWER_SCORE:
            return "answer is not about its task"
        return None


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
