"""From specs to tensors: what each layer of one batch has to add and to read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from safetensors import safe_open
from torch import Tensor

from esr_eval._util.digests import file_sha256
from esr_eval.errors import EsrError
from esr_eval.sae.encoder import EncodeFn
from esr_eval.sae.sparse import SparseSAE
from esr_eval.spec import AddVector, Clamp, Edit, Readout
from esr_eval.steering.edits import NO_END, LayerEdits, Term
from esr_eval.steering.kernel import MeanParts, Read, Work
from esr_eval.steering.requests import Passage, Steered
from esr_eval.subjects import embedded_path


@dataclass
class ReadPlan:
    """One readout of one row.

    Attributes:
        row: Index of the row in the batch.
        index: Which of the row's readouts this is.
        readout: Its spec.
        encode: Activations of its latents.
        start: First position read.
        stop: Position after the last read.
    """

    row: int
    index: int
    readout: Readout
    encode: EncodeFn
    start: int
    stop: int


@dataclass
class BatchPlan:
    """Everything to do at each layer for one batch."""

    edits: dict[int, LayerEdits]
    reads: dict[int, list[ReadPlan]]

    def work(self, rows: int, once: bool = False) -> Work:
        """The same as what the process of the model does, nothing done yet.

        Args:
            rows: Size of the batch.
            once: Whether every layer is visited once.
        """
        reads = {
            layer: [
                Read((r.row, r.index), r.start, r.stop, r.readout.reduce, r.encode) for r in plans
            ]
            for layer, plans in self.reads.items()
        }
        return Work(rows, self.edits, reads, once)


def mean_work(passages: Sequence[Passage], layer: int) -> Work:
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
    return Work(len(passages), {}, {layer: reads}, once=True)


def plan_batch(
    rows: Sequence[Steered],
    sae: SparseSAE | None,
    device_of: Callable[[int], torch.device],
) -> BatchPlan:
    """Gather the rows' edits and readouts by layer.

    Args:
        rows: The batch.
        sae: The SAE of the runtime; None when only plain vectors are added.
        device_of: Where a layer's output lives.
    """
    layers = {e.layer for row in rows if row.steering for e in row.steering.edits}
    edits = {layer: _layer_edits(rows, layer, sae, device_of(layer)) for layer in sorted(layers)}
    reads: dict[int, list[ReadPlan]] = {}
    for b, row in enumerate(rows):
        for index, readout in enumerate(row.steering.readouts if row.steering else ()):
            assert sae is not None and row.steering is not None
            start, stop = readout.bounds(len(row.prompt), row.steering.runtime.skip_first)
            reads.setdefault(readout.layer, []).append(
                ReadPlan(
                    row=b,
                    index=index,
                    readout=readout,
                    encode=_encoder(sae, readout, device_of(readout.layer)),
                    start=start,
                    stop=NO_END if stop is None else stop,
                )
            )
    return BatchPlan(edits, reads)


def _encoder(sae: SparseSAE, readout: Readout, device: torch.device) -> EncodeFn:
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


def due_positions(row: Steered, fed: int) -> dict[int, int]:
    """How many positions a row's edits call for at each layer that they name.

    Args:
        row: The request.
        fed: Number of tokens that went through the model, prompt included.
    """
    touched: dict[int, set[int]] = {}
    for edit in row.steering.edits if row.steering else ():
        if not isinstance(edit, Clamp) and not edit.strength:
            continue  # changes nothing, and says so
        assert row.steering is not None
        start, stop = edit.bounds(len(row.prompt), row.steering.runtime.skip_first)
        touched.setdefault(edit.layer, set()).update(
            range(start, fed if stop is None else min(fed, stop))
        )
    return {layer: len(positions) for layer, positions in touched.items()}


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
