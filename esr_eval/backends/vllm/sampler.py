"""Our sampler inside a vLLM server: logits in which the chosen token stands above all others.

A request that brings a `Sampling` is asked for greedily and without a penalty of vLLM's own; its
tokens are then those of every other backend. This file lies on the server's path by itself, so it
needs nothing but torch and numpy there.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from esr_eval.backends.vllm.steerer import Request, grown, sent
from esr_eval.steering.sampling import RowSampler, compiled_scores


class BatchSampler:
    """Chooses the tokens of every request that brings a `Sampling`.

    What a row has seen stays on the device, and grows there by the token that is chosen: no step
    waits for the one before.
    """

    def __init__(self, device: torch.device, vocabulary: int, dtype: torch.dtype) -> None:
        """Start with no request, and with compiled scores where they are to be had.

        Args:
            device: Where logits are.
            vocabulary: Number of logits.
            dtype: Their type.
        """
        self._device = device
        self._compiled = compiled_scores(vocabulary, dtype, device)
        self._now: list[tuple[int, Request]] = []
        self._stacked: list[tuple[int, Request]] = []
        self._rows = RowSampler([])
        self._at = self._places = self._steps = torch.zeros(0, dtype=torch.int64)
        self._seen = torch.zeros(0, vocabulary, dtype=torch.bool, device=device)
        # On the device: a number assigned by index would be copied there, and that waits for all
        # that the device still has to compute.
        self._yes = torch.ones((), dtype=torch.bool, device=device)
        self._top = torch.zeros((), dtype=dtype, device=device)

    def step(self, requests: Sequence[Request | None], reached: Iterable[bool]) -> None:
        """Learn what the next forward pass computes.

        Args:
            requests: What is known of each row of the batch.
            reached: Whether a token of each is wanted; not in the midst of its prompt.
        """
        self._now = [
            (i, one)
            for i, (one, wanted) in enumerate(zip(requests, reached, strict=True))
            if wanted and one is not None and one.sampling is not None
        ]

    def chosen(self, logits: Tensor | None) -> Tensor | None:
        """Logits whose largest is that of the chosen token, in the rows that are ours."""
        now, self._now = self._now, []
        if not now or logits is None:
            return logits
        if now != self._stacked:
            self._stack(now, logits)
        ours = logits if len(now) == len(logits) else logits[self._at]
        chosen = self._rows.choose(ours, self._seen[self._places], self._steps, self._compiled)
        self._seen.index_put_((self._places, chosen), self._yes)
        self._steps += 1
        for _, request in now:
            request.made += 1
        return logits.index_put_((self._at, chosen), self._top)

    def _stack(self, now: list[tuple[int, Request]], logits: Tensor) -> None:
        """Prepare for a batch of other requests, or in another order."""
        self._stacked, ours = now, [request for _, request in now]
        self._seen = grown(self._seen, max(request.place for request in ours))
        for request in ours:
            if not request.made and request.prompt:
                self._seen[request.place] = False
                self._seen[request.place, sent(request.prompt, self._device)] = True
                request.prompt = ()
        self._rows = RowSampler([one.sampling for one in ours if one.sampling], self._device)
        self._at = sent([i for i, _ in now], self._device)
        self._places = sent([request.place for request in ours], self._device)
        self._steps = sent([request.made for request in ours], self._device)
        self._top = torch.full_like(self._yes, torch.finfo(logits.dtype).max, dtype=logits.dtype)
