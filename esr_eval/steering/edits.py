"""The edit of the residual stream, computed sparsely. Pure tensor maths.

With residual x, SAE encoder f and decoder d, steering replaces x by d(g(f(x))) + (x - d(f(x))),
where g boosts or clamps single latents and the bracket keeps the SAE's error term (paper,
section on the steering method). As d is linear up to a per-position scale c(x) that undoes the
input normalisation (1 without normalisation), that equals

    x + c(x) * (sum over boosts of s * W_dec[i]  +  sum over clamps of (v - f_i(x)) * W_dec[i])

with every f_i(x) read from the unedited x. Only the rows of the named latents are needed. A boost
on top of a clamp of the same latent adds to the clamped value, as in the dense form.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esr_eval.sae.encoder import EncodeFn, LatentEncoder, packed

NO_END = torch.iinfo(torch.int64).max
"""Stands for 'to the end of the sequence' among the position bounds."""


@dataclass(frozen=True)
class Term:
    """One edit of one row, with everything its computation needs.

    Attributes:
        direction: What is added, shape (d_model,): a decoder row or a plain vector.
        amount: Boost strength, or the value to hold when clamping.
        start: First position touched (row-relative, padding not counted).
        stop: Position after the last touched, or None.
        clamp_slot: For a clamp, which of the encoded latents it holds; None otherwise.
        sae_scaled: Whether the direction lives in the SAE's normalised space.
    """

    direction: Tensor
    amount: float
    start: int
    stop: int | None
    clamp_slot: int | None = None
    sae_scaled: bool = True


MOVED = ("directions", "amount", "start", "stop", "clamped", "slot", "sae_scaled")


class LayerEdits:
    """All edits at one layer for one batch, ready to apply to that layer's output.

    Rows keep their own edits: terms are padded to the longest row with zero coefficients, so a
    neighbour's edits change a row's sums by exact zeros only.
    """

    def __init__(
        self,
        rows: "Sequence[Sequence[Term]]",
        encode: EncodeFn | None = None,
        output_scale: EncodeFn | None = None,
    ) -> None:
        """Stack the terms of each row.

        Args:
            rows: For every row of the batch its terms, possibly none.
            encode: Activations of the clamped latents; needed when a term clamps.
            output_scale: c(x), shape (batch, position, 1); None when it is 1 everywhere.
        """
        width = max((len(terms) for terms in rows), default=0)
        d_model = next(t.direction.shape[-1] for terms in rows for t in terms)
        shape = (len(rows), width)
        self.directions = torch.zeros(*shape, d_model)
        self.amount = torch.zeros(shape)
        self.start = torch.full(shape, NO_END)
        self.stop = torch.full(shape, NO_END)
        self.clamped = torch.zeros(shape, dtype=torch.bool)
        self.slot = torch.zeros(shape, dtype=torch.int64)
        self.sae_scaled = torch.zeros(shape, dtype=torch.bool)
        for b, terms in enumerate(rows):
            for k, term in enumerate(terms):
                self.directions[b, k] = term.direction.float()
                self.amount[b, k] = term.amount
                self.start[b, k] = term.start
                self.stop[b, k] = NO_END if term.stop is None else term.stop
                self.clamped[b, k] = term.clamp_slot is not None
                self.slot[b, k] = term.clamp_slot or 0
                self.sae_scaled[b, k] = term.sae_scaled
        self.any_clamp = bool(self.clamped.any())
        if self.any_clamp and encode is None:
            raise ValueError("clamps need the activations of their latents")
        # Where a boost acts as well, the residual changes whatever a clamp finds.
        self.any_clamp_alone = any(_clamped_alone(terms) for terms in rows)
        self.encode = encode
        self.output_scale = output_scale

    def to(self, device: torch.device | str) -> "LayerEdits":
        """Move the stacked terms to a device, in place."""
        if self.amount.device != torch.device(device):
            for name in MOVED:
                setattr(self, name, getattr(self, name).to(device))
            if isinstance(self.encode, LatentEncoder):
                self.encode.to(device)
        return self

    def __getstate__(self) -> "dict[str, object]":
        """For sending: rows that edit the same latent share its direction."""
        state = dict(self.__dict__)
        flat = self.directions.flatten(0, 1).cpu()
        known: dict[bytes, int] = {}
        which = [known.setdefault(row.numpy().tobytes(), len(known)) for row in flat]
        first = [which.index(number) for number in range(len(known))]
        state["directions"] = packed(flat[first].clone())
        state["which"] = torch.tensor(which).reshape(self.directions.shape[:2])
        return state

    def __setstate__(self, state: "dict[str, object]") -> None:
        """Undo the sharing."""
        self.__dict__.update(state)
        self.directions = self.directions.float()[self.__dict__.pop("which")]

    def active(self, positions: Tensor) -> Tensor:
        """Which terms act at which positions.

        Args:
            positions: Row-relative position of every column, shape (batch, position); negative
                where the column is padding or the row has ended.

        Returns:
            Boolean tensor (batch, position, term).
        """
        at = positions.unsqueeze(-1)
        inside = (at >= self.start.unsqueeze(1)) & (at < self.stop.unsqueeze(1))
        return inside & (at >= 0)

    def delta(self, x: Tensor, positions: Tensor) -> Tensor:
        """What to add to the residual stream.

        Args:
            x: Output of the layer, (batch, position, d_model), any float type.
            positions: As for `active`.

        Returns:
            The change in float32, (batch, position, d_model); exact zeros where nothing acts.
        """
        return torch.bmm(self._amounts(x) * self.active(positions), self.directions)

    def _amounts(self, x: Tensor) -> Tensor:
        """How much of each term's direction is due at each position, (batch, position, term)."""
        amount = self.amount.unsqueeze(1)
        if self.any_clamp:
            assert self.encode is not None
            activations = self.encode(x.float())
            index = self.slot.unsqueeze(1).expand(-1, x.shape[1], -1)
            held = activations.gather(-1, index)
            amount = torch.where(self.clamped.unsqueeze(1), amount - held, amount)
        if self.output_scale is not None:
            scale = self.output_scale(x.float())
            amount = torch.where(self.sae_scaled.unsqueeze(1), amount * scale, amount)
        return amount

    def may_hold(self, x: Tensor, positions: Tensor) -> Tensor:
        """Where the edits may rightly leave the residual as it is.

        A boost or vector changes every position that it touches. A clamp need not: its latent may
        have the wanted value already, or differ by less than the residual's precision shows.

        Args:
            x: As for `delta`.
            positions: As for `active`.

        Returns:
            Positions at which clamps alone act, and none by enough to be sure of a change: boolean
            (batch, position).
        """
        if not self.any_clamp_alone:
            return torch.zeros_like(positions, dtype=torch.bool)
        active, clamped = self.active(positions), self.clamped.unsqueeze(1)
        others = active & ~clamped & (self.amount != 0).unsqueeze(1)
        # A step this large moves at least the direction's largest component, whatever x is there.
        largest = x.float().abs().amax(-1, keepdim=True)
        steps = self._amounts(x).abs() * self.directions.abs().amax(-1).unsqueeze(1)
        felt = steps >= largest * torch.finfo(x.dtype).eps
        clamps = active & clamped
        return clamps.any(-1) & ~others.any(-1) & ~(clamps & felt).any(-1)


def _clamped_alone(terms: "Sequence[Term]") -> bool:
    """Whether a clamp of one row acts where no boost or vector of that row does."""

    def covers(one: "Term", other: "Term") -> bool:
        ends = [NO_END if term.stop is None else term.stop for term in (one, other)]
        return one.start <= other.start and ends[0] >= ends[1]

    others = [term for term in terms if term.clamp_slot is None and term.amount]
    clamps = [term for term in terms if term.clamp_slot is not None]
    return not all(any(covers(other, clamp) for other in others) for clamp in clamps)


class Change:
    """What one layer's edits did in one forward pass, for the receipt.

    Not what was meant to be done: an edit counts where the residual is another one than before,
    and where the next layer receives just that one.
    """

    def __init__(
        self, edits: "LayerEdits", before: Tensor, after: Tensor, positions: Tensor
    ) -> None:
        """Note a layer's output.

        Args:
            edits: What was applied.
            before: The output unedited, (batch, position, d_model).
            after: The output edited, of the same shape.
            positions: As for `LayerEdits.active`.
        """
        self._before, self._after, self._inside = before, after, positions >= 0
        self._may_hold = edits.may_hold(before, positions)

    def arrived(self, received: Tensor) -> Tensor:
        """Which positions were changed, and reached the next layer so.

        Args:
            received: What the next layer gets, (batch, position, d_model).

        Returns:
            Boolean (batch, position).
        """
        changed = self._inside & (self._after != self._before).any(-1)
        if received is self._after:  # as good as always: the layers pass the same tensor on
            return changed
        return changed & (received.to(self._after.device) == self._after).all(-1)

    def held(self) -> Tensor:
        """Where clamps found nothing to change, boolean (batch, position)."""
        return self._may_hold & (self._after == self._before).all(-1)
