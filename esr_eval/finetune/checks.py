"""What an example must be before it is trained on; whatever is refused is counted by reason."""

from collections import Counter
from typing import Protocol

from esr_eval.finetune.data import Example
from esr_eval.scorers.phrases import find_restarts

MIN_DRIFT_WORDS = 4
MIN_ANSWER_WORDS = 12
MOST_DRIFT_SCORE = 45.0
"""Topicality (0-100, offline judge's measure) above which an off-topic part is not off-topic."""
LEAST_ANSWER_SCORE = 65.0
"""Topicality below which an answer does not answer its task."""


class Topicality(Protocol):
    """How much a text is about a task, 0 to 100."""

    def __call__(self, text: str, task: str, label: str) -> float:
        """Score a text; the label is what it should not be about."""


class MiniLM:
    """The offline judge's topicality, by the packaged MiniLM."""

    def __init__(self) -> None:
        from esr_eval.judges.encoder import SentenceEncoder

        self._encoder = SentenceEncoder()

    def __call__(self, text: str, task: str, label: str) -> float:
        """Topicality of the text, 0 to 100."""
        from esr_eval.judges.topicality import score_attempt

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

    def told(self) -> str:
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
