"""From a plan to the request that a vLLM server gets, and from its answer to what became of it."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel
from safetensors.torch import load
from torch import Tensor

from esr_eval.backends.vllm import OURS
from esr_eval.backends.vllm.wire import KINDS, NO_STOP, Asked, Row, Term
from esr_eval.sae.encoder import LatentEncoder, norm_scale, spread
from esr_eval.steering.edits import LayerEdits
from esr_eval.steering.kernel import Intervention
from esr_eval.steering.sampling import Sampling

SCALES = (None, norm_scale, spread)
"""What undoes each of `KINDS`."""


def request_body(
    model: str,
    prompt: Sequence[int],
    max_tokens: int,
    plan: Intervention | None = None,
    sampling: Sampling | None = None,
) -> tuple[dict[str, Any], dict[str, Row]]:
    """A request for greedy tokens, beside what the plugin does, and the rows that it names.

    Args:
        model: The server's name of the model.
        prompt: Token ids.
        max_tokens: Most tokens to generate.
        plan: What to do, for a batch of this request alone.
        sampling: How the plugin chooses the tokens; None leaves that to vLLM.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        # Ends are the model's as the client knows them, whatever the server's defaults are.
        "ignore_eos": True,
    }
    rows: dict[str, Row] = {}
    asked = Asked(sampling=sampling)
    if plan is not None:
        asked.edits = {layer: _terms(edits, rows) for layer, edits in plan.edits.items()}
        asked.reads = spans(plan)
    if asked != Asked():
        body["vllm_xargs"] = {OURS: asked.model_dump_json()}
    return body, rows


def spans(plan: Intervention) -> dict[int, tuple[int, int]]:
    """By layer the first position that a readout of the plan reads, and the one after the last."""
    return {
        layer: (min(r.start for r in reads), min(max(r.stop for r in reads), NO_STOP))
        for layer, reads in plan.reads.items()
    }


def _terms(edits: LayerEdits, rows: dict[str, Row]) -> list[Term]:
    terms = []
    for k, direction in enumerate(edits.directions[0].cpu()):
        clamps = bool(edits.clamped[0, k])
        encoder, numbers = torch.zeros_like(direction), torch.zeros(3)
        if clamps:
            assert isinstance(edits.encode, LatentEncoder)
            encoder, numbers = _encoder(edits.encode, int(edits.slot[0, k]))
        elif edits.sae_scaled[0, k]:
            numbers[2] = SCALES.index(edits.output_scale)
        row = Row(torch.stack([direction, encoder]), numbers)
        amount, start, stop = (
            values[0, k].item() for values in (edits.amount, edits.start, edits.stop)
        )
        rows[digest := row.digest()] = row
        terms.append(Term(digest, amount, int(start), int(min(stop, NO_STOP)), clamps))
    return terms


def _encoder(encode: LatentEncoder, at: int) -> tuple[Tensor, Tensor]:
    """One latent's encoder row and numbers; what is subtracted from the input is in its bias."""
    weight, bias = encode.weight[:, at].cpu(), encode.bias[at].cpu().double()
    if encode.centre is not None:
        bias = bias - encode.centre.cpu().double() @ weight.double()
    kind = KINDS.index(encode.normalisation) if encode.normalisation in KINDS else 0
    return weight, torch.tensor([float(bias), float(encode.threshold[at]), float(kind)])


class Found(BaseModel):
    """What the server counted and read for one request.

    Attributes:
        finite: Whether all of the model's output were numbers.
        fed: Over how many tokens it counted, prompt included; None where it was not asked to steer.
        counts: By layer how many positions an edit changed so that the next layer received it, and
            how many were held by clamps as they were.
        reads: By layer the residuals read, as `steerer.py` packs them.
    """

    finite: bool = True
    fed: int | None = None
    counts: dict[int, tuple[int, int]] = {}
    reads: dict[int, str] = {}

    @classmethod
    def in_answer(cls, answer: Mapping[str, Any]) -> "Found":
        """Read an answer; one of a request without steering tells nothing."""
        return cls.model_validate((answer.get("kv_transfer_params") or {}).get(OURS, {}))

    def counted(self, fed: int) -> dict[int, tuple[int, int]]:
        """What was edited, counted over the `fed` tokens that went through the model.

        Raises:
            RuntimeError: The server counted over another number.
        """
        if self.counts and self.fed != fed:
            raise RuntimeError(f"The vLLM server counted over {self.fed} tokens, not {fed}.")
        return self.counts

    def residuals(self, layer: int, start: int, stop: int) -> Tensor:
        """A layer's output at positions `start` up to `stop`, float32 (position, d_model).

        Raises:
            RuntimeError: The server has not read every one of them.
        """
        told = self.reads.get(layer)
        read = load(base64.b64decode(told)) if told else {"at": torch.zeros(0)}
        if read["at"].tolist() != list(range(start, stop)):
            raise RuntimeError(
                f"The vLLM server read {len(read['at'])} positions where {stop - start} were due."
            )
        return read["residuals"].float()
