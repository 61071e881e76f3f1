"""Concept vectors by difference of means: texts about a concept against all the others' texts.

Source: contrastive-vector steering of the paper's follow-up (2026, experiment 13). The corpus that
ships (`data/concepts.json`) is this project's own.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esr_eval.errors import EsrError
from esr_eval.model.weights import check_memory
from esr_eval.provider.arguments import ModelArgs
from esr_eval.spec import Runtime, Steering, fingerprint
from esr_eval.subjects import Subject, check_layer
from esr_eval.vectors.file import Concept, Vector, VectorInfo

Corpus = Mapping[str, Sequence[str]]
"""Concept -> texts about it."""

MIN_TEXTS = 2
"""Texts per concept: with one alone, the vector is that text's and cannot be tested."""

FRAME = "Write one sentence."
"""What every text of the corpus stands as the answer to: vectors act on answers most of all."""

DEFAULT_BATCH = 32


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


def extract_vectors(
    subject: Subject,
    corpus: Corpus,
    *,
    layer: int | None = None,
    model_args: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[VectorInfo, dict[str, Vector]]:
    """A vector for every concept of a corpus, in units of the mean residual norm.

    Args:
        subject: Whose vectors.
        corpus: Texts about each concept.
        layer: Decoder layer whose output is read. None: the paper's, or the steering layer.
        model_args: Arguments of the provider.
        progress: Told how many texts have been read, and of how many.

    Raises:
        EsrError: The model does not fit, cannot be loaded, or has no such layer.
    """
    args = ModelArgs.parse(model_args or {})
    # Vectors need no SAE, and opening one may mean downloading it.
    runtime = args.runtime(subject).model_copy(update={"sae": None})
    layer = _layer(subject, runtime, layer)
    check_memory(subject.model_copy(update={"dtype": runtime.dtype}))
    from esr_eval.backends.local import LocalBackend

    backend = LocalBackend(runtime, args.device)
    spec, question = Steering(runtime=runtime), [{"role": "user", "content": FRAME}]
    concepts = [concept for concept, texts in corpus.items() for _ in texts]
    passages = [
        backend.passage(question, text, spec) for texts in corpus.values() for text in texts
    ]
    for passage in passages:
        backend.check(passage)
    means, norms = [], []
    size = args.batch_size or DEFAULT_BATCH
    for start in range(0, len(passages), size):
        batch = passages[start : start + size]
        mean, norm = backend.mean_residuals(batch, layer)
        means.append(mean)
        norms.append(norm)
        progress(start + len(batch), len(passages))
    found = contrasts(np.concatenate(means), concepts)
    mean_norm = float(np.concatenate(norms).mean())
    info = VectorInfo(
        model=runtime.model,
        revision=runtime.revision,
        adapter=runtime.adapter,
        dtype=runtime.dtype,
        layer=layer,
        d_model=means[0].shape[1],
        mean_norm=mean_norm,
        corpus=fingerprint({"frame": FRAME, "texts": {c: list(t) for c, t in corpus.items()}}),
        concepts=tuple(
            Concept(name=name, texts=len(corpus[name]), separation=round(one.separation, 3))
            for name, one in found.items()
        ),
    )
    return info, {name: scaled(one.difference, mean_norm) for name, one in found.items()}


def _layer(subject: Subject, runtime: Runtime, asked: int | None) -> int:
    known = (asked, subject.vector_layer, runtime.steering_layer)
    layer = next((one for one in known if one is not None), None)
    if layer is None:
        raise EsrError(
            f"{subject.name} is no named subject, so say which decoder layer's output the vectors "
            "are taken from: --layer N (about 60 % of the way up is usual)."
        )
    if layer < 0:
        raise EsrError(f"--layer {layer}: layers are counted from 0.")
    if subject.n_layers is not None:
        check_layer(layer, subject.n_layers, subject.name, f"--layer {layer}")
    return layer
