"""Seeded sampling, each row for itself.

A row's token is chosen by inverting the cumulative distribution at one uniform number, and all of
a row's uniforms come from its own seed before the first token. So a row's choices depend on its
seed and its logits alone, on every device and backend alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How one row is sampled.

    Attributes:
        seed: Seed of the row's uniforms; not used when greedy.
        temperature: 0 means greedy.
        top_p: Keep the smallest set of tokens with this much probability; None keeps all.
        top_k: Keep this many tokens; None keeps all.
        repetition_penalty: Logits of tokens seen before (prompt included) are divided by this
            when positive and multiplied by it when negative (Keskar et al. 2019).
        max_tokens: Most tokens to generate.
    """

    seed: int
    temperature: float
    top_p: float | None
    top_k: int | None
    repetition_penalty: float
    max_tokens: int


def row_uniforms(seed: int, count: int) -> Tensor:
    """The first `count` uniforms in [0, 1) of a seed, float64, the same on every machine."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(seed)).random(count))


class RowSampler:
    """Chooses the next token of every row of a batch."""

    def __init__(self, rows: "Sequence[Sampling]", device: torch.device | str = "cpu") -> None:
        """Stack the rows' settings."""
        self._longest = max(row.max_tokens for row in rows)
        self._seeds = [row.seed for row in rows]
        # Drawn with the first token: sent elsewhere, a sampler is its seeds, not its draws.
        self._uniforms: Tensor | None = None
        self._temperature = torch.tensor([row.temperature for row in rows], device=device)
        self._penalty = torch.tensor([row.repetition_penalty for row in rows], device=device)
        self._top_p = torch.tensor(
            [1.0 if row.top_p is None else row.top_p for row in rows], device=device
        )
        self._top_k = [row.top_k for row in rows]

    def to(self, device: torch.device) -> "RowSampler":
        """Move the settings to a device, in place."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def choose(self, logits: Tensor, seen: Tensor, step: int) -> Tensor:
        """Choose one token per row.

        Args:
            logits: Next-token logits, (batch, vocabulary).
            seen: For every row which tokens occurred so far, boolean (batch, vocabulary).
            step: Number of tokens generated before this one.

        Returns:
            Token ids, (batch,).
        """
        logits = logits.float()
        penalty = self._penalty.unsqueeze(1)
        punished = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(seen, punished, logits)
        greedy = logits.argmax(-1)
        if bool((self._temperature == 0).all()):
            return greedy
        scaled = logits.double() / self._temperature.clamp_min(1e-6).unsqueeze(1)
        probabilities = self._truncate(torch.softmax(scaled, dim=-1))
        cumulative = probabilities.cumsum(-1)
        # The uniform is stretched over what truncation and rounding left of the total.
        if self._uniforms is None:
            drawn = [row_uniforms(seed, self._longest) for seed in self._seeds]
            self._uniforms = torch.stack(drawn).to(logits.device)
        target = self._uniforms[:, step] * cumulative[:, -1]
        chosen = torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)
        chosen = chosen.clamp_max(logits.shape[-1] - 1)
        return torch.where(self._temperature == 0, greedy, chosen)

    def _truncate(self, probabilities: Tensor) -> Tensor:
        for row, k in enumerate(self._top_k):
            if k is not None and k < probabilities.shape[-1]:
                floor = probabilities[row].topk(k).values[-1]
                probabilities[row, probabilities[row] < floor] = 0.0
        if bool((self._top_p < 1).any()):
            ordered, index = probabilities.sort(-1, descending=True)
            total = ordered.sum(-1, keepdim=True)
            before = ordered.cumsum(-1) - ordered
            drop = before >= self._top_p.unsqueeze(1) * total
            probabilities = probabilities.masked_fill(
                torch.zeros_like(drop).scatter(-1, index, drop), 0.0
            )
        return probabilities
