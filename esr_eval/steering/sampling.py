"""Seeded sampling, each row for itself.

A token is drawn by the Gumbel-max trick (Gumbel 1954): Gumbel noise is added to the logits and the
largest wins, which follows the softmax exactly. The noise of a token is a function of the row's
seed, of the step and of the token's id alone. So a row's choices depend on its seed and its logits,
on every device and backend alike, and a rounding error of the logits changes a token only where
the two best stand closer than that error. (Inverting the cumulative distribution would add up the
errors of all tokens before the chosen one.)
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Scores = Callable[..., Tensor]
"""`scores`, or what does the same."""

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIERS = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
"""SplitMix64's constants (Steele, Lea & Flood 2014, OOPSLA), as signed numbers: torch computes
modulo 2^64 all the same."""


@dataclass(frozen=True)
class Sampling:
    """How one row is sampled.

    Attributes:
        seed: Seed of the row's noise; not used when greedy.
        temperature: 0 means greedy.
        top_p: Keep the smallest set of tokens with this much probability, above 0 and up to 1;
            None keeps all.
        top_k: Keep this many tokens, 1 or more; None keeps all.
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

    def __post_init__(self) -> None:
        """Refuse what has no meaning.

        Raises:
            ValueError: A setting is out of its range.
        """
        for name, fits in (
            ("temperature", 0 <= self.temperature < math.inf),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1),
            ("top_k", self.top_k is None or self.top_k >= 1),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf),
            ("max_tokens", self.max_tokens >= 1),
        ):
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)} is out of range")


def row_key(seed: int) -> int:
    """Where a seed's stream of noise begins, a signed number of 64 bits."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64).view(np.int64)[0])


def gumbel_noise(keys: Tensor, steps: Tensor, vocabulary: int) -> Tensor:
    """Gumbel noise for every token, the same on every machine.

    Counted rather than drawn in turn: SplitMix64's output at place `step * 2^32 + token` of the
    stream that begins at the row's key.

    Args:
        keys: `row_key` of every row, int64 (batch,).
        steps: Number of tokens that each row has generated, int64 (batch,).
        vocabulary: Number of tokens.

    Returns:
        float64 (batch, vocabulary).
    """
    tokens = torch.arange(1, vocabulary + 1, device=keys.device)
    bits = (keys + (steps << 32) * GOLDEN).unsqueeze(1) + tokens * GOLDEN
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        bits ^= _shifted(bits, shift)
        bits *= multiplier
    bits ^= _shifted(bits, 31)
    # Halves of 2^-52, so that neither 0 nor 1 can come up.
    uniforms = _shifted(bits, 12).double().add_(0.5).mul_(2.0**-52)
    return uniforms.log_().neg_().log_().neg_()


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shifted to the right as unsigned numbers; torch would carry the sign along."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def scores(
    logits: Tensor, seen: Tensor, penalty: Tensor, keys: Tensor, steps: Tensor, temperature: Tensor
) -> Tensor:
    """Logits and noise, of which every row chooses the largest, (batch, vocabulary).

    Args:
        logits: As for `RowSampler.choose`.
        seen: Likewise.
        penalty: Repetition penalty of every row.
        keys: As for `gumbel_noise`.
        steps: Likewise.
        temperature: Of every row. The noise is multiplied by it, rather than the logits divided: 0
            is greedy.
    """
    noise = gumbel_noise(keys, steps, logits.shape[-1])
    noise *= temperature.unsqueeze(1)
    noise += punished(logits, seen, penalty)
    return noise


def compiled_scores(
    vocabulary: int, dtype: torch.dtype, device: torch.device | str
) -> Scores | None:
    """`scores` in one pass over the vocabulary, where a dozen and more pass over it in turn.

    The largest is not looked for in that pass: torch 2.13 compiles its place wrongly on a CPU.

    Args:
        vocabulary: Number of logits.
        dtype: Their type.
        device: Where they are.

    Returns:
        None where there is no compiler, or what it makes chooses other tokens.
    """
    settings = [Sampling(seed, 0.7 * (seed % 3), None, None, 1.1, 1) for seed in range(7)]
    rows, steps = RowSampler(settings, device), torch.arange(7).to(device)
    try:
        compiled: Scores = torch.compile(scores, dynamic=True)
        with torch.inference_mode():
            drawn = torch.randn(7, vocabulary, generator=torch.Generator().manual_seed(0))
            logits = (4 * drawn).to(device, dtype)
            wanted = rows.choose(logits, logits > 0, steps)
            if not torch.equal(wanted, rows.choose(logits, logits > 0, steps, compiled)):
                raise RuntimeError("it chooses other tokens")
    except Exception as error:  # of whatever compiler there is
        logger.warning("esr-eval chooses tokens uncompiled: %s", error)
        return None
    return compiled


def punished(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Logits in float32, those of tokens seen before with the repetition penalty."""
    logits, penalty = logits.float(), penalty.unsqueeze(1)
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


class RowSampler:
    """Chooses the next token of every row of a batch."""

    def __init__(self, rows: "Sequence[Sampling]", device: torch.device | str = "cpu") -> None:
        """Stack the rows' settings."""
        self._keys = torch.tensor([row_key(row.seed) for row in rows], device=device)
        self._temperature = torch.tensor([row.temperature for row in rows], device=device)
        self._penalty = torch.tensor([row.repetition_penalty for row in rows], device=device)
        self._top_p = torch.tensor(
            [1.0 if row.top_p is None else row.top_p for row in rows], device=device
        )
        self._top_k = torch.tensor([row.top_k or 0 for row in rows], device=device)
        # Known here, so that no step asks the device.
        self._greedy = not any(row.temperature for row in rows)
        self._most_kept = max((row.top_k or 0 for row in rows), default=0)
        self._any_top_p = any(row.top_p is not None and row.top_p < 1 for row in rows)

    def to(self, device: torch.device) -> "RowSampler":
        """Move the settings to a device, in place."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def choose(
        self,
        logits: Tensor,
        seen: Tensor,
        steps: Tensor,
        compiled: "Scores | None" = None,
    ) -> Tensor:
        """Choose one token per row.

        Args:
            logits: Next-token logits, (batch, vocabulary).
            seen: For every row which tokens occurred so far, boolean (batch, vocabulary).
            steps: Number of tokens that each row generated before this one, int64 (batch,).
            compiled: See `compiled_scores`.

        Returns:
            Token ids, (batch,).
        """
        penalty = self._penalty
        if self._greedy:
            return punished(logits, seen, penalty).argmax(-1)
        if self._most_kept or self._any_top_p:
            logits = self._truncated(punished(logits, seen, penalty))
            penalty = torch.ones_like(penalty)
        # A single row would be compiled for by itself.
        score = compiled if compiled and len(logits) > 1 else scores
        return score(logits, seen, penalty, self._keys, steps, self._temperature).argmax(-1)

    def _truncated(self, logits: Tensor) -> Tensor:
        if self._most_kept:
            best = logits.topk(min(self._most_kept, logits.shape[-1])).values
            place = (self._top_k - 1).clamp(0, best.shape[-1] - 1).unsqueeze(1)
            floor = best.gather(-1, place)
            cut = (self._top_k > 0).unsqueeze(1) & (logits < floor)
            logits = logits.masked_fill(cut, float("-inf"))
        if self._any_top_p:
            scaled = logits.double() / self._temperature.clamp_min(1e-6).unsqueeze(1)
            ordered, index = torch.softmax(scaled, dim=-1).sort(-1, descending=True)
            drop = ordered.cumsum(-1) - ordered >= self._top_p.unsqueeze(1)
            logits = logits.masked_fill(
                torch.zeros_like(drop).scatter(-1, index, drop), float("-inf")
            )
        return logits
