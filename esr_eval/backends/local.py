"""The local backend: nnsight around transformers, one batch of rows with different edits."""

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from esr_eval.backends.base import BackendInfo, Generated, Row
from esr_eval.backends.layout import decoder_layers_path, descend
from esr_eval.backends.loading import LoadOptions, load_model
from esr_eval.backends.plan import BatchPlan, ReadoutRecorder, plan_batch
from esr_eval.errors import EsrError
from esr_eval.sae import SparseSAE, open_sae
from esr_eval.sampling import RowSampler, Sampling
from esr_eval.spec import Boost, Runtime, Steering

SELF_CHECK_SHARE = 0.5
"""Share of the residual's norm that the self-check adds: enough to move any model's logits."""


class _Decoding(LogitsProcessor):  # type: ignore[misc]
    """Chooses every row's next token and keeps track of who is still generating.

    transformers calls it after each forward pass; it answers with scores that leave the chosen
    token alone possible, so that transformers' greedy loop does the rest.
    """

    def __init__(self, rows: Sequence[Row], mask: Tensor, end_tokens: list[int]) -> None:
        device = mask.device
        self._sampler = RowSampler([row.sampling for row in rows], device)
        self._limits = torch.tensor([row.sampling.max_tokens for row in rows], device=device)
        self._ends = torch.tensor(end_tokens, device=device)
        self._mask = mask.bool()
        self._seen: Tensor | None = None
        self.lengths = torch.tensor([len(row.prompt) for row in rows], device=device)
        self.alive = torch.ones(len(rows), dtype=torch.bool, device=device)
        self.ended_by_model = torch.zeros_like(self.alive)
        self.generated = torch.zeros_like(self.lengths)
        self.step = 0

    def positions(self, columns: int) -> Tensor:
        """Row-relative positions of the current forward pass, -1 at padding and ended rows.

        Args:
            columns: Width of this pass: the padded prompt first, one column afterwards.
        """
        if self.step == 0:
            positions = self._mask.long().cumsum(-1) - 1
            return positions.masked_fill(~self._mask, -1)
        assert columns == 1
        position = self.lengths + self.step - 1
        return position.masked_fill(~self.alive, -1).unsqueeze(1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._seen is None:
            self._seen = torch.zeros_like(scores, dtype=torch.bool)
            rows, columns = self._mask.nonzero(as_tuple=True)
            self._seen[rows, input_ids[rows, columns]] = True
        chosen = self._sampler.choose(scores, self._seen, self.step)
        ends = torch.isin(chosen, self._ends)
        self.ended_by_model |= self.alive & ends
        self.generated += self.alive & ~ends
        self.alive = self.alive & ~ends
        self._seen.scatter_(1, chosen.unsqueeze(1), True)
        # A row at its own limit is ended in transformers' eyes by an end token in the step after.
        over = self.generated > self._limits
        self.generated -= over.long()
        self.alive = self.alive & (self.generated < self._limits) & ~over
        self.step += 1
        forced = torch.where(self._finished_before(ends, over), self._ends[0], chosen)
        only = torch.full_like(scores, float("-inf"))
        return only.scatter_(1, forced.unsqueeze(1), 0.0)

    def _finished_before(self, ends: Tensor, over: Tensor) -> Tensor:
        return over & ~ends
