"""Our sampler inside a vLLM server: logits in which the chosen token stands above all others.

A request that brings a `Sampling` is asked for greedily and without a penalty of vLLM's own; its
tokens are then those of every other backend. This file lies on the server's path by itself, so it
needs nothing but torch and numpy there.
"""

import json
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from esr_eval.steering.sampling import RowSampler, Sampling, Scores, compiled_scores


def read_sampling(told: str) -> Sampling:
    """A request's sampling.

    Raises:
        ValueError: It is none.
    """
    try:
        return Sampling(**json.loads(told))
    except TypeError as error:
        raise ValueError(f"it is no sampling: {error}") from error


class _Request:
    """One request: its settings, the tokens of its prompt until they are noted, and its step."""

    def __init__(self, wanted: Sampling, prompt: Sequence[int], place: int) -> None:
        self.wanted, self.prompt, self.place, self.made = wanted, prompt, place, 0


class BatchSampler:
    """Chooses the tokens of every request that brings a `Sampling`.

    What a row has seen stays on the device, and grows there by the token that is chosen: no step
    waits for the one before.
    """

    def __init__(self, device: torch.device) -> None:
        """Start with no request."""
        self._device = device
        self._compiled: Scores | None = None
        self._requests: dict[str, _Request] = {}
        self._free: list[int] = []
        self._seen: Tensor | None = None
        self._now: list[tuple[int, _Request]] = []
        self._stacked: list[tuple[int, _Request]] = []
        self._rows = RowSampler([])
        self._at = self._places = self._steps = torch.zeros(0, dtype=torch.int64)
        # On the device: a number assigned by index would be copied there, and that waits for all
        # that the device still has to compute.
        self._yes = torch.ones((), dtype=torch.bool, device=device)
        self._top: Tensor | None = None

    def compile(self, vocabulary: int, dtype: torch.dtype) -> None:
        """Choose by compiled scores, where they are to be had.

        Args:
            vocabulary: Number of logits.
            dtype: Their type.
        """
        self._compiled = compiled_scores(vocabulary, dtype, self._device)

    def admit(self, name: str, told: str, prompt: Sequence[int]) -> None:
        """Take a request that vLLM begins to compute; one that it computes anew is known."""
        if name not in self._requests:
            place = self._free.pop() if self._free else len(self._requests)
            self._requests[name] = _Request(read_sampling(told), prompt, place)

    def leave(self, names: Iterable[str]) -> None:
        """Forget requests that vLLM computes no more."""
        for name in names:
            if (gone := self._requests.pop(name, None)) is not None:
                self._free.append(gone.place)

    def step(self, names: Sequence[str], reached: Iterable[bool]) -> None:
        """Learn what the next forward pass computes.

        Args:
            names: Requests in the order of the batch.
            reached: Whether a token of each is wanted; not in the midst of its prompt.
        """
        known = self._requests
        self._now = [
            (i, known[name])
            for i, (name, wanted) in enumerate(zip(names, reached, strict=True))
            if wanted and name in known
        ]

    def chosen(self, logits: Tensor | None) -> Tensor | None:
        """Logits whose largest is that of the chosen token, in the rows that are ours."""
        now, self._now = self._now, []
        if not now or logits is None:
            return logits
        if now != self._stacked:
            self._stack(now, logits.shape[-1])
        assert self._seen is not None
        ours = logits if len(now) == len(logits) else logits[self._at]
        chosen = self._rows.choose(ours, self._seen[self._places], self._steps, self._compiled)
        self._seen.index_put_((self._places, chosen), self._yes)
        self._steps += 1
        for _, request in now:
            request.made += 1
        if self._top is None or self._top.dtype != logits.dtype:
            largest = torch.finfo(logits.dtype).max
            self._top = torch.full((), largest, dtype=logits.dtype, device=logits.device)
        return logits.index_put_((self._at, chosen), self._top)

    def _stack(self, now: list[tuple[int, _Request]], vocabulary: int) -> None:
        """Prepare for a batch of other requests, or in another order."""
        self._stacked, ours = now, [request for _, request in now]
        most = 1 + max(request.place for request in ours)
        if self._seen is None or len(self._seen) < most:
            seen = torch.zeros(2 * most, vocabulary, dtype=torch.bool, device=self._device)
            if self._seen is not None:
                seen[: len(self._seen)] = self._seen
            self._seen = seen
        for request in ours:
            if not request.made and request.prompt:
                self._seen[request.place] = False
                self._seen[request.place, self._sent(request.prompt)] = True
                request.prompt = ()
        self._rows = RowSampler([request.wanted for request in ours], self._device)
        self._at = self._sent([i for i, _ in now])
        self._places = self._sent([request.place for request in ours])
        self._steps = self._sent([request.made for request in ours])

    def _sent(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers).to(self._device, non_blocking=True)
