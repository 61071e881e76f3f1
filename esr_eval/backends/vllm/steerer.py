"""Steering of a running batch on a vLLM worker: tables of edits, and one operation per layer.

This file lies on the server's path by itself, so it needs nothing but torch there. The arithmetic
is that of `steering/edits.py` and `sae/encoder.py`, for all tokens of a step at once: rows of SAEs
lie in a bank that every request shares, and what a request does is a short table of terms. Inside
a CUDA graph every size is fixed and every kind of edit is computed; elsewhere only what the batch
at hand needs.
"""

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROWS, TERMS = 512, 64
"""Rows of SAEs that a server holds, and the most edits of one request at a layer."""
FIELDS = ("row", "amount", "start", "stop", "clamp", "kind")
"""What a term says, each a float32 that is exact below 2^24."""
KINDS = ("none", "constant_norm_rescale", "layer_norm")
"""Input normalisations, by number (`sae.encoder.normalise`)."""
LAYER_NORM_EPS = 1e-5
EDITED, HELD = 1, 2
_HALVES = {torch.bfloat16: torch.int16, torch.float16: torch.int16}


class Read(NamedTuple):
    """One readout of a request: the residual ("residual"), its norm, or rows' activations."""

    index: int
    layer: int
    start: int
    stop: int
    what: str | list[int]


class Request:
    """What the worker knows of one steered request."""

    def __init__(self, slot: int, plan: dict[str, Any]) -> None:
        """Take a plan whose rows have become places in the bank."""
        self.slot = slot
        self.edits = {int(layer): terms for layer, terms in plan["edits"].items()}
        self.reads = [Read(*read) for read in plan["reads"]]
        self.error: str | None = None
        self.found: dict[int, list[tuple[Tensor, Tensor]]] = {read.index: [] for read in self.reads}


class Layer:
    """Buffers of one layer."""

    def __init__(self, like: Tensor, tokens: int, slots: int, longest: int) -> None:
        """Allocate; `like` gives device, dtype and width."""
        device = like.device
        self.table = torch.zeros(slots + 1, TERMS, len(FIELDS), device=device)
        self.flags = torch.zeros(slots + 1, longest, dtype=torch.uint8, device=device)
        self.before = like.new_empty(tokens, like.shape[-1])
        self.after = torch.empty_like(self.before)
        self.held = torch.zeros(tokens, dtype=torch.bool, device=device)
        self.busy = False
        """Whether this step's batch edits or reads here; a graph that is replayed always does."""
        self.batch: Batch | None = None


class Batch(NamedTuple):
    """The terms of a step at one layer, and the rows that they name.

    Attributes:
        terms: (token, term, field); rows are numbers among those that follow.
        directions: (row, d_model), float32.
        encoders: The same for encoder rows.
        numbers: Bias, threshold and kind of every row, (row, 3).
        clamps: Whether a term may clamp.
        kinds: Which normalisations may occur.
    """

    terms: Tensor
    directions: Tensor
    encoders: Tensor
    numbers: Tensor
    clamps: bool
    kinds: frozenset[int]


class Steerer:
    """Everything that is steered in one worker."""

    def __init__(
        self, layers: Sequence[int], like: Tensor, tokens: int, slots: int, longest: int
    ) -> None:
        """Allocate.

        Args:
            layers: Whose outputs may be edited and read.
            like: Any tensor with the residual's device, dtype and width.
            tokens: Most tokens of a step.
            slots: Most steered requests at once.
            longest: Most tokens of a request.
        """
        width = like.shape[-1]
        self.layers = {layer: Layer(like, tokens, slots, longest) for layer in layers}
        self.directions = torch.zeros(ROWS, width, device=like.device)
        self.encoders = torch.zeros_like(self.directions)
        self.numbers = torch.zeros(ROWS, 3, device=like.device)
        self.none = slots
        """The slot of tokens that nothing is done to."""
        self.slots = torch.full((tokens,), slots, device=like.device)
        self.positions = torch.zeros(tokens, dtype=torch.int64, device=like.device)
        """Every token's position in its sequence: the model runner's own buffer."""
        self.finite = torch.zeros(slots + 1, device=like.device)
        self.requests: dict[str, Request] = {}
        """By vLLM's id, as long as vLLM computes them."""
        self.told: dict[str, Request] = {}
        """By our id, until their results were fetched."""
        self._now: list[tuple[Request | None, int]] = []
        self._tokens = 0

    def put(self, at: Sequence[int], rows: Sequence[dict[str, Tensor]]) -> None:
        """Write rows of SAEs, or vectors, into places of the bank."""
        for place, row in zip(at, rows, strict=True):
            self.directions[place] = row["direction"].to(self.directions)
            self.encoders[place] = row.get("encoder", torch.zeros(())).to(self.encoders)
            self.numbers[place] = row["numbers"].to(self.numbers)

    def admit(self, name: str, ours: str, slot: int, plan: dict[str, Any]) -> None:
        """Take a request that vLLM begins to compute, or begins anew.

        One that cannot be steered is noted, and fails when its results are fetched.
        """
        if ours in self.told:
            self.requests[name] = self.told[ours]
            return
        request = self.requests[name] = self.told[ours] = Request(slot, plan)
        for number, layer in self.layers.items():
            layer.table[slot].zero_()
            layer.flags[slot].zero_()
            terms = request.edits.get(number)
            if terms:
                layer.table[slot, : len(terms)] = torch.tensor(terms).to(layer.table)
        self.finite[slot] = 0.0
        absent = {*request.edits, *(read.layer for read in request.reads)} - set(self.layers)
        if absent:
            request.error = f"layers {sorted(absent)} are not prepared"

    def leave(self, names: Sequence[str]) -> None:
        """Forget requests that vLLM computes no more; what was found stays until it is fetched."""
        for name in names:
            self.requests.pop(name, None)

    def step(self, names: Sequence[str], counts: Sequence[int]) -> None:
        """Learn what the next forward pass computes.

        Args:
            names: Requests in the order of the batch.
            counts: How many tokens of each.
        """
        known = self.requests
        now = [(known.get(name), count) for name, count in zip(names, counts, strict=True)]
        if now == self._now:
            return
        total = sum(counts)
        self._now, before, self._tokens = now, self._tokens, total
        numbers = [self.none if request is None else request.slot for request, _ in now]
        told = torch.tensor(numbers).repeat_interleave(torch.tensor([count for _, count in now]))
        self.slots[:total].copy_(told, non_blocking=True)
        self.slots[total : max(before, total)] = self.none
        steered = [request for request, _ in now if request is not None]
        for number, layer in self.layers.items():
            edited = [request for request in steered if request.edits.get(number)]
            read = any(read.layer == number for request in steered for read in request.reads)
            layer.busy = bool(edited) or read
            layer.batch = self._batch(number, edited, told, total) if edited else None

    def _batch(self, number: int, edited: Sequence[Request], told: Tensor, total: int) -> Batch:
        """The terms of the batch at hand, with the rows that they name and no others."""
        terms = [term for request in edited for term in request.edits[number]]
        rows = sorted({int(term[0]) for term in terms})
        most = max(len(request.edits[number]) for request in edited)
        at = torch.tensor(rows, device=self.directions.device)
        place = torch.zeros(ROWS, device=at.device)
        place[at] = torch.arange(len(rows), device=at.device).to(place)
        chosen = self.layers[number].table[:, :most].index_select(0, self.slots[:total])
        chosen[..., 0] = place[chosen[..., 0].long()]
        return Batch(
            chosen,
            self.directions[at],
            self.encoders[at],
            self.numbers[at],
            any(term[4] for term in terms),
            frozenset(int(term[5]) for term in terms),
        )

    def edit(self, number: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Edit a layer's output, in place.

        Args:
            number: Which layer.
            hidden: What it returns, (token, d_model).
            residual: What its residual stream has beside that, if the model keeps both apart.
        """
        layer, tokens = self.layers[number], len(hidden)
        graph = hidden.is_cuda and torch.cuda.is_current_stream_capturing()
        if not (layer.busy or graph):
            return
        before = _sum(hidden, residual, layer.before[:tokens])
        batch = layer.batch
        if graph:
            batch = Batch(
                layer.table.index_select(0, self.slots[:tokens]),
                self.directions,
                self.encoders,
                self.numbers,
                True,
                frozenset(range(len(KINDS))),
            )
        if batch is not None:
            # A batch may be padded: what lies behind its tokens is left alone.
            count = len(batch.terms)
            delta, negligible = change(before[:count], self.positions[:count], batch)
            if negligible is not None:
                layer.held[:count] = negligible
            if hidden.dtype == torch.float32:
                hidden[:count].add_(delta)
            else:
                hidden[:count].copy_(hidden[:count].float().add_(delta))
        _sum(hidden, residual, layer.after[:tokens])

    def confirm(self, number: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Note which positions were changed and are what the next layer gets to see."""
        layer, tokens = self.layers[number], len(hidden)
        graph = hidden.is_cuda and torch.cuda.is_current_stream_capturing()
        if graph:
            count, clamps = tokens, True
        elif layer.batch is not None:
            count, clamps = len(layer.batch.terms), layer.batch.clamps
        else:
            return
        received = _sum(hidden, residual)[:count]
        before = layer.before[:count]
        seen = (received == layer.after[:count]).all(-1)
        same = (received == before).all(-1)
        flags = (seen & ~same).to(torch.uint8)
        if clamps:
            flags += (seen & same & layer.held[:count]).to(torch.uint8) * HELD
        at = self.slots[:count] * layer.flags.shape[1] + self.positions[:count]
        layer.flags.view(-1).index_copy_(0, at, flags)

    def after(self, hidden: Tensor | None) -> None:
        """Read what the batch's requests ask for, once a forward pass is under way.

        Args:
            hidden: What the model returned, (token, d_model): numbers, or the answer is made up.
        """
        steered = [request for request, _ in self._now if request is not None]
        if not steered:
            return
        if hidden is not None and any(request.edits for request in steered):
            # The sum is finite only if all are, short of an overflow; 0 times it is 0 or no number.
            sums = hidden[: self._tokens].sum(-1, dtype=torch.float32).mul_(0.0)
            self.finite.index_add_(0, self.slots[: self._tokens], sums)
        first = 0
        for request, count in self._now:
            for read in request.reads if request is not None else ():
                values = self.layers[read.layer].after[first : first + count]
                at = self.positions[first : first + count].clone()
                request.found[read.index].append((at, self._values(read.what, values)))
            first += count

    def _values(self, what: str | list[int], x: Tensor) -> Tensor:
        if what == "residual":
            return x.clone()
        x = x.float()
        if what == "norm":
            return x.norm(dim=-1, keepdim=True)
        return activations(x, self.encoders[what], self.numbers[what], frozenset(range(len(KINDS))))

    def fetch(self, wanted: Sequence[tuple[str, int]]) -> list[dict[str, Any] | None]:
        """What became of requests, which are forgotten by that.

        Args:
            wanted: Our id of each, and how many of its tokens went through the model.

        Returns:
            None for one that this worker does not have.
        """
        return [self._fetch(ours, fed) for ours, fed in wanted]

    def _fetch(self, ours: str, fed: int) -> dict[str, Any] | None:
        request = self.told.pop(ours, None)
        if request is None:
            return None
        counts = {}
        for number in request.edits:
            if number in self.layers:
                flags = self.layers[number].flags[request.slot, :fed]
                counts[str(number)] = [int((flags == kind).sum()) for kind in (EDITED, HELD)]
        return {
            "counts": counts,
            "error": request.error,
            "finite": bool(self.finite[request.slot].isfinite()),
            "reads": [
                _packed(read, fed, request.found[read.index])
                for read in request.reads
                if request.found[read.index]
            ],
        }


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
    row, amount, start, stop, clamp, kind = batch.terms.unbind(-1)
    at, row = positions.unsqueeze(1), row.long()
    active = (at >= start) & (at < stop)
    given = amount
    if batch.clamps or batch.kinds != {0}:
        wide = x.float()
        if batch.clamps:
            clamped = clamp > 0
            held = activations(wide, batch.encoders, batch.numbers, batch.kinds).gather(1, row)
            amount = torch.where(clamped, amount - held, amount)
        for normalised in batch.kinds - {0}:
            scale = _norm_scale(wide) if normalised == 1 else wide.std(dim=-1, keepdim=True)
            amount = torch.where(kind == normalised, amount * scale, amount)
    sums = torch.zeros(len(x), len(batch.directions), device=x.device)
    delta = sums.scatter_add_(1, row, amount * active) @ batch.directions
    if not batch.clamps:
        return delta, None
    others = (active & ~clamped & (given != 0)).any(-1)
    clamps = active & clamped
    # A step this large moves at least the direction's largest component, whatever x is there.
    largest = wide.abs().amax(-1, keepdim=True)
    steps = amount.abs() * batch.directions.abs().amax(-1)[row]
    felt = steps >= largest * torch.finfo(x.dtype).eps
    return delta, clamps.any(-1) & ~others & ~(clamps & felt).any(-1)


def activations(x: Tensor, encoders: Tensor, numbers: Tensor, kinds: frozenset[int]) -> Tensor:
    """Activations of rows, (token, row), from residuals in float32.

    As in `LatentEncoder`; what is done to the input is done to the products, as each row may want
    another normalisation. The centre that is subtracted from the input is in the bias already.
    """
    bias, threshold, kind = numbers.unbind(-1)
    hidden = x @ encoders.T
    if 1 in kinds:
        hidden = torch.where(kind == 1, hidden / _norm_scale(x), hidden)
    if 2 in kinds:
        mean, spread = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
        centred = (hidden - mean * encoders.sum(-1)) / (spread + LAYER_NORM_EPS)
        hidden = torch.where(kind == 2, centred, hidden)
    hidden = hidden + bias
    return torch.relu(hidden) * (hidden > threshold)


def _norm_scale(x: Tensor) -> Tensor:
    scale: Tensor = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return scale


def _sum(hidden: Tensor, residual: Tensor | None, out: Tensor | None = None) -> Tensor:
    """The residual stream, where it is two tensors or one."""
    if residual is not None:
        return torch.add(hidden, residual, out=out)
    return hidden if out is None else out.copy_(hidden)


def _packed(read: Read, fed: int, found: Sequence[tuple[Tensor, Tensor]]) -> list[Any]:
    """A readout for the way back: its index, positions, dtype, and values in base64.

    Under memory pressure vLLM computes a request anew: what was read last counts.
    """
    at, values = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    last = {position: i for i, position in enumerate(at.tolist())}
    kept = [p for p in sorted(last) if read.start <= p < min(read.stop, fed)]
    values = values[[last[position] for position in kept]].contiguous()
    raw = values.view(_HALVES.get(values.dtype, values.dtype)).numpy().tobytes()
    name = str(values.dtype).removeprefix("torch.")
    return [read.index, kept, name, base64.b64encode(raw).decode("ascii")]
