"""Concept vectors by difference of means: texts about a concept against all the others' texts.

Source: contrastive-vector steering of the paper's follow-up (2026, experiment 13). The corpus that
ships (`data/concepts.json`) is this project's own.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esr_eval.errors import EsrError
from esr_eval.vectors.file import Vector

Corpus = Mapping[str, Sequence[str]]
"""Concept -> texts about it."""

MIN_TEXTS = 2
"""Texts per concept: with one alone, the vector is that text's and cannot be tested."""


class Contrast(NamedTuple):
    """The vector of one concept.

    Attributes:
        difference: Mean residual of its texts minus that of the others', float32 (d_model,).
        separation: How far a text of the concept lies along the difference taken without it, in
            standard deviations of the other concepts' texts along the same line; near 0 where the
            texts have nothing in common.
    """

    difference: Vector
    separation: float


def load_corpus(path: Path | None = None) -> Corpus:
    """Read a corpus: a JSON object, concept -> list of texts.

    Args:
        path: The file; None takes the one that ships.

    Raises:
        EsrError: It cannot be read, or has too few concepts or texts.
    """
    where = str(path or "the shipped corpus")
    try:
        if path is None:
            text = resources.files("esr_eval.data").joinpath("concepts.json").read_text("utf-8")
        else:
            text = path.read_text("utf-8")
        found = json.loads(text)
    except OSError as error:
        raise EsrError(f"The corpus {where} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise EsrError(f"The corpus {where} is not JSON ({error}).") from error
    shape = 'it must be a JSON object such as {"oceans": ["a text", "another"], "snow": [...]}'
    if not isinstance(found, dict) or len(found) < 2:
        raise EsrError(f"The corpus {where} needs two concepts or more: {shape}.")
    for concept, texts in found.items():
        good = isinstance(texts, list) and all(isinstance(t, str) and t.strip() for t in texts)
        if not good or len(texts) < MIN_TEXTS or not concept.strip():
            raise EsrError(
                f"The corpus {where} needs {MIN_TEXTS} texts or more for '{concept}': {shape}."
            )
    return found


def contrasts(means: NDArray[np.float32], concepts: Sequence[str]) -> dict[str, Contrast]:
    """Difference of means for every concept.

    Args:
        means: Mean residual of every text, (texts, d_model).
        concepts: Concept of every text.

    Returns:
        By concept, in order of first appearance.
    """
    x = means.astype(np.float64)
    labels = np.array(concepts)
    return {
        concept: _contrast(x[labels == concept], x[labels != concept])
        for concept in dict.fromkeys(concepts)
    }


def _contrast(own: NDArray[np.float64], others: NDArray[np.float64]) -> Contrast:
    centre, spread = others.mean(0), others - others.mean(0)
    # Each text is compared with means that it is no part of, on both sides: (x - y) along
    # (mean of own without x) - (mean of others without y), averaged over all pairs. With a mean
    # that holds the text, noise alone would look like a distance.
    rest = (others.sum(0) - others) / (len(others) - 1)
    base = float((others * rest).sum(1).mean())
    distances = []
    for text in own:
        without = (own.sum(0) - text) / (len(own) - 1)
        deviation = float((spread @ (without - centre)).std(ddof=1))
        distance = float(text @ without - text @ centre - centre @ without) + base
        distances.append(distance / deviation if deviation > 0 else 0.0)
    return Contrast((own.mean(0) - centre).astype(np.float32), float(np.mean(distances)))


def scaled(difference: Vector, norm: float) -> Vector:
    """A vector of the given length in the difference's direction.

    Raises:
        EsrError: The difference is zero and points nowhere.
    """
    length = float(np.linalg.norm(difference))
    if length == 0:
        raise EsrError("A concept's texts have the same mean as the others': it has no vector.")
    vector: Vector = (difference * (norm / length)).astype(np.float32)
    return vector
