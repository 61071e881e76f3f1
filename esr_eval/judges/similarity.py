"""What sentence similarity says: how much text is about a task, and how concrete a label is.

Embeddings are all-MiniLM-L6-v2's, whose weights a package of the index carries.

Topicality, from 0 to 100, is not correctness: a fluent wrong answer about the right thing scores
high. Each sentence is compared with the task and with the unrelated concept's label; a sentence
that says neither ("Serve at once.") is read with its neighbours. The score is the share of words in
sentences about the task, lowered for repetition and for very short answers. The constants were
fitted by hand to the examples marked "dev" in `tests/data/judged.jsonl`; those marked "held_out"
were only measured (tests/test_judge_offline.py states and checks the numbers).

A label is concrete where it is nearer to words for things than for ideas. On 40 labels rated by
hand and never used to choose anything here (`tests/data/concreteness.csv`, "held_out"), the ranks
correlate by 0.92 (Spearman), the mean error is 7 points, and 38 fall on the hand's side of 65; what
it misses are concrete things that no anchor is like ("prisons").
"""

import json
import math
import re
from collections.abc import Mapping

import numpy as np

from esr_eval._util.minilm import Embeddings, SentenceEncoder
from esr_eval.scorers.degradation import longest_run

BEST = 96.0
"""A flawless attempt. Not 100, because similarity cannot tell right from wrong."""

CONCEPT_WEIGHT = 0.75
"""How much similarity to the label counts against similarity to the task."""

MIDPOINT = 0.08
"""Margin (task minus weighted concept) at which a sentence is half on topic. Sentences about
something else lie below 0.08, sentences of good answers mostly above 0.2."""

TEMPERATURE = 0.07
"""Width of the squash around the midpoint, in the same unit."""

NEIGHBOURS = 0.4
"""Weight of the two neighbouring sentences together in a sentence's margin."""

REPETITIVE, VARIED = 0.35, 0.62
"""Share of distinct words in a window of 30: at the first a text is worth nothing, from the second
on repetition costs nothing. How-to answers have 0.65-0.95, word salad 0.2-0.5."""

FULL_LENGTH = 30
"""Words from which an answer's length costs nothing; shorter ones lose up to 30 %."""

WINDOW = 30
MAX_SENTENCE_WORDS = 40
MAX_SENTENCES = 64
"""Sentences looked at per attempt, evenly spaced: bounds the work on very long responses."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)*]*\s+|\n+")
_FRAME = re.compile(r"^(?:explain how to|how do you|how to|how can i)\s+", re.IGNORECASE)

CONCRETE = [
    "animal", "dog", "tree", "flower", "river", "mountain", "house", "furniture", "car",
    "ship", "bread", "fruit", "water", "fire", "stone", "metal", "clothes", "shoe", "hand",
    "face", "bone", "tool", "weapon", "musical instrument", "sports game", "bird", "insect",
    "snow", "sun", "child", "doctor", "hospital", "farm", "road", "bridge", "train", "book",
    "machine", "jewel", "drink",
]  # fmt: skip
ABSTRACT = [
    "idea", "concept", "theory", "truth", "justice", "freedom", "possibility", "uncertainty",
    "cause", "reason", "relation", "comparison", "contrast", "quality", "quantity", "duty",
    "policy", "philosophy", "logic", "grammar", "noun", "verb", "preposition", "conjunction",
    "negation", "punctuation mark", "comma", "bracket", "code syntax", "formatting",
    "whitespace", "token", "function word", "sentence structure", "statement", "question",
    "abstract reasoning", "meaning", "number", "belief", "condition", "strategy", "efficiency",
]  # fmt: skip

NEAREST = 3
"""Anchors of each kind that a label is compared with: those it is most like."""

CONCRETE_MIDPOINT, CONCRETE_WIDTH = -0.02, 0.08
"""Margin (things minus ideas) that scores 50, and width of the squash; fitted to 40 labels."""

_PHRASING = re.compile(
    r"^(?:the |(?:mentions?|references?|words?|terms?|phrases?|concepts?|text|discussions?|names?) "
    r"(?:of|to|about|for|related to|associated with|concerning|describing|indicating) )+",
    re.IGNORECASE,
)


def score_attempt(text: str, task: str, label: str, encoder: SentenceEncoder) -> float:
    """Topicality of one attempt, 0 to 100.

    Args:
        text: The attempt, without the words of its restart.
        task: What the model was asked.
        label: What the boosted latent stands for.
        encoder: Sentence embeddings.
    """
    words = words_of(text)
    pieces = sentences(text)
    if not pieces or not words:
        return 0.0
    on_topic = relevance(pieces, task, label, encoder)
    lengths = np.array([max(1, len(words_of(piece))) for piece in pieces], dtype=float)
    share = float(np.average(on_topic, weights=lengths))
    return BEST * share * variety(words) * (0.7 + 0.3 * min(1.0, len(words) / FULL_LENGTH))


def relevance(pieces: list[str], task: str, label: str, encoder: SentenceEncoder) -> Embeddings:
    """How much each of some successive sentences is about the task, from 0 to 1.

    Args:
        pieces: The sentences, at least one.
        task: What the model was asked.
        label: What the boosted latent stands for.
        encoder: Sentence embeddings.
    """
    rows = encoder.encode([task, _FRAME.sub("", task).rstrip(".?! "), label, *pieces])
    whole, bare, concept, body = rows[0], rows[1], rows[2], rows[3:]
    about_task = np.maximum(body @ whole, body @ bare)
    about_concept = np.maximum(body @ concept, 0.0)
    margin = smooth(about_task - CONCEPT_WEIGHT * about_concept)
    found: Embeddings = 1 / (1 + np.exp(-(margin - MIDPOINT) / TEMPERATURE))
    return found


def smooth(margin: Embeddings) -> Embeddings:
    """Mix each sentence's margin with its neighbours'; the ends stand in for those they lack."""
    padded = np.concatenate([margin[:1], margin, margin[-1:]])
    around = (padded[:-2] + padded[2:]) / 2
    mixed: Embeddings = (1 - NEIGHBOURS) * margin + NEIGHBOURS * around
    return mixed


def variety(words: list[str]) -> float:
    """1 for text of ordinary variety, down to 0 for one that repeats a few words or has none."""
    if not words:
        return 0.0
    if longest_run(words) >= 5:
        return 0.1
    starts = range(0, max(1, len(words) - WINDOW + 1), WINDOW // 2)
    starts = starts[:: max(1, math.ceil(len(starts) / 200))]
    windows = [words[start : start + WINDOW] for start in starts]
    distinct = sum(len(set(window)) / len(window) for window in windows) / len(windows)
    return min(1.0, max(0.0, (distinct - REPETITIVE) / (VARIED - REPETITIVE)))


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers."""
    return [match[0].lower() for match in _WORD.finditer(text)]


def sentences(text: str) -> list[str]:
    """Sentences of the text; fragments join what follows, endless ones are cut."""
    pieces: list[str] = []
    held = ""
    for part in SENTENCE_END.split(text):
        held = f"{held} {part.strip()}".strip()
        if len(held.split(None, 3)) < 4:
            continue
        pieces += _cut(held)
        held = ""
    if words_of(held[:200]):
        pieces += _cut(held)
    if len(pieces) > MAX_SENTENCES:
        chosen = np.linspace(0, len(pieces) - 1, MAX_SENTENCES).round().astype(int)
        pieces = [pieces[index] for index in chosen]
    return pieces


def _cut(sentence: str) -> list[str]:
    words = sentence.split()
    step = MAX_SENTENCE_WORDS
    return [" ".join(words[at : at + step])[:1000] for at in range(0, len(words), step)]


def ratings(labels: Mapping[int, str], encoder: SentenceEncoder) -> str:
    """Rate labels as JSON, in the form that the rubric asks for."""
    rated = [{"id": name, "score": _rate(label, encoder)} for name, label in labels.items()]
    return json.dumps({"ratings": rated}, separators=(",", ":"))


def _rate(label: str, encoder: SentenceEncoder) -> int:
    subject = _PHRASING.sub("", label.strip()) or label
    if not re.search(r"\w", subject):
        return 0
    own, *anchors = encoder.encode([subject, *CONCRETE, *ABSTRACT])
    likeness = np.stack(anchors) @ own
    margin = _nearest(likeness[: len(CONCRETE)]) - _nearest(likeness[len(CONCRETE) :])
    return round(100 / (1 + float(np.exp(-(margin - CONCRETE_MIDPOINT) / CONCRETE_WIDTH))))


def _nearest(likeness: Embeddings) -> float:
    return float(np.sort(likeness)[-NEAREST:].mean())
