"""The edit of the residual stream, computed sparsely. Pure tensor maths.

With residual x, SAE encoder f and decoder d, steering replaces x by d(g(f(x))) + (x - d(f(x))),
where g boosts or clamps single latents and the bracket keeps the SAE's error term (paper,
section on the steering method). As d is linear up to a per-position scale c(x) that undoes the
input normalisation (1 without normalisation), that equals

    x + c(x) * (sum over boosts of s * W_dec[i]  +  sum over clamps of (v - f_i(x)) * W_dec[i])

with every f_i(x) read from the unedited x. Only the rows of the named latents are needed. A boost
on top of a clamp of the same latent adds to the clamped value, as in the dense form.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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


EncodeFn = Callable[[Tensor], Tensor]
"""Residuals (batch, position, d_model) -> activations of a fixed list of latents, last axis."""


class LayerEdits:
    """All edits at one layer for one batch, ready to apply to that layer's output.

    Rows keep their own edits: terms are padded to the longest row with zero coefficients, so a
    neighbour's edits change a row's sums by exact zeros only.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[Term]],
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
        self.encode = encode
        self.output_scale = output_scale

    def to(self, device: torch.device | str) -> "LayerEdits":
        """Move the stacked terms to a device, in place."""
        for name in ("directions", "amount", "start", "stop", "clamped", "slot", "sae_scaled"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def touched(self, positions: Tensor) -> Tensor:
        """Which positions get at least one edit.

        Args:
            positions: Row-relative position of every column, shape (batch, position); negative
                where the column is padding or the row has ended.

        Returns:
            Boolean tensor (batch, position).
        """
        return self._active(positions).any(-1)

    def _active(self, positions: Tensor) -> Tensor:
        at = positions.unsqueeze(-1)
        inside = (at >= self.start.unsqueeze(1)) & (at < self.stop.unsqueeze(1))
        return inside & (at >= 0)

    def delta(self, x: Tensor, positions: Tensor) -> Tensor:
        """What to add to the residual stream.

        Args:
            x: Output of the layer, (batch, position, d_model), any float type.
            positions: As for `touched`.

        Returns:
            The change in float32, (batch, position, d_model); exact zeros where nothing is
            touched.
        """
        amount = self.amount.unsqueeze(1)
        if self.any_clamp:
            assert self.encode is not None
            activations = self.encode(x.float())
            index = self.slot.unsqueeze(1).expand(-1, x.shape[1], -1)
            held = activations.gather(-1, index)
            amount = torch.where(self.clamped.unsqueeze(1), amount - held, amount)
        coefficients = amount * self._active(positions)
        if self.output_scale is not None:
            scale = self.output_scale(x.float())
            coefficients = torch.where(
                self.sae_scaled.unsqueeze(1), coefficients * scale, coefficients
            )
        return torch.bmm(coefficients, self.directions)
