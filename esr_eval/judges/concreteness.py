"""The offline judge on concreteness: is a label nearer to words for things, or for ideas?

On 40 labels rated by hand and never used to choose anything here (`tests/data/concreteness.csv`,
"held_out"), the ranks correlate by 0.92 (Spearman), the mean error is 7 points, and 38 fall on the
hand's side of 65; what it misses are concrete things that no anchor is like ("prisons").
"""

import json
import re
from collections.abc import Mapping

import numpy as np

from esr_eval.judges.encoder import Embeddings
from esr_eval.judges.topicality import Encoder

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

MIDPOINT, WIDTH = -0.02, 0.08
"""Margin (things minus ideas) that scores 50, and width of the squash; fitted to 40 labels."""

_FRAME = re.compile(
    r"^(?:the |(?:mentions?|references?|words?|terms?|phrases?|concepts?|text|discussions?|names?) "
    r"(?:of|to|about|for|related to|associated with|concerning|describing|indicating) )+",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w")


def ratings(labels: Mapping[int, str], encoder: Encoder) -> str:
    """Rate labels as JSON, in the form that the rubric asks for."""
    rated = [{"id": name, "score": _rate(label, encoder)} for name, label in labels.items()]
    return json.dumps({"ratings": rated}, separators=(",", ":"))


def _rate(label: str, encoder: Encoder) -> int:
    subject = _FRAME.sub("", label.strip()) or label
    if not _WORD.search(subject):
        return 0
    own, *anchors = encoder.encode([subject, *CONCRETE, *ABSTRACT])
    likeness = np.stack(anchors) @ own
    margin = _nearest(likeness[: len(CONCRETE)]) - _nearest(likeness[len(CONCRETE) :])
    return round(100 / (1 + float(np.exp(-(margin - MIDPOINT) / WIDTH))))


def _nearest(likeness: Embeddings) -> float:
    return float(np.sort(likeness)[-NEAREST:].mean())
