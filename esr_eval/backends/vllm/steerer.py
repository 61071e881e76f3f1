"""Steering of a running batch on a vLLM worker: tables of edits, and one operation per layer.

This file lies on the server's path by itself, so it needs nothing but torch there. The arithmetic
is that of `steering/edits.py` and `sae/encoder.py`, for all tokens of a step at once: rows of SAEs
lie in a bank that all requests share, and what a request does is a short table of terms. Inside a
CUDA graph every size is fixed and every kind of edit computed; elsewhere what the batch needs.
"""

import base64
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROWS, TERMS = 512, 64
"""Rows of SAEs that a server holds, and the most edits of one request at a layer."""
FIELDS = ("row", "amount", "start", "stop", "clamps", "kind")
"""What a term says, in float32, which is exact below 2^24."""
KINDS = ("none", "constant_norm_rescale", "layer_norm")
"""Input normalisations, by number (`sae.encoder.normalise`)."""
LAYER_NORM_EPS = 1e-5
EDITED, HELD = 1, 2
_HALVES = {torch.bfloat16: torch.int16, torch.float16: torch.int16}


class Request:
    """A steered request: its slot, terms by layer, readouts, and the residuals read so far."""

    def __init__(self, plan: dict[str, Any]) -> None:
        """Take a plan as `routes.Desk` makes it."""
        self.slot: int = plan["slot"]
        self.edits = {int(layer): terms for layer, terms in plan["edits"].items()}
        self.reads: list[tuple[int, int, int, int]] = plan["reads"]
        self.found: dict[int, list[tuple[Tensor, Tensor]]] = {read[0]: [] for read in self.reads}


class Batch(NamedTuple):
    """The terms of a step at one layer, and the rows that they name.

    Attributes:
        terms: (token, term, field); rows are numbers among those that follow.
        directions: What is added, (row, d_model), float32.
        encoders: Encoder rows, of the same shape.
        numbers: Bias, threshold and kind of every row, (row, 3).
        clamps: Whether a term may clamp.
        kinds: Which normalisations may occur.
    """

    terms: Tensor
    directions: Tensor
    encoders: Tensor
    numbers: Tensor
    clamps: bool
    kinds: set[int]


class Layer:
    """One layer's tables, by slot, and the step under way there."""

    def __init__(self, like: Tensor, tokens: int, slots: int, longest: int) -> None:
        """Allocate, on the device of `like`, in its dtype and width."""
        self.table = torch.zeros(slots + 1, TERMS, len(FIELDS), device=like.device)
        self.flags = torch.zeros(slots + 1, longest, dtype=torch.uint8, device=like.device)
        self.before = like.new_empty(tokens, like.shape[-1])
        self.after = torch.empty_like(self.before)
        self.negligible = torch.zeros(tokens, dtype=torch.bool, device=like.device)
        self.read = False
        self.batch: Batch | None = None


class Steerer:
    """Everything that is steered in one worker."""

    def __init__(
        self, layers: Iterable[int], like: Tensor, tokens: int, slots: int, longest: int
    ) -> None:
        """Allocate.

        Args:
            layers: Whose outputs may be edited and read.
            like: Any tensor with the residual's device, dtype and width.
            tokens: Most tokens of a step.
            slots: Most steered requests at once.
            longest: Most tokens of a request.
        """
        self.layers = {layer: Layer(like, tokens, slots, longest) for layer in layers}
        self.directions = torch.zeros(ROWS, like.shape[-1], device=like.device)
        self.encoders = torch.zeros_like(self.directions)
        self.numbers = torch.zeros(ROWS, 3, device=like.device)
        self.none = slots
        """The slot of tokens that nothing is done to."""
        self.slots = torch.full((tokens,), slots, device=like.device)
        self.positions = torch.zeros(tokens, dtype=torch.int64, device=like.device)
        """Every token's position in its sequence: the model runner's own buffer."""
        self.sums = torch.zeros(slots + 1, device=like.device)
        """No number where a request's output was none."""
        self.requests: dict[str, Request] = {}
        """By vLLM's id, as long as vLLM computes them."""
        self.known: dict[str, Request] = {}
        """By our id, until their results are fetched."""
        self._now: list[tuple[Request | None, int]] = []
        self._tokens = 0

    def put(self, at: Sequence[int], rows: Iterable[dict[str, Tensor]]) -> None:
        """Write rows into places of the bank."""
        for place, row in zip(at, rows, strict=True):
            self.directions[place] = row["direction"].to(self.directions)
            self.encoders[place] = row.get("encoder", torch.zeros(())).to(self.encoders)
            self.numbers[place] = row["numbers"].to(self.numbers)

    def admit(self, name: str, plan: dict[str, Any]) -> None:
        """Take a request that vLLM begins to compute; one that it begins anew is known."""
        request = self.known.get(plan["id"])
        if request is None:
            request = self.known[plan["id"]] = Request(plan)
            for number, layer in self.layers.items():
                terms = torch.tensor(request.edits.get(number, ())).reshape(-1, len(FIELDS))
                layer.table[request.slot] = 0
                layer.table[request.slot, : len(terms)] = terms.to(layer.table)
                layer.flags[request.slot] = 0
            self.sums[request.slot] = 0
        self.requests[name] = request

    def leave(self, names: Iterable[str]) -> None:
        """Forget requests that vLLM computes no more; what was found stays until it is fetched."""
        for name in names:
            self.requests.pop(name, None)

    def step(self, names: Sequence[str], counts: Sequence[int]) -> None:
        """Learn what the next forward pass computes: requests in order, and tokens of each."""
        now = [(self.requests.get(name), n) for name, n in zip(names, counts, strict=True)]
        if now == self._now:
            return
        before, self._tokens, self._now = self._tokens, sum(counts), now
        slots = torch.tensor([self.none if one is None else one.slot for one, _ in now])
        slots = slots.repeat_interleave(torch.tensor(counts))
        self.slots[: self._tokens].copy_(slots, non_blocking=True)
        self.slots[self._tokens : before] = self.none
        steered = [one for one, _ in now if one is not None]
        for number, layer in self.layers.items():
            edits = [one.edits[number] for one in steered if one.edits.get(number)]
            layer.read = any(read[1] == number for one in steered for read in one.reads)
            layer.batch = self._batch(layer, edits) if edits else None

    def _batch(self, layer: Layer, edits: Sequence[Sequence[Sequence[float]]]) -> Batch:
        """The batch at hand, with the rows that it names and no others."""
        named = [term for terms in edits for term in terms]
        rows = torch.tensor(sorted({int(term[0]) for term in named}), device=self.slots.device)
        place = torch.zeros(ROWS, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device).to(place)
        terms = layer.table[:, : max(map(len, edits))][self.slots[: self._tokens]]
        terms[..., 0] = place[terms[..., 0].long()]
        return Batch(
            terms,
            self.directions[rows],
            self.encoders[rows],
            self.numbers[rows],
            any(term[4] for term in named),
            {int(term[5]) for term in named},
        )

    def edit(self, number: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Edit a layer's output in place.

        Args:
            number: Which layer.
            hidden: What it returns, (token, d_model).
            residual: What its residual stream has beside that, where the model keeps both apart.
        """
        layer, batch = self.layers[number], self._at_hand(number, hidden)
        if batch is None and not layer.read:
            return
        before = _stream(hidden, residual, layer.before[: len(hidden)])
        if batch is not None:
            count = len(batch.terms)  # a batch may be padded: what lies behind is left alone
            delta, negligible = change(before[:count], self.positions[:count], batch)
            if negligible is not None:
                layer.negligible[:count] = negligible
            hidden[:count].copy_(delta.add_(hidden[:count]))
        _stream(hidden, residual, layer.after[: len(hidden)])

    def confirm(self, number: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Note which positions were changed and are what the next layer gets to see."""
        layer, batch = self.layers[number], self._at_hand(number, hidden)
        if batch is None:
            return
        count = len(batch.terms)
        received = _stream(hidden[:count], residual if residual is None else residual[:count])
        same = (received == layer.before[:count]).all(-1)
        flags = (received == layer.after[:count]).all(-1) & ~same
        flags = flags.to(torch.uint8)
        if batch.clamps:
            flags += (same & layer.negligible[:count]).to(torch.uint8) * HELD
        at = self.slots[:count] * layer.flags.shape[1] + self.positions[:count]
        layer.flags.view(-1).index_copy_(0, at, flags)

    def _at_hand(self, number: int, hidden: Tensor) -> Batch | None:
        layer = self.layers[number]
        if not (hidden.is_cuda and torch.cuda.is_current_stream_capturing()):
            return layer.batch
        terms, every = layer.table[self.slots[: len(hidden)]], set(range(len(KINDS)))
        return Batch(terms, self.directions, self.encoders, self.numbers, True, every)

    def after(self, hidden: Tensor | None) -> None:
        """Read what the batch asks for, and check the model's output, (token, d_model)."""
        if hidden is not None and any(layer.batch for layer in self.layers.values()):
            # The sum is finite only if all are, short of an overflow; times 0 it is 0 or no number.
            sums = hidden[: self._tokens].sum(-1, dtype=torch.float32).mul_(0.0)
            self.sums.index_add_(0, self.slots[: self._tokens], sums)
        first = 0
        for one, count in self._now:
            for index, number, *_ in () if one is None else one.reads:
                part = slice(first, first + count)
                found = self.positions[part].clone(), self.layers[number].after[part].clone()
                one.found[index].append(found)
            first += count

    def fetch(self, ours: str, fed: int) -> dict[str, Any] | None:
        """What became of a request, which is forgotten by that; None if it is not known here.

        Args:
            ours: Our id.
            fed: How many of its tokens went through the model.
        """
        one = self.known.pop(ours, None)
        if one is None:
            return None
        counts = {}
        for number in one.edits.keys() & self.layers.keys():
            flags = self.layers[number].flags[one.slot, :fed]
            counts[str(number)] = [int((flags == what).sum()) for what in (EDITED, HELD)]
        reads = [_packed(read, fed, one.found[read[0]]) for read in one.reads if one.found[read[0]]]
        finite = bool(self.sums[one.slot].isfinite())
        return {"counts": counts, "finite": finite, "reads": reads}


def change(x: Tensor, positions: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """What to add to the residual stream.

    Args:
        x: The unedited stream, (token, d_model), any float type.
        positions: Every token's position in its sequence.
        batch: Terms and rows.

    Returns:
        The change in float32, and where clamps alone act with nothing to change (None without
        clamps), as `LayerEdits.delta` and `negligible` have it.
    """
    row, given, start, stop, clamps, kind = batch.terms.unbind(-1)
    at, row, amount = positions.unsqueeze(1), row.long(), given
    active = (at >= start) & (at < stop)
    if batch.clamps or batch.kinds != {0}:
        wide = x.float()
        scales = torch.ones_like(kind[:, :1]), norm_scale(wide), wide.std(dim=-1, keepdim=True)
        if batch.clamps:
            held = activations(wide, batch, scales).gather(1, row)
            amount = torch.where(clamps > 0, amount - held, amount)
        for normalised in batch.kinds - {0}:
            amount = torch.where(kind == normalised, amount * scales[normalised], amount)
    sums = torch.zeros(len(x), len(batch.directions), device=x.device)
    delta = sums.scatter_add_(1, row, amount * active) @ batch.directions
    if not batch.clamps:
        return delta, None
    acting = active & (clamps > 0)
    others = (active & (clamps == 0) & (given != 0)).any(-1)
    # A step this large moves at least the direction's largest component, whatever x is there.
    least = wide.abs().amax(-1, keepdim=True) * torch.finfo(x.dtype).eps
    felt = amount.abs() * batch.directions.abs().amax(-1)[row] >= least
    return delta, acting.any(-1) & ~others & ~(acting & felt).any(-1)


def activations(x: Tensor, batch: Batch, scales: Sequence[Tensor]) -> Tensor:
    """Activations of the batch's rows, (token, row), as `LatentEncoder` has them.

    What it does to the input is done to the products here, as each row may want another
    normalisation; what it subtracts from the input is in the bias already.
    """
    bias, threshold, kind = batch.numbers.unbind(-1)
    hidden = x @ batch.encoders.T
    if 1 in batch.kinds:
        hidden = torch.where(kind == 1, hidden / scales[1], hidden)
    if 2 in batch.kinds:
        centred = hidden - x.mean(dim=-1, keepdim=True) * batch.encoders.sum(-1)
        hidden = torch.where(kind == 2, centred / (scales[2] + LAYER_NORM_EPS), hidden)
    hidden = hidden + bias
    return torch.relu(hidden) * (hidden > threshold)


def norm_scale(x: Tensor) -> Tensor:
    """Scale of constant_norm_rescale: the residual's norm over sqrt(d_model), (..., 1)."""
    scale: Tensor = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return scale


def _stream(hidden: Tensor, residual: Tensor | None, out: Tensor | None = None) -> Tensor:
    """The residual stream, where it is two tensors or one."""
    if residual is not None:
        return torch.add(hidden, residual, out=out)
    return hidden if out is None else out.copy_(hidden)


def _packed(read: Sequence[int], fed: int, found: Sequence[tuple[Tensor, Tensor]]) -> list[Any]:
    """A readout for the way back: its index, positions, dtype, and residuals in base64."""
    index, _, start, stop = read
    at, values = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    # Under memory pressure vLLM computes a request anew: what was read last counts.
    last = {position: i for i, position in enumerate(at.tolist())}
    kept = [position for position in sorted(last) if start <= position < min(stop, fed)]
    values = values[[last[position] for position in kept]]
    raw = values.view(_HALVES.get(values.dtype, values.dtype)).numpy().tobytes()
    name = str(values.dtype).removeprefix("torch.")
    return [index, kept, name, base64.b64encode(raw).decode("ascii")]
