"""Take a model's concept vectors: run a corpus through it and compare mean residuals."""

from collections.abc import Callable
from typing import Any

import numpy as np

from esr_eval.errors import EsrError
from esr_eval.model.weights import check_memory
from esr_eval.provider.arguments import ModelArgs
from esr_eval.spec import Runtime, Steering, fingerprint
from esr_eval.subjects import Subject, check_layer
from esr_eval.vectors.contrast import Corpus, contrasts, scaled
from esr_eval.vectors.file import Concept, Vector, VectorInfo

FRAME = "Write one sentence."
"""What every text of the corpus stands as the answer to: vectors act on answers most of all."""

DEFAULT_BATCH = 32


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
