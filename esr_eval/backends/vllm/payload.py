"""What a request to a vLLM server carries beside its prompt: the hook, its data, the sampling.

vLLM-lens loads hooks with pickle and runs them. A pickled function holds bytecode, which another
Python version cannot run, so ours goes as the source text of `edits.py` and `vllm_hook.py`, which
the server compiles once, with the request's rows as plain bytes beside it.
"""

import base64
import json
import pickle
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from esr_eval.backends.vllm.names import SAMPLING_ARG
from esr_eval.errors import EsrError
from esr_eval.sae.encoder import LatentEncoder, packed
from esr_eval.sae.sparse import ELEMENTWISE, SparseSAE
from esr_eval.spec import AddVector, Clamp, Edit, Readout, Span
from esr_eval.steering.plan import load_vector
from esr_eval.steering.requests import Steered
from esr_eval.steering.sampling import Sampling

HOOKS_ARG = "apply_hooks"
"""Extra argument of a request in which vLLM-lens expects hooks."""

_OURS = re.compile(r"^from esr_eval\.[^\n(]*(\([^)]*\))?\n", re.MULTILINE)
NOTHING: dict[str, Any] = {"normalisation": "none", "terms": [], "clamped": None, "reads": []}
"""A layer's plan that neither edits nor reads."""
_EXPRESSION = "exec(boot, space := {}) or space['load'](expression, boot, source, data)"
_BOOT = """
import hashlib, sys, types

def load(expression, boot, source, data):
    name = "esr_eval_hook_" + hashlib.sha256(source.encode()).hexdigest()[:16]
    if name not in sys.modules:
        module = sys.modules[name] = types.ModuleType(name)
        try:
            exec(compile(source, name, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    hook = sys.modules[name].EditHook(data)
    # The server pickles what it has loaded once more, for its workers.
    parts = dict(expression=expression, boot=boot, source=source, data=data)
    hook.recipe = (expression, parts)
    return hook
"""


class _Shipped:
    """Pickles into a call that compiles the source and makes the hook."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._parts = {
            "expression": _EXPRESSION,
            "boot": _BOOT,
            "source": hook_source(),
            "data": data,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (_EXPRESSION, self._parts)  # noqa: S307 - read by the server alone


@cache
def hook_source() -> str:
    """The source text that runs on the server: the edits and the hook, without our imports."""
    texts = [
        (resources.files("esr_eval") / name).read_text("utf-8")
        for name in ("sae/encoder.py", "steering/edits.py", "backends/vllm/hook.py")
    ]
    return _OURS.sub("", "\n".join(texts))


class Payloads:
    """Builds the extra arguments of requests; keeps the SAE rows it has read."""

    def __init__(self, sae: SparseSAE | None, n_layers: int) -> None:
        """Set up for a model.

        Args:
            sae: The runtime's SAE; None when only plain vectors are added.
            n_layers: Number of decoder layers of the model.
        """
        self._sae = sae
        self._n_layers = n_layers
        self._encoders: dict[int, LatentEncoder] = {}

    def check(self, edits: Sequence[Edit]) -> None:
        """Refuse edits that would need the whole SAE on the server.

        Raises:
            EsrError: A clamp names an SAE whose latents depend on each other.
        """
        if any(isinstance(edit, Clamp) for edit in edits) and not self._elementwise:
            assert self._sae is not None
            raise EsrError(
                f"A clamp needs the activation of its latent, and under an SAE of architecture "
                f"'{self._sae.config.architecture}' that takes the whole SAE, which is not sent to "
                "a vLLM server: use boosts, or the local backend."
            )

    def reads_residuals(self, readout: Readout) -> bool:
        """Whether a readout brings residuals back, as it has no single rows to send."""
        return readout.latents == "all" or not self._elementwise

    def hook_args(self, row: Steered) -> dict[str, str]:
        """Extra arguments with the request's edits and readouts; empty without any."""
        steering = row.steering
        if steering is None or not (steering.edits or steering.readouts):
            return {}
        self.check(steering.edits)
        skip, prompt = steering.runtime.skip_first, len(row.prompt)
        layers = {
            layer: {
                "normalisation": self._sae.config.normalisation if self._sae else "none",
                **self._terms([e for e in steering.edits if e.layer == layer], prompt, skip),
                "reads": [
                    self._read(index, readout, prompt, skip)
                    for index, readout in enumerate(steering.readouts)
                    if readout.layer == layer
                ],
            }
            for layer in sorted({part.layer for part in (*steering.edits, *steering.readouts)})
        }
        if steering.edits:  # the last layer tells whether what comes out is a number
            layers.setdefault(self._n_layers - 1, NOTHING)
        return hook_args(layers, self._n_layers, edits=bool(steering.edits))

    @property
    def _elementwise(self) -> bool:
        return self._sae is None or self._sae.config.architecture in ELEMENTWISE

    def _terms(self, edits: list[Edit], prompt: int, skip: int) -> dict[str, Any]:
        # The spec lets a clamp stand twice only when both say the same: once is enough.
        clamps = list(dict.fromkeys(e for e in edits if isinstance(e, Clamp)))
        held = sorted({clamp.latent for clamp in clamps})
        terms = []
        for edit in (*clamps, *(e for e in edits if not isinstance(e, Clamp))):
            start, stop = edit.bounds(prompt, skip)
            term: dict[str, Any] = {"start": start, "stop": stop}
            if isinstance(edit, AddVector):
                term |= {"direction": as_bytes(load_vector(edit)), "amount": edit.strength}
                terms.append({**term, "sae_scaled": False})
                continue
            assert self._sae is not None
            term["direction"] = as_bytes(self._sae.decoder_row(edit.latent))
            if isinstance(edit, Clamp):
                terms.append({**term, "amount": edit.value, "clamp_slot": held.index(edit.latent)})
            else:
                terms.append({**term, "amount": edit.strength})
        return {"terms": terms, "clamped": self._latents(held) if held else None}

    def _read(self, index: int, readout: Readout, prompt: int, skip: int) -> dict[str, Any]:
        start, stop = readout.bounds(prompt, skip)
        whole = self.reads_residuals(readout)
        latents = None if whole else self._latents([int(i) for i in readout.latents])
        return {"index": index, "start": start, "stop": stop, "latents": latents}

    def _latents(self, latents: list[int]) -> dict[str, Any]:
        """What the server computes the activations of these latents from."""
        encoders = [self._encoder(latent) for latent in latents]
        centre = encoders[0].centre
        return {
            "weight": as_bytes(torch.cat([one.weight for one in encoders], dim=1)),
            "bias": as_bytes(torch.cat([one.bias for one in encoders])),
            "threshold": as_bytes(torch.cat([one.threshold for one in encoders])),
            "centre": None if centre is None else as_bytes(centre),
            "normalisation": encoders[0].normalisation,
        }

    def _encoder(self, latent: int) -> LatentEncoder:
        """A latent's encoder row, read once: it is a strided column of a large matrix."""
        if latent not in self._encoders:
            assert self._sae is not None
            encoder = self._sae.encoder([latent])
            assert isinstance(encoder, LatentEncoder)
            self._encoders[latent] = encoder
        return self._encoders[latent]


def sampling_args(sampling: Sampling) -> dict[str, str]:
    """Extra arguments that make `vllm_sampler` choose the tokens."""
    return {SAMPLING_ARG: json.dumps(asdict(sampling))}


def residual_args(layer: int, span: Span, prompt: int, n_layers: int) -> dict[str, str]:
    """Extra arguments that bring the residual stream behind a layer back, unedited."""
    start, stop = span.bounds(prompt, 0)
    read = {"index": 0, "start": start, "stop": stop, "latents": None}
    return hook_args({layer: {**NOTHING, "reads": [read]}}, n_layers)


def hook_args(
    layers: dict[int, dict[str, Any]], n_layers: int, edits: bool = False
) -> dict[str, str]:
    """Extra arguments that carry the hook for given layers' plans.

    Args:
        layers: What to do at each layer.
        n_layers: Number of decoder layers of the model.
        edits: Whether to watch the last layer for numbers that are none.
    """
    data = {"n_layers": n_layers, "layers": layers, "edits": edits}
    raw = pickle.dumps(_Shipped(data), protocol=4)
    code = {"cloudpickle": base64.b64encode(raw).decode("ascii")}
    return {HOOKS_ARG: json.dumps([{"fn": code, "layer_indices": sorted(layers)}])}


def as_bytes(values: Tensor) -> list[Any]:
    """`[dtype, shape, bytes]` of a float32 tensor; in 16 bits where that loses nothing."""
    small = packed(values.detach().float().cpu()).contiguous()
    raw = small if small.dtype == torch.float32 else small.view(torch.int16)
    return [str(small.dtype).removeprefix("torch."), list(small.shape), raw.numpy().tobytes()]
