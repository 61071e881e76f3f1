"""What is done to a batch inside the process that runs the model, wherever that is.

On NDIF these classes travel with the request, by value: their code as source text, their tensors
as data. So nothing here, nor in `edits.py`, `sampling.py` and `decoding.Decoding`, may reach at
run time for anything but torch, numpy and the standard library, and annotations name other
classes of this project in quotes only.
"""

from typing import Any

import torch
from torch import Tensor

from esr_eval.sae.encoder import ResidualNorm
from esr_eval.steering.edits import Change, LayerEdits


def residual(passed: Any) -> Tensor:
    """The residual stream in what a decoder layer returns or gets; a tuple in some models."""
    x: Tensor = passed[0] if isinstance(passed, tuple) else passed
    return x


def reduced(series: Tensor, how: str) -> Tensor:
    """A readout's result from the activations at its positions.

    Args:
        series: Activations, (position, latent).
        how: `spec.Readout.reduce`.

    Returns:
        (latent,), zeros without a position; or (latent, position) for "tokens".
    """
    if how == "tokens":
        return series.T
    if not len(series):
        return series.new_zeros(series.shape[-1])
    if how == "max":
        return series.amax(0)
    if how == "mean":
        return series.mean(0)
    return (series > 0).float().mean(0)


class MeanParts:
    """Stands in for an SAE: the residual itself, and its norm as one more value."""

    def __call__(self, x: Tensor) -> Tensor:
        """Residuals (..., d_model) to (..., d_model + 1)."""
        return torch.cat([x, ResidualNorm()(x)], dim=-1)


class Read:
    """One readout of one row.

    Attributes:
        key: Row in the batch, and which of its readouts this is.
        start: First position read.
        stop: Position after the last.
        how: `spec.Readout.reduce`.
        encode: Activations of its latents, or the norm; None brings the residuals as they are.
    """

    def __init__(self, key: tuple[int, int], start: int, stop: int, how: str, encode: Any) -> None:
        """Take what the plan says."""
        self.key, self.start, self.stop, self.how, self.encode = key, start, stop, how, encode


class Receipts:
    """How many positions of every row were edited at one layer.

    Attributes:
        edited: Positions whose residual changed and reached the next layer so, (batch,).
        held: Positions at which clamps alone act and found nothing to change, (batch,).
    """

    def __init__(self, rows: int) -> None:
        """Start with none."""
        self.edited = torch.zeros(rows, dtype=torch.int64)
        self.held = torch.zeros(rows, dtype=torch.int64)

    def add(self, change: "Change", received: Tensor) -> None:
        """Count one forward pass, on the device that it ran on."""
        edited, held = change.arrived(received).sum(-1), change.held().sum(-1)
        self.edited = self.edited.to(edited.device) + edited
        self.held = self.held.to(held.device) + held

    def counted(self) -> "tuple[Tensor, Tensor]":
        """Edited and held, on the CPU."""
        return self.edited.cpu(), self.held.cpu()


class Intervention:
    """A batch's edits and readouts by layer, with what has been counted and read so far."""

    def __init__(
        self,
        rows: int,
        edits: dict[int, LayerEdits],
        reads: "dict[int, list[Read]]",
        once: bool = False,
    ) -> None:
        """Start with nothing done.

        Args:
            rows: Size of the batch.
            edits: What to edit at each layer.
            reads: What to read at each layer.
            once: There is one forward pass. Then readings are reduced on the spot, as
                activations of the whole SAE at all positions of all rows are large.
        """
        self.edits = edits
        self.reads = reads
        self.once = once
        self.layers = sorted({*edits, *reads})
        self._receipts = {layer: Receipts(rows) for layer in edits}
        self._underway: dict[int, Change] = {}
        self._series: dict[tuple[int, int], list[Tensor]] = {}
        self._finished: dict[tuple[int, int], tuple[Tensor, int]] = {}

    def apply(self, layer: int, x: Tensor, positions: Tensor) -> None:
        """Edit a layer's output in place, and read.

        Args:
            layer: Which layer.
            x: Its output, (batch, position, d_model).
            positions: Row-relative positions, (batch, position); negative where nothing is done.
        """
        at = positions.to(x.device)
        if layer in self.edits:
            edits, before = self.edits[layer].to(x.device), x.clone()
            x[:] = (x.float() + edits.delta(x, at)).to(x.dtype)
            self._underway[layer] = Change(edits, before, x, at)
        for read in self.reads.get(layer, ()):
            here = at[read.key[0]]
            wanted = (here >= read.start) & (here < read.stop) & (here >= 0)
            if bool(wanted.any()):
                self._series.setdefault(read.key, []).append(self._values(read, x, wanted))
                if self.once:
                    self._finish(read)

    def confirm(self, layer: int, received: Tensor) -> None:
        """Count the positions of a layer's edits that the next layer gets to see.

        Args:
            layer: Which layer was edited in this forward pass.
            received: What the next one gets, (batch, position, d_model).
        """
        self._receipts[layer].add(self._underway.pop(layer), received)

    def receipts(self) -> "dict[int, tuple[Tensor, Tensor]]":
        """By layer, for every row: positions edited, and held by clamps as they were, (batch,)."""
        return {layer: one.counted() for layer, one in self._receipts.items()}

    def _values(self, read: Read, x: Tensor, wanted: Tensor) -> Tensor:
        values = x[read.key[0]][wanted]
        if read.encode is not None:
            if hasattr(read.encode, "to"):
                read.encode.to(x.device)
            values = read.encode(values.float()).float()
        return values if self.once else values.cpu()

    def _finish(self, read: Read) -> None:
        series = torch.cat(self._series.pop(read.key))
        value = series if read.encode is None else reduced(series, read.how).contiguous()
        self._finished[read.key] = value.cpu(), len(series)

    def readings(self) -> dict[tuple[int, int], tuple[Tensor | None, int]]:
        """Every readout's value, None where no position was read, and its number of positions."""
        reads = [read for layer in self.reads.values() for read in layer]
        for read in reads:
            if read.key in self._series:
                self._finish(read)
        return {read.key: self._finished.get(read.key, (None, 0)) for read in reads}


def force(logits: Tensor, chosen: Tensor) -> None:
    """Leave only the chosen token possible, in place, so that a greedy loop follows.

    Args:
        logits: Logits of one forward pass, (batch, position, vocabulary).
        chosen: Token ids, (batch,).
    """
    logits[:, -1] = float("-inf")
    logits[:, -1].scatter_(1, chosen.to(logits.device).unsqueeze(1), 0.0)


def softcapped(logits: Tensor, cap: float | None) -> Tensor:
    """Logits as the model returns them, from the output of its last linear layer."""
    if cap is None:
        return logits
    return torch.tanh(logits / cap) * cap
