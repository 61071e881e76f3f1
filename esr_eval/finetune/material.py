"""What examples are made of: training tasks, off-topic subjects, and words that notice."""

import json
import random
import re
from functools import cache
from importlib import resources
from typing import Any

from esr_eval.dataset import FRAMES, Prompt, PromptSet, prompts

EVALUATED: tuple[PromptSet, ...] = ("main", "detector_discovery", "held_out")
"""Sets of tasks that evaluations ask and training must not."""

SUBJECT_FRAME = "Tell me about {subject}."

_OPENINGS = (
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
_RESUMPTIONS = (
    "Let me start over.",
    "Let me try again.",
    "Let's start over.",
    "Let me answer the question.",
    "Let me go back to the question.",
    "I'd like to revise my answer.",
    "Back to the question:",
    "",
)
_WORD = re.compile(r"[a-z]+")
_FUNCTION_WORDS = frozenset(
    {"a", "an", "and", "at", "by", "do", "does", "for", "from", "how", "in", "into", "of", "off"}
    | {"on", "or", "properly", "the", "to", "up", "with", "your", "you", "what", "why", "is"}
    | {"are", "explain", "describe", "effective", "good"}
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
    opening = rng.choice(_OPENINGS)
    resumption = rng.choice(_RESUMPTIONS)
    return f"{opening} {resumption}".strip()


def all_corrections() -> list[str]:
    """Every wording that `correction` can give."""
    return [f"{a} {b}".strip() for a in _OPENINGS for b in _RESUMPTIONS]


def content_words(text: str) -> frozenset[str]:
    """The words that carry a topic."""
    return frozenset(_WORD.findall(text.lower())) - _FUNCTION_WORDS


def overlapping_tasks(share: float = 0.5) -> list[tuple[str, str]]:
    """Pairs of a training topic and an evaluated one that ask about (nearly) the same.

    Args:
        share: Part of both topics' content words together that they must have in common.
    """
    evaluated = {prompt.topic for which in EVALUATED for prompt in prompts(which)}
    pairs = []
    for topic in dict.fromkeys(task.topic for task in training_tasks()):
        ours = content_words(topic)
        for other in sorted(evaluated):
            theirs = content_words(other)
            if len(ours & theirs) >= share * len(ours | theirs):
                pairs.append((topic, other))
    return pairs
