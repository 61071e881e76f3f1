"""The one function that a vLLM server runs on our behalf: edits and readouts of one request.

It travels as source text (`payload.py`), together with `edits.py`, as the server has neither this
package nor, maybe, this Python version. So it needs nothing but torch there. vLLM-lens drops
the edits of a whole batch when any hook of that batch raises, be it another client's; so nothing
may raise here, and an edit counts as done only when the next layer was seen to receive it.

The last layer also tells when the residual stream is no number any more: whatever token the server
then draws is made up.
"""

import base64
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from esr_eval.sae.encoder import LatentEncoder, ResidualNorm, norm_scale, spread
from esr_eval.steering.edits import Change, LayerEdits

_DTYPES = {torch.bfloat16: torch.int16, torch.float16: torch.int16}
_OUTPUT_SCALES = {"norm_scale": norm_scale, "spread": spread}


class _Edit(NamedTuple):
    """An edit that the next layer has not confirmed yet."""

    ctx: Any
    first: int
    touched: list[bool]
    row: int
    edited: Tensor
    change: Change


_UNDERWAY: dict[int, tuple[Any, list[_Edit]]] = {}
"""Edits of the forward pass under way, by layer, with the pass's own context."""
_WATCHED: dict[int, bool] = {}
"""Whether the layer behind a layer confirms what arrives there."""


def _state(data: dict[str, Any]) -> dict[str, Any]:
    """An object's state, from the plain data that `payload.py` makes of it."""
    return {
        name: _tensor(*value) if isinstance(value, list) else value for name, value in data.items()
    }


def _tensor(dtype: str, shape: list[int], raw: bytes) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=getattr(torch, dtype)).reshape(shape)


def _encoder(data: dict[str, Any] | None, device: Any) -> LatentEncoder | ResidualNorm | None:
    if not data:  # the norm has no state
        return None if data is None else ResidualNorm()
    made = LatentEncoder.__new__(LatentEncoder)
    made.__setstate__(_state(data))
    return made.to(device)


def _edits(data: dict[str, Any], device: Any) -> LayerEdits:
    state = _state(data)
    state["encode"] = _encoder(data["encode"], device)
    state["output_scale"] = _OUTPUT_SCALES.get(data["output_scale"])
    made = LayerEdits.__new__(LayerEdits)
    made.__setstate__(state)
    return made.to(device)


class _Layer:
    """What to do at one layer."""

    def __init__(self, data: dict[str, Any], device: Any) -> None:
        self.edits, self.spans = None, list[list[int]]()
        if data["edits"] is not None:
            self.edits = _edits(data["edits"], device)
            bounds = torch.stack([self.edits.start[0], self.edits.stop[0]], dim=1)
            self.spans = bounds.tolist()
        self.reads = [
            (read["index"], read["start"], read["stop"], _encoder(read["encode"], device))
            for read in data["reads"]
        ]

    def touched(self, first: int, count: int) -> list[bool]:
        """Which of `count` positions at least one edit touches."""
        return [
            any(start <= at < stop for start, stop in self.spans)
            for at in range(first, first + count)
        ]


class EditHook:
    """Edits and reads the residual stream behind the layers that the request names."""

    recipe: tuple[str, dict[str, Any]]

    def __init__(self, data: dict[str, Any]) -> None:
        """Keep the request's plan; tensors are unpacked where the model is."""
        self._data = data
        self._layers: dict[int, _Layer] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Load again on the server's workers the way it was loaded on the server."""
        return eval, self.recipe  # noqa: S307 - our own expression

    def __call__(self, ctx: Any, hidden: Tensor) -> Tensor | None:
        """vLLM-lens's hook: the request's part of a layer's output, (position, d_model)."""
        try:
            return self._run(ctx, hidden)
        except Exception as error:  # see above: an error is told, never raised
            _tell(ctx, error)
            return None

    def _run(self, ctx: Any, hidden: Tensor) -> Tensor | None:
        number, rank = ctx.layer_idx, _rank()
        layer = self._layers.get(number)
        if layer is None:
            layer = self._layers[number] = _Layer(self._data["layers"][number], hidden.device)
            dtype = str(hidden.dtype).removeprefix("torch.")
            ctx.saved.update(width=hidden.shape[-1], dtype=dtype, torch=torch.__version__)
            ctx.saved["device"] = hidden.device.type
        first, count = _first_position(ctx, hidden), hidden.shape[0]
        touched = layer.touched(first, count)
        edited = None
        if any(touched) and layer.edits is not None:
            at = torch.arange(first, first + count, device=hidden.device).unsqueeze(0)
            before = hidden.clone().unsqueeze(0)
            delta = layer.edits.delta(before, at)[0]
            edited = (hidden.float() + delta).to(hidden.dtype)
            _note(ctx, "edited", number, rank, _runs(first, touched))
            row = hidden.storage_offset() // hidden.stride(0)
            change = Change(layer.edits, before, edited.unsqueeze(0), at)
            one = _Edit(ctx, first, touched, row, edited, change)
            if _watch(ctx.model, number, self._data["n_layers"]):
                _await(number, one)
            else:
                _judge(number, [one], [edited])
        now = hidden if edited is None else edited
        last = number == self._data["n_layers"] - 1
        if last and self._data["edits"] and not bool(torch.isfinite(now).all()):
            ctx.saved["broken"] = True
        for index, start, stop, encode in layer.reads:
            low, high = max(start, first), min(stop, first + count)
            if low < high:
                values = now[low - first : high - first]
                if encode is not None:
                    values = encode(values.float())
                ctx.saved.setdefault("reads", []).append([index, low, high - low, *_plain(values)])
        return edited


def _watch(model: nn.Module, layer: int, n_layers: int) -> bool:
    """Have the next layer confirm edits of this one; False when nobody here can.

    The last layer has none behind it, and that of a pipeline stage is on another machine.
    """
    if layer not in _WATCHED:
        stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
        after = stacks[0][layer + 1] if stacks and layer + 1 < n_layers else None
        _WATCHED[layer] = after is not None and type(after).__name__ != "PPMissingLayer"
        if after is not None and _WATCHED[layer]:
            after.register_forward_pre_hook(lambda module, args: _confirm(layer, args))
    return _WATCHED[layer]


def _await(layer: int, edit: _Edit) -> None:
    this_pass = _forward_context()
    if layer not in _UNDERWAY or _UNDERWAY[layer][0] is not this_pass:
        _UNDERWAY[layer] = (this_pass, [])
    _UNDERWAY[layer][1].append(edit)


def _confirm(layer: int, args: tuple[Any, ...]) -> None:
    """Note which edits of a layer are what the next layer gets to see, all in one comparison."""
    this_pass, edits = _UNDERWAY.pop(layer, (None, []))
    try:
        if not edits or this_pass is not _forward_context():
            return
        like = edits[0].edited
        hidden = next(
            x for x in args if isinstance(x, Tensor) and x.dtype == like.dtype and x.ndim == 2
        )
        _judge(layer, edits, [hidden[e.row : e.row + len(e.edited)] for e in edits])
    except Exception as error:
        for edit in edits:
            _tell(edit.ctx, error)


def _judge(layer: int, edits: list[_Edit], received: list[Tensor]) -> None:
    """Note what became of every edited position, with one wait for the device."""
    seen = [e.change.arrived(x.unsqueeze(0))[0] for e, x in zip(edits, received, strict=True)]
    held = [e.change.held()[0] for e in edits]
    flags = torch.stack([torch.cat(seen), torch.cat(held)]).tolist()
    at = 0
    for edit in edits:
        end = at + len(edit.touched)
        part = list(zip(edit.touched, flags[0][at:end], flags[1][at:end], strict=True))
        at = end
        for name, which in (
            ("arrived", [arrived for _, arrived, _ in part]),
            ("held", [kept for _, _, kept in part]),
            ("lost", [due and not (arrived or kept) for due, arrived, kept in part]),
        ):
            _note(edit.ctx, name, layer, _rank(), _runs(edit.first, which))


def _runs(first: int, flags: list[bool]) -> list[list[int]]:
    """Runs `[first, end]` of the positions that are flagged."""
    runs: list[list[int]] = []
    for at, flag in enumerate(flags, first):
        if flag and runs and runs[-1][1] == at:
            runs[-1][1] = at + 1
        elif flag:
            runs.append([at, at + 1])
    return runs


def _plain(values: Tensor) -> tuple[str, str]:
    """Name of the dtype, and the values' bytes in base64."""
    raw = values.detach().contiguous().cpu()
    name = str(raw.dtype).removeprefix("torch.")
    raw = raw.view(_DTYPES.get(raw.dtype, raw.dtype))
    return name, base64.b64encode(raw.numpy().tobytes()).decode("ascii")


def _note(ctx: Any, name: str, layer: int, rank: int, runs: list[list[int]]) -> None:
    """Write runs of positions down as `[layer, rank, first, end]`, joined to what precedes them."""
    noted = ctx.saved.setdefault(name, [])
    for first, end in runs:
        if noted and noted[-1][:2] == [layer, rank] and noted[-1][3] == first:
            noted[-1][3] = end
        else:
            noted.append([layer, rank, first, end])


def _tell(ctx: Any, error: Exception) -> None:
    told = f"layer {ctx.layer_idx}: {type(error).__name__}: {error}"[:300]
    errors = ctx.saved.setdefault("errors", [])
    if told not in errors:
        errors.append(told)


def _rank() -> int:
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if together else 0


def _first_position(ctx: Any, hidden: Tensor) -> int:
    """Where in its sequence the request's part of this forward pass begins.

    vLLM-lens does not tell. The part is a slice of the batch, so its offset says which request of
    the batch it is. Counting would not do: under memory pressure vLLM computes a request anew.
    """
    metadata = _forward_context().attn_metadata
    if isinstance(metadata, list):
        metadata = metadata[0]
    one = next(m for m in metadata.values() if hasattr(m, "query_start_loc"))
    row = hidden.storage_offset() // hidden.stride(0)
    starts = one.query_start_loc.tolist()
    # Requests that wait have no rows in this pass: theirs would be the same start.
    request = next(
        i for i in range(len(starts) - 1) if starts[i] == row and starts[i + 1] > starts[i]
    )
    return int(one.seq_lens[request]) - int(starts[request + 1] - starts[request])


def _forward_context() -> Any:
    from vllm.forward_context import get_forward_context

    return get_forward_context()
