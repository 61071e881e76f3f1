"""What a request to a vLLM server carries beside its prompt, and what its answer tells.

A request names rows of SAEs, and vectors, by digest; the rows themselves go to the server once, as
safetensors. Nothing that travels is code.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from esr_eval.backends.vllm import ANSWER, NO_STOP, SAMPLING_ARG, STEERING_ARG
from esr_eval.backends.vllm.routes import row_digest
from esr_eval.backends.vllm.steerer import HALVES, KINDS
from esr_eval.sae.encoder import LatentEncoder, norm_scale, packed
from esr_eval.steering.edits import LayerEdits
from esr_eval.steering.kernel import Intervention
from esr_eval.steering.sampling import Sampling

Rows = dict[str, dict[str, Tensor]]
"""Rows by digest, each in parts."""


def sampling_args(sampling: Sampling) -> dict[str, str]:
    """Extra arguments that make the server's `sampler.py` choose the tokens."""
    return {SAMPLING_ARG: json.dumps(asdict(sampling))}


def steering_args(plan: Intervention) -> tuple[dict[str, str], Rows]:
    """Extra arguments with one request's plan, and the rows that it names.

    Args:
        plan: What to do, for a batch of this request alone.
    """
    if not plan.layers:
        return {}, {}
    rows: Rows = {}
    told = {
        "edits": {layer: _terms(edits, rows) for layer, edits in plan.edits.items()},
        "reads": [
            (read.key[1], layer, read.start, min(read.stop, NO_STOP))
            for layer, reads in plan.reads.items()
            for read in reads
        ],
    }
    return {STEERING_ARG: json.dumps(told)}, rows


def rows_body(rows: Rows) -> bytes:
    """Rows as the server takes them; 16 bits of each number where that loses nothing."""
    tensors = {
        f"{digest}/{part}": values if part == "numbers" else packed(values)
        for digest, row in rows.items()
        for part, values in row.items()
    }
    return bytes(save(tensors))


def _terms(edits: LayerEdits, rows: Rows) -> list[list[Any]]:
    scaled = 0
    if edits.output_scale is not None:
        scaled = 1 if edits.output_scale is norm_scale else 2
    told = []
    for k, direction in enumerate(edits.directions[0].cpu()):
        clamps, of_sae = bool(edits.clamped[0, k]), bool(edits.sae_scaled[0, k])
        row = {"direction": direction.clone()}
        if clamps:
            assert isinstance(edits.encode, LatentEncoder)
            row |= _encoder(edits.encode, int(edits.slot[0, k]))
        else:
            row["numbers"] = torch.tensor([0.0, 0.0, float(scaled if of_sae else 0)])
        amount, start, stop = (
            values[0, k].item() for values in (edits.amount, edits.start, edits.stop)
        )
        rows[digest := row_digest(row)] = row
        told.append([digest, amount, start, min(stop, NO_STOP), int(clamps)])
    return told


def _encoder(encode: LatentEncoder, at: int) -> dict[str, Tensor]:
    """One latent's encoder row; what is subtracted from the input goes into its bias."""
    weight, bias = encode.weight[:, at].cpu().contiguous(), encode.bias[at].cpu().double()
    if encode.centre is not None:
        bias = bias - encode.centre.cpu().double() @ weight.double()
    kind = KINDS.index(encode.normalisation) if encode.normalisation in KINDS else 0
    numbers = torch.tensor([float(bias), float(encode.threshold[at]), float(kind)])
    return {"encoder": weight, "numbers": numbers}


class Found:
    """What the server counted and read for one request."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        """Read an answer; one of a request without steering tells nothing."""
        told = (answer.get("kv_transfer_params") or {}).get(ANSWER)
        self.steered = told is not None
        told = told or {}
        self.finite: bool = told.get("finite", True)
        self._fed: int | None = told.get("fed")
        self._counts: dict[str, list[int]] = told.get("counts", {})
        self._reads = {index: rest for index, *rest in told.get("reads", ())}

    def counts(self, fed: int) -> dict[int, tuple[int, int]]:
        """By layer: positions that an edit changed and the next layer received so, and held ones.

        Args:
            fed: Number of tokens that went through the model, prompt included.

        Raises:
            RuntimeError: The server counted over another number.
        """
        if self._counts and self._fed != fed:
            raise RuntimeError(f"The vLLM server counted over {self._fed} tokens, not {fed}.")
        return {int(layer): (edited, held) for layer, (edited, held) in self._counts.items()}

    def read(self, index: int, start: int, stop: int) -> Tensor | None:
        """Values of a readout at positions `start` up to `stop`, float32 (position, value).

        Returns:
            None when there is no such position.

        Raises:
            RuntimeError: The server has not read every one of them.
        """
        wanted = list(range(start, stop))
        if not wanted:
            return None
        positions, name, text = self._reads.get(index, ([], "float32", ""))
        if positions[: len(wanted)] != wanted:
            raise RuntimeError(
                f"The vLLM server read {len(positions)} positions where {len(wanted)} were due."
            )
        dtype: torch.dtype = getattr(torch, name)
        raw = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=HALVES.get(dtype, dtype))
        return raw.view(dtype).float().reshape(len(positions), -1)[: len(wanted)]
