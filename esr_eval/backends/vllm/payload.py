"""What a request to a vLLM server carries beside its prompt, and what its hook sends back.

vLLM-lens loads hooks with pickle and runs them. A pickled function holds bytecode, which another
Python version cannot run, so ours goes as the source text of `encoder.py`, `edits.py` and
`hook.py`, which the server compiles once, with the request's plan as plain data beside it.
"""

import base64
import json
import pickle
import re
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from esr_eval.backends.vllm import SAMPLING_ARG
from esr_eval.sae.encoder import LatentEncoder, ResidualNorm
from esr_eval.steering.edits import LayerEdits
from esr_eval.steering.kernel import Intervention
from esr_eval.steering.sampling import Sampling

HOOKS_ARG = "apply_hooks"
"""Extra argument of a request in which vLLM-lens expects hooks."""

Runs = list[list[int]]
"""Positions as `[layer, rank, first, end]`."""
ABOUT = ("width", "dtype", "torch", "device")
"""What the hook tells of the server."""
_HALVES = {torch.bfloat16: torch.int16, torch.float16: torch.int16}
"""What numpy takes for types that it lacks."""
_OURS = re.compile(r"^from esr_eval\.[^\n(]*(\([^)]*\))?\n", re.MULTILINE)
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


def sampling_args(sampling: Sampling) -> dict[str, str]:
    """Extra arguments that make the server's `sampler.py` choose the tokens."""
    return {SAMPLING_ARG: json.dumps(asdict(sampling))}


def hook_args(plan: Intervention, n_layers: int) -> dict[str, str]:
    """Extra arguments that carry the hook and one request's plan; empty for an empty plan.

    Args:
        plan: What to do, for a batch of this request alone. What is read through anything but
            single rows of an SAE comes back as residuals.
        n_layers: Number of decoder layers of the model.
    """
    if not plan.layers:
        return {}
    layers: dict[int, dict[str, Any]] = {
        layer: {
            "edits": _plain_edits(plan.edits[layer]) if layer in plan.edits else None,
            "reads": [
                {
                    "index": read.key[1],
                    "start": read.start,
                    "stop": read.stop,
                    "encode": _plain_encoder(read.encode),
                }
                for read in plan.reads.get(layer, ())
            ],
        }
        for layer in plan.layers
    }
    if plan.edits:  # the last layer tells whether what comes out is a number
        layers.setdefault(n_layers - 1, {"edits": None, "reads": []})
    data = {"n_layers": n_layers, "layers": layers, "edits": bool(plan.edits)}
    raw = pickle.dumps(_Shipped(data), protocol=4)
    code = {"cloudpickle": base64.b64encode(raw).decode("ascii")}
    return {HOOKS_ARG: json.dumps([{"fn": code, "layer_indices": sorted(layers)}])}


def _plain_edits(edits: LayerEdits) -> dict[str, Any]:
    scale = edits.output_scale
    return {
        **_plain_state(edits),
        "encode": _plain_encoder(edits.encode),
        "output_scale": None if scale is None else scale.__name__,
    }


def _plain_encoder(encode: Any) -> dict[str, Any] | None:
    if isinstance(encode, ResidualNorm):
        return {}  # it has no state
    return _plain_state(encode) if isinstance(encode, LatentEncoder) else None


def _plain_state(sent: LayerEdits | LatentEncoder) -> dict[str, Any]:
    """What `pickle` would send of it, tensors as `[dtype, shape, bytes]`."""
    return {
        name: _as_bytes(value) if isinstance(value, Tensor) else value
        for name, value in sent.__getstate__().items()
    }


def _as_bytes(values: Tensor) -> list[Any]:
    raw = values.detach().cpu().contiguous()
    plain = raw.view(_HALVES.get(raw.dtype, raw.dtype)).numpy().tobytes()
    return [str(raw.dtype).removeprefix("torch."), list(raw.shape), plain]


class Saved:
    """What one request's hook saved.

    A server may feed one token more than it returns, and compute positions twice when it runs out
    of memory; every rank of a tensor-parallel server tells its own. So positions are sets here.
    """

    def __init__(self, answer: dict[str, Any]) -> None:
        """Read the answer of the server.

        Raises:
            RuntimeError: A hook failed there, or the answer is not of our hook's form.
        """
        found = answer.get("hook_results") or {}
        edit = _checked(found.get("0"))
        self.about = {key: edit[key] for key in ABOUT if key in edit}
        if errors := edit.get("errors"):
            raise RuntimeError(f"The hook failed on the vLLM server: {str(errors[0])[:300]}")
        self._edited = _positions(edit.get("edited", []))
        self._arrived = _positions(edit.get("arrived", []))
        self._held = _positions(edit.get("held", []))
        self._lost = _positions(edit.get("lost", []))
        self.finite = not edit.get("broken", False)
        self._reads: list[list[Any]] = edit.get("reads", [])

    def counts(self, fed: int) -> dict[int, tuple[int, int]]:
        """By layer: positions at which an edit was made and seen to arrive, and held ones.

        Args:
            fed: Number of tokens that went through the model, prompt included.
        """
        found = {}
        for layer in {layer for layer, _ in self._edited}:
            ranks = [key for key in self._edited if key[0] == layer]
            # Every rank that computes the layer must have edited it.
            sure = set.intersection(*(self._sure(key) for key in ranks))
            held = set.intersection(*(self._held.get(key, set()) for key in ranks)) - sure
            found[layer] = sum(at < fed for at in sure), sum(at < fed for at in held)
        return found

    def _sure(self, key: tuple[int, int]) -> set[int]:
        lost, held = self._lost.get(key, set()), self._held.get(key, set())
        confirmed = self._arrived.get(key, set()) | lost | held
        if not confirmed:  # the next layer is another machine's to compute
            return self._edited[key]
        return (self._edited[key] & self._arrived.get(key, set())) - lost

    def read(self, index: int, start: int, stop: int) -> Tensor | None:
        """Values of a readout at positions `start` up to `stop`, float32 (position, value).

        Returns:
            None when there is no such position.

        Raises:
            RuntimeError: The server has not read every one of them.
        """
        rows: dict[int, Tensor] = {}
        for which, first, count, dtype, text in self._reads:
            if which == index:
                values = _tensor(text, dtype).reshape(count, -1)
                rows |= {first + i: values[i] for i in range(count)}
        wanted = range(start, stop)
        missing = [position for position in wanted if position not in rows]
        if missing:
            raise RuntimeError(
                f"The vLLM server read {len(wanted) - len(missing)} positions where "
                f"{len(wanted)} were due."
            )
        return torch.stack([rows[position] for position in wanted]) if wanted else None


def _checked(saved: Any) -> dict[str, Any]:
    """A hook's results; anything that would have to be unpickled is refused."""
    if saved is None:
        return {}
    if not isinstance(saved, dict) or any("__type__" in v for v in _dicts(saved.values())):
        raise RuntimeError("The vLLM server's answer does not come from this project's hooks.")
    return saved


def _dicts(values: Iterable[Any]) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)]


def _positions(runs: Runs) -> dict[tuple[int, int], set[int]]:
    found: dict[tuple[int, int], set[int]] = {}
    for layer, rank, first, end in runs:
        found.setdefault((layer, rank), set()).update(range(first, end))
    return found


def _tensor(text: str, name: str) -> Tensor:
    dtype: torch.dtype = getattr(torch, name)
    raw = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=_HALVES.get(dtype, dtype))
    return raw.view(dtype).float()
