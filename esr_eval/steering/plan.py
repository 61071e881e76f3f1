"""From specs to tensors: what each layer of one batch has to add and to read."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from safetensors import safe_open
from torch import Tensor

from esr_eval._util.files import file_sha256
from esr_eval.errors import EsrError
from esr_eval.sae.encoder import EncodeFn, ResidualNorm
from esr_eval.sae.sparse import SparseSAE
from esr_eval.spec import AddVector, Clamp, Edit, Readout, Span
from esr_eval.steering.edits import NO_END, LayerEdits, Term
from esr_eval.steering.kernel import Intervention, MeanParts, Read
from esr_eval.steering.requests import Passage, Steered
from esr_eval.subjects import embedded_path


def plan_batch(
    rows: Sequence[Steered],
    sae: SparseSAE | None,
    device_of: Callable[[int], torch.device],
    once: bool = False,
) -> Intervention:
    """Gather the rows' edits and readouts by layer.

    Args:
        rows: The batch.
        sae: The SAE of the runtime; None when no latent is edited or read.
        device_of: Where a layer's output lives.
        once: Whether there is one forward pass only.
    """
    layers = {e.layer for row in rows if row.steering for e in row.steering.edits}
    edits = {layer: _layer_edits(rows, layer, sae, device_of(layer)) for layer in sorted(layers)}
    reads: dict[int, list[Read]] = {}
    for b, row in enumerate(rows):
        for index, readout in enumerate(row.steering.readouts if row.steering else ()):
            assert row.steering is not None
            start, stop = readout.bounds(len(row.prompt), row.steering.runtime.skip_first)
            encode = _encoder(sae, readout, device_of(readout.layer))
            end = NO_END if stop is None else stop
            reads.setdefault(readout.layer, []).append(
                Read((b, index), start, end, readout.reduce, encode)
            )
    return Intervention(len(rows), edits, reads, once)


def plan_means(passages: Sequence[Passage], layer: int) -> Intervention:
    """What averages the unedited residual stream over answers.

    Args:
        passages: The batch.
        layer: Decoder layer whose output is read.

    Returns:
        Its readings hold for every passage, under readout 0, the mean residual and the mean norm
        as one more value.
    """
    reads = [
        Read((b, 0), len(p.prompt), len(p.prompt) + len(p.answer), "mean", MeanParts())
        for b, p in enumerate(passages)
    ]
    return Intervention(len(passages), {}, {layer: reads}, once=True)


def plan_residuals(passages: Sequence[Passage], layer: int) -> Intervention:
    """What brings the unedited residuals of answers, as they are.

    Args:
        passages: The batch.
        layer: Decoder layer whose output is read.
    """
    answers = Span(positions="generated")
    reads = [
        Read(
            (b, 0),
            answers.bounds(len(p.prompt), p.steering.runtime.skip_first)[0],
            len(p.prompt) + len(p.answer),
            "tokens",
            None,
        )
        for b, p in enumerate(passages)
    ]
    return Intervention(len(passages), {}, {layer: reads}, once=True)


def _encoder(sae: SparseSAE | None, readout: Readout, device: torch.device) -> EncodeFn:
    if readout.latents == "norm":
        return ResidualNorm()
    assert sae is not None
    if readout.latents == "all":
        return sae.whole_encoder(device)
    return sae.encoder(readout.latents, device)


def padded(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device | str, left: bool = True
) -> tuple[Tensor, Tensor]:
    """Token ids of equal length, and their attention mask, both (batch, position), int64.

    Args:
        rows: Token ids.
        pad: Id that fills shorter rows.
        device: Where the tensors go.
        left: Whether to fill on the left, as generation needs it.
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for b, row in enumerate(rows):
        start = width - len(row) if left else 0
        ids[b, start : start + len(row)] = torch.tensor(row)
        mask[b, start : start + len(row)] = 1
    return ids.to(device), mask.to(device)


def padded_passages(
    passages: Sequence[Passage], pad: int, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """Finished texts for one forward pass, all (batch, position), int64.

    Returns:
        Token ids, their attention mask, and every column's position in its row, -1 at padding.
    """
    whole = [(*passage.prompt, *passage.answer) for passage in passages]
    # Padded on the right: without generation's bookkeeping positions count from the left.
    ids, mask = padded(whole, pad, device, left=False)
    at = torch.arange(ids.shape[1], device=ids.device).masked_fill(~mask.bool(), -1)
    return ids, mask, at


def _layer_edits(
    rows: Sequence[Steered], layer: int, sae: SparseSAE | None, device: torch.device
) -> LayerEdits:
    clamped = sorted(
        {
            e.latent
            for row in rows
            if row.steering
            for e in row.steering.edits
            if e.layer == layer and isinstance(e, Clamp)
        }
    )
    terms = [_row_terms(row, layer, sae, clamped) for row in rows]
    encode = sae.encoder(clamped, device) if clamped and sae else None
    scale = sae.output_scale if sae else None
    return LayerEdits(terms, encode, scale).to(device)


def _row_terms(row: Steered, layer: int, sae: SparseSAE | None, clamped: list[int]) -> list[Term]:
    if row.steering is None:
        return []
    # The spec lets a clamp stand twice only when both say the same: holding it once is enough.
    edits: list[Edit] = list(dict.fromkeys(e for e in row.steering.edits if isinstance(e, Clamp)))
    edits += [e for e in row.steering.edits if not isinstance(e, Clamp)]
    terms = []
    for edit in edits:
        if edit.layer != layer:
            continue
        start, stop = edit.bounds(len(row.prompt), row.steering.runtime.skip_first)
        if isinstance(edit, AddVector):
            terms.append(Term(load_vector(edit), edit.strength, start, stop, sae_scaled=False))
            continue
        assert sae is not None
        direction = sae.decoder_row(edit.latent)
        if isinstance(edit, Clamp):
            slot = clamped.index(edit.latent)
            terms.append(Term(direction, edit.value, start, stop, clamp_slot=slot))
        else:
            terms.append(Term(direction, edit.strength, start, stop))
    return terms


def load_vector(edit: AddVector) -> Tensor:
    """The vector an edit adds, float32 (d_model,).

    Raises:
        EsrError: The file is missing, has changed, or lacks the tensor, or the vector is zero or
            not finite.
    """
    if edit.vector is not None:
        vector = torch.tensor(edit.vector, dtype=torch.float32)
    else:
        assert edit.path is not None and edit.tensor is not None
        vector = _vector_from_file(edit.path, edit.tensor, edit.sha256)
    if not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
        named = f"'{edit.tensor}' of {edit.path}" if edit.path else "of the request"
        what = "zero everywhere" if not bool(vector.any()) else "not finite"
        raise EsrError(f"The vector {named} is {what}, so adding it cannot steer.")
    return vector


@lru_cache(maxsize=64)
def _vector_from_file(path: str, name: str, sha256: str | None) -> Tensor:
    file = embedded_path(path)
    if not file.is_file():
        raise EsrError(f"The vector file {path} does not exist.")
    if file_sha256(file) != sha256:
        raise EsrError(f"The vector file {path} has changed since the spec was written (sha256).")
    with safe_open(file, framework="pt") as tensors:
        if name not in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
            raise EsrError(f"The vector file {path} holds no tensor '{name}'.")
        vector: Tensor = tensors.get_tensor(name)
    return vector.float()
