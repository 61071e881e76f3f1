"""Our sampler inside a vLLM server: a logits processor that leaves only the chosen token possible.

This file, `vllm_names.py` and `sampling.py` are laid on the server's path by themselves
(`serve/vllm.py`), so they need nothing but torch, numpy and vLLM there. A request that brings a
`Sampling` is asked for greedily and without a penalty of vLLM's own; its tokens are then those of
every other backend.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import (
    BatchUpdate,
    LogitsProcessor,
)
from vllm.v1.sample.logits_processor.builtin import (
    process_dict_updates,
)

from esr_eval.backends.vllm.names import PROBE_ARG, SAMPLER_SAYS, SAMPLING_ARG, sampler_digest
from esr_eval.steering.sampling import RowSampler, Sampling


class _Request:
    """One request of the server's running batch."""

    def __init__(self, wanted: Sampling, prompt: Sequence[int], output: list[int]) -> None:
        self.wanted = wanted
        self.output = output  # the server's own list: it grows as tokens are made
        self._new = list(prompt)
        self._noted = 0
        self._seen: Tensor | None = None

    def seen(self, vocabulary: int, device: torch.device) -> Tensor:
        """Which tokens occurred so far, boolean (vocabulary,)."""
        if self._seen is None:
            self._seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self._new += self.output[self._noted :]
        self._noted = len(self.output)
        if self._new:
            self._seen[torch.tensor(self._new, device=device)] = True
            self._new = []
        return self._seen


class SeededRows(LogitsProcessor):  # type: ignore[misc]
    """Chooses the tokens of every request that brings a `Sampling`."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse what cannot be sampled, and answer the probe.

        Raises:
            ValueError: The server answers the request with status 400 and this text.
        """
        extra = sampling_params.extra_args or {}
        if PROBE_ARG in extra:
            raise ValueError(f"{SAMPLER_SAYS} {sampler_digest()}")
        if SAMPLING_ARG in extra:
            _sampling(extra[SAMPLING_ARG])

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Start with an empty batch; the arguments are vLLM's."""
        self._device = device
        self._requests: dict[int, _Request] = {}
        self._sampler: RowSampler | None = None

    def is_argmax_invariant(self) -> bool:
        """It decides the token."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests as they come, go and change places in the batch."""
        if process_dict_updates(self._requests, batch_update, _new_request):
            self._sampler = None

    def apply(self, logits: Tensor) -> Tensor:
        """Scores that are -inf everywhere but at the chosen token, in the rows that are ours."""
        if not self._requests:
            return logits
        slots = sorted(self._requests)
        ours = [self._requests[slot] for slot in slots]
        if self._sampler is None:
            self._sampler = RowSampler([one.wanted for one in ours], logits.device)
        at = torch.tensor(slots, device=logits.device)
        seen = torch.stack([one.seen(logits.shape[-1], logits.device) for one in ours])
        steps = torch.tensor([len(one.output) for one in ours], device=logits.device)
        chosen = self._sampler.choose(logits[at], seen, steps)
        logits[at] = float("-inf")
        logits[at, chosen] = 0.0
        return logits


def _new_request(
    params: SamplingParams, prompt: list[int] | None, output: list[int]
) -> _Request | None:
    extra = params.extra_args or {}
    if SAMPLING_ARG not in extra:
        return None
    return _Request(_sampling(extra[SAMPLING_ARG]), prompt or [], output)


def _sampling(told: str) -> Sampling:
    try:
        return Sampling(**json.loads(told))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{SAMPLING_ARG} is not a sampling: {error}") from error
