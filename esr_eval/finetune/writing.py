"""What both writers share: tasks, subjects and words to write with, and checks of what is written.

Whatever is refused is counted by its reason.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from esr_eval._util.files import write_whole
from esr_eval.dataset import FRAMES, Prompt
from esr_eval.finetune.examples import Example
from esr_eval.scorers.phrases import find_restarts

SUBJECT_FRAME = "Tell me about {subject}."

MIN_DRIFT_WORDS = 4
MIN_ANSWER_WORDS = 12
MOST_DRIFT_SCORE = 45.0
"""Topicality (0-100, offline judge's measure) above which an off-topic part is not off-topic."""
LEAST_ANSWER_SCORE = 65.0
"""Topicality below which an answer does not answer its task."""

OPENINGS = (
    "Wait, that's not right.",
    "Wait, that is not what you asked about.",
    "Hold on, that's off-topic.",
    "Hold on, I got off track.",
    "Wait, I got sidetracked.",
    "Sorry, I got off topic.",
    "Oops, I went off on a tangent.",
    "Hmm, that's not relevant.",
    "Actually, I made a mistake.",
    "No, that's wrong.",
    "Wait, I am not answering the question.",
    "I'm sorry, that was off-topic.",
)
RESUMPTIONS = (
    "Let me start over.",
    "Let me try again.",
    "Let's start over.",
    "Let me answer the question.",
    "Let me go back to the question.",
    "I'd like to revise my answer.",
    "Back to the question:",
    "",
)


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


def correction(rng: random.Random) -> str:
    """Words that notice a drift and start over."""
    opening = rng.choice(OPENINGS)
    resumption = rng.choice(RESUMPTIONS)
    return f"{opening} {resumption}".strip()


class Topicality(Protocol):
    """How much a text is about a task, 0 to 100."""

    def __call__(self, text: str, task: str, label: str) -> float:
        """Score a text; the label is what it should not be about."""


class MiniLM:
    """The offline judge's topicality, by the packaged MiniLM."""

    def __init__(self) -> None:
        from esr_eval.judges.similarity import SentenceEncoder

        self._encoder = SentenceEncoder()

    def __call__(self, text: str, task: str, label: str) -> float:
        """Topicality of the text, 0 to 100."""
        from esr_eval.judges.similarity import score_attempt

        return score_attempt(text, task, label, self._encoder)


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


class Checker:
    """Checks examples against the phrase detector and a measure of topicality."""

    def __init__(self, topicality: Topicality | None = None) -> None:
        """Use this measure of topicality, or the offline judge's."""
        self._topicality = topicality or MiniLM()

    def why_not(self, example: Example) -> str | None:
        """Why an example is not to be trained on; None when it is good."""
        answer = example.text_of("on_topic")
        if len(answer.split()) < MIN_ANSWER_WORDS:
            return "answer too short"
        restarts = find_restarts(example.answer)
        if example.kind != "correction":
            if restarts:
                return "restarts where nothing is to be corrected"
        else:
            drift = example.text_of("off_topic")
            if len(drift.split()) < MIN_DRIFT_WORDS:
                return "off-topic part too short"
            if not restarts:
                return "correction not explicit"
            begins, ends = len(drift), len(drift) + len(example.text_of("correction"))
            if len(restarts) > 1 or not begins - 2 <= restarts[0].start < ends:
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
