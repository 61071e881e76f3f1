"""Steering of a running batch on a vLLM worker: one operation per layer for all its tokens.

This file lies on the server's path by itself, so it needs nothing but torch and numpy there. The
arithmetic is that of `steering/edits.py`. Rows of SAEs lie in a bank that all
requests share; how much of each is due is a matrix of tokens and rows, made when the batch changes
or a span begins or ends. On a GPU all sizes are fixed and every kind of edit is computed, as CUDA
graphs want it; on a CPU what the batch at hand needs.
"""

import base64
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esr_eval.backends.vllm import NO_STOP
from esr_eval.sae.encoder import LAYER_NORM_EPS, norm_scale, spread

ROWS = 512
"""Rows of SAEs, and vectors, that a server holds."""
KINDS = ("none", "constant_norm_rescale", "layer_norm")
"""Input normalisations, by number (`sae.encoder.normalise`)."""
EDITED, HELD = 1, 2
HALVES = {torch.bfloat16: torch.int16, torch.float16: torch.int16}
"""What numpy takes for types that it lacks."""


class Rows(NamedTuple):
    """Rows of SAEs, all or those of a batch; as many as have encoders come first.

    Attributes:
        directions: What is added, (row, d_model), float32.
        encoders: Encoder rows.
        numbers: Bias, threshold and kind, (row, 3).
        kinds: Which normalisations occur.
    """

    directions: Tensor
    encoders: Tensor
    numbers: Tensor
    kinds: frozenset[int]


class Request:
    """A steered request.

    Attributes:
        slot: Where its flags lie.
        edits: By layer its terms, (term, 6): row, amount, start, stop, whether it clamps, kind.
        reads: Index, layer, start and stop of every readout.
        found: By readout the positions and residuals so far.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        """Take a plan as `routes.Desk` makes it."""
        self.slot: int = plan["slot"]
        self.edits = {int(n): np.array(terms) for n, terms in plan["edits"].items() if terms}
        self.reads: list[tuple[int, int, int, int]] = plan["reads"]
        self.found: dict[int, list[tuple[Tensor, Tensor]]] = {read[0]: [] for read in self.reads}


class Layer:
    """What is due at one layer in the step under way, and what became of it.

    Attributes:
        flags: What became of every position, by slot.
        before: The stream unedited, (token, d_model).
        after: The stream edited.
        now: What became of the step's tokens.
        due: How much of each row, were the clamped latents 0, (token, row).
        spared: Which rows are not clamped, (token, row with encoder).
        boosted: Where anything but a clamp acts, (token,).
        rows: The rows; None where nothing is edited.
        constant: Product of `due` and the rows, where the residual has no part in it.
        busy: Whether the batch edits here.
        alone: Whether a clamp may act by itself, so that nothing need change.
        read: Whether the batch reads here.
    """

    def __init__(self, like: Tensor, tokens: int, slots: int, longest: int) -> None:
        """Allocate, on the device of `like`, in its dtype and width."""
        self.flags = torch.zeros(slots + 1, longest, dtype=torch.uint8, device=like.device)
        self.before = like.new_empty(tokens, like.shape[-1])
        self.after = torch.empty_like(self.before)
        self.now = torch.zeros(tokens, dtype=torch.uint8, device=like.device)
        self.negligible = torch.zeros(tokens, dtype=torch.bool, device=like.device)
        self.boosted = torch.zeros_like(self.negligible)
        self.due = self.spared = torch.zeros(0, device=like.device)
        self.rows: Rows | None = None
        self.constant: Tensor | None = None
        self.busy = self.alone = self.read = False


class Steerer:
    """Everything that is steered in one worker."""

    def __init__(
        self,
        layers: Iterable[int],
        like: Tensor,
        tokens: int,
        slots: int,
        longest: int,
        fixed: bool,
    ) -> None:
        """Allocate.

        Args:
            layers: Whose outputs may be edited and read.
            like: Any tensor with the residual's device, dtype and width.
            tokens: Most tokens of a step.
            slots: Most steered requests at once.
            longest: Most tokens of a request.
            fixed: Whether every step must run the same operations, as CUDA graphs want it.
        """
        device = like.device
        self.layers = {layer: Layer(like, tokens, slots, longest) for layer in layers}
        bank = torch.zeros(ROWS, like.shape[-1], device=device)
        numbers = torch.zeros(ROWS, 3, device=device)
        self.bank = Rows(bank, bank.clone(), numbers, frozenset(range(len(KINDS))))
        self.positions = torch.zeros(tokens, dtype=torch.int64, device=device)
        """Every token's position in its sequence: the model runner's own buffer."""
        self.sums = torch.zeros(slots + 1, device=device)
        """No number where a request's output was none."""
        self.requests: dict[str, Request] = {}
        """By vLLM's id, as long as vLLM computes them."""
        self.known: dict[str, Request] = {}
        """By our id, until their results are fetched."""
        self._none, self._longest, self._fixed = slots, longest, fixed
        self._now: list[tuple[Request | None, int]] = []
        self._next = np.zeros(0, np.int64)
        self._first = torch.zeros(0, dtype=torch.int64, device=device)
        self._slots = self._first
        self._same = 0
        for layer in self.layers.values() if self._fixed else ():
            layer.rows, layer.alone = self.bank, True
            layer.due = torch.zeros(tokens, ROWS, device=device)
            layer.spared = torch.ones_like(layer.due, dtype=torch.bool)

    def put(self, at: Sequence[int], rows: Iterable[dict[str, Tensor]]) -> None:
        """Write rows into places of the bank."""
        bank, nothing = self.bank, torch.zeros(())
        for place, row in zip(at, rows, strict=True):
            bank.directions[place] = row["direction"].to(bank.directions)
            bank.encoders[place] = row.get("encoder", nothing).to(bank.encoders)
            bank.numbers[place] = row["numbers"].to(bank.numbers)

    def admit(self, name: str, plan: dict[str, Any]) -> None:
        """Take a request that vLLM begins to compute; one that it begins anew is known."""
        request = self.known.get(plan["id"])
        if request is None:
            request = self.known[plan["id"]] = Request(plan)
            self.sums[request.slot] = 0
            for number in request.edits.keys() & self.layers.keys():
                self.layers[number].flags[request.slot] = 0
        self.requests[name] = request

    def leave(self, names: Iterable[str]) -> None:
        """Forget requests that vLLM computes no more; what was found stays until it is fetched."""
        for name in names:
            self.requests.pop(name, None)

    def step(self, names: Sequence[str], starts: NDArray[Any], counts: NDArray[Any]) -> None:
        """Learn what the next forward pass computes.

        Args:
            names: Requests in the order of the batch.
            starts: First position of each.
            counts: How many tokens of each.
        """
        now = [(self.requests.get(name), n) for name, n in zip(names, counts, strict=True)]
        self._same -= 1
        as_expected = self._same >= 0 and now == self._now and np.array_equal(starts, self._next)
        self._next = starts + counts
        if as_expected:
            return
        self._now, self._same = now, NO_STOP
        slots = np.repeat([self._none if one is None else one.slot for one, _ in now], counts)
        self._slots = torch.from_numpy(slots).to(self.positions.device, non_blocking=True)
        self._first = self._slots * self._longest
        first = np.cumsum(counts) - counts
        for number, layer in self.layers.items():
            layer.read = any(read[1] == number for one, _ in now if one for read in one.reads)
            at = [i for i, (one, _) in enumerate(now) if one is not None and number in one.edits]
            was_busy, layer.busy = layer.busy, bool(at)
            if layer.busy or (was_busy and self._fixed):
                edits = [one.edits[number] for one, _ in (now[i] for i in at) if one is not None]
                self._lay_out(layer, edits, starts[at], counts[at], first[at])
            elif not self._fixed:
                layer.rows = None

    def _lay_out(
        self,
        layer: Layer,
        edits: Sequence[NDArray[Any]],
        starts: NDArray[Any],
        counts: NDArray[Any],
        first: NDArray[Any],
    ) -> None:
        """Make a layer's matrices from the terms of requests, where they start and stand."""
        terms = np.concatenate([np.zeros((0, 6)), *edits])
        owner = np.repeat(np.arange(len(edits)), np.array([len(one) for one in edits], np.int64))
        times = counts[owner]  # every term at every token of its request
        within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        owner, terms = np.repeat(owner, times), np.repeat(terms, times, axis=0)
        token, position = first[owner] + within, starts[owner] + within
        row, amount, start, stop, clamps, kind = terms.T
        row, clamps = row.astype(np.int64), clamps > 0
        active = (position >= start) & (position < stop)
        boosts, held = ~clamps & active & (amount != 0), clamps & active
        # How many steps from here are like this one.
        ends = np.concatenate([start - position, stop - position])
        same = ends[ends > 0].min(initial=NO_STOP) - 1 if (counts == 1).all() else 0
        self._same = min(self._same, int(same))
        if self._fixed:
            layer.due.zero_()
            layer.spared.fill_(True)
        else:
            clamped = np.unique(row[clamps])
            used = np.concatenate([clamped, np.setdiff1d(row, clamped)])
            place = np.zeros(ROWS, np.int64)
            place[used] = np.arange(len(used))
            row, at = place[row], torch.from_numpy(used)
            layer.rows = Rows(
                self.bank.directions[at],
                self.bank.encoders[at[: len(clamped)]],
                self.bank.numbers[at],
                frozenset(int(one) for one in np.unique(kind)),
            )
            layer.due = torch.zeros(len(self._slots), len(used))
            layer.spared = torch.ones(len(self._slots), len(clamped), dtype=torch.bool)
            layer.alone = len(np.setdiff1d(token[held], token[boosts])) > 0
        device, wide = layer.due.device, layer.due.shape[1]
        at = torch.from_numpy(token * wide + row).to(device)
        layer.due.view(-1).index_add_(0, at, torch.from_numpy(amount * active).to(layer.due))
        spared = torch.from_numpy(token[held]).to(device), torch.from_numpy(row[held]).to(device)
        layer.spared[spared] = False
        layer.boosted.zero_()
        layer.boosted[torch.from_numpy(token[boosts]).to(device)] = True
        if not self._fixed and layer.rows is not None:
            plain = layer.rows.kinds == {0}
            layer.constant = layer.due @ layer.rows.directions if plain else None

    def edit(self, number: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Edit a layer's output in place.

        Args:
            number: Which layer.
            hidden: What it returns, (token, d_model).
            residual: What its residual stream has beside that, where the model keeps both apart.
        """
        layer = self.layers[number]
        if layer.rows is None and not layer.read:
            return
        before = _stream(hidden, residual, layer.before[: len(hidden)])
        if layer.rows is not None:
            # A batch may be padded: what lies behind its tokens is left alone.
            count = min(len(hidden), len(layer.due))
            hidden[:count].add_(change(layer, layer.rows, before[:count]))
        _stream(hidden, residual, layer.after[: len(hidden)])

    def confirm(self, number: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Note which positions were changed and are what the next layer gets to see."""
        layer, count = self.layers[number], len(hidden)
        if layer.rows is None:
            return
        received = _stream(hidden, residual)
        arrived = _apart(received, layer.after[:count]) == 0
        moved = _apart(received, layer.before[:count])
        now = torch.logical_and(arrived, moved > 0, out=layer.now[:count])
        if layer.alone:
            held = arrived & (moved == 0) & layer.negligible[:count]
            now.add_(held.to(now.dtype), alpha=HELD)

    def after(self, hidden: Tensor | None) -> None:
        """Note what became of the step's positions, what is read of them, and the output.

        Args:
            hidden: What the model returned, (token, d_model), if it is here.
        """
        tokens = len(self._slots)
        busy = [layer for layer in self.layers.values() if layer.busy]
        for layer in busy:
            at = self._first + self.positions[:tokens]
            layer.flags.view(-1).index_copy_(0, at, layer.now[:tokens])
        if busy and hidden is not None:  # finite only if all are, short of an overflow
            sums = hidden[:tokens].sum(-1, dtype=torch.float32)
            self.sums.index_add_(0, self._slots, sums)
        if not any(layer.read for layer in self.layers.values()):
            return
        first = 0
        for one, count in self._now:
            part = slice(first, first + count)
            first += count
            for index, number, *_ in one.reads if one is not None else ():
                found = self.positions[part].clone(), self.layers[number].after[part].clone()
                one.found[index].append(found)  # type: ignore[union-attr]

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
            flags = self.layers[number].flags[one.slot, :fed].cpu()
            counts[str(number)] = [int((flags == what).sum()) for what in (EDITED, HELD)]
        reads = [_packed(read, fed, one.found[read[0]]) for read in one.reads if one.found[read[0]]]
        finite = bool(self.sums[one.slot].isfinite())
        return {"counts": counts, "finite": finite, "reads": reads}


def change(layer: Layer, rows: Rows, x: Tensor) -> Tensor:
    """What to add to the unedited stream `x`, (token, d_model), in float32.

    As `LayerEdits.delta`; what `LayerEdits.negligible` says goes to the layer.
    """
    tokens, clamped = len(x), len(rows.encoders)
    if not clamped and layer.constant is not None:
        return layer.constant[:tokens]
    wide, amounts = x.float(), layer.due[:tokens]
    scales = {1: norm_scale, 2: spread}
    scaled = {kind: scales[kind](wide) for kind in rows.kinds - {0}}
    if clamped:
        # What an encoder does to its input is done to the products, as rows may want it otherwise;
        # what it subtracts from the input is in the bias already.
        bias, threshold, kind = rows.numbers[:clamped].unbind(-1)
        hidden = wide @ rows.encoders.T
        if 1 in scaled:
            hidden = torch.where(kind == 1, hidden / scaled[1], hidden)
        if 2 in scaled:
            centred = hidden - wide.mean(dim=-1, keepdim=True) * rows.encoders.sum(-1)
            hidden = torch.where(kind == 2, centred / (scaled[2] + LAYER_NORM_EPS), hidden)
        hidden = hidden.add_(bias)
        spared = layer.spared[:tokens]
        held = torch.relu(hidden).mul_(hidden > threshold).masked_fill_(spared, 0.0)
        if layer.alone:
            # A step this large moves at least the direction's largest component, whatever is there.
            least = wide.abs().amax(-1, keepdim=True) * torch.finfo(x.dtype).eps
            steps = (amounts[:, :clamped] - held).abs()
            for number, scale in scaled.items():
                steps = torch.where(kind == number, steps * scale, steps)
            felt = (steps * rows.directions[:clamped].abs().amax(-1) >= least) & ~spared
            still = ~(felt.any(-1) | spared.all(-1) | layer.boosted[:tokens])
            layer.negligible[:tokens] = still
        if layer.constant is not None:
            return torch.addmm(layer.constant[:tokens], held, rows.directions[:clamped], alpha=-1)
        amounts = amounts.clone()
        amounts[:, :clamped].sub_(held)
    for number, scale in scaled.items():
        amounts = torch.where(rows.numbers[:, 2] == number, amounts * scale, amounts)
    return amounts @ rows.directions


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """How far each token's residuals are apart; no number where they are none."""
    return (one - other).abs_().amax(-1)


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
    raw = values.view(HALVES.get(values.dtype, values.dtype)).numpy().tobytes()
    name = str(values.dtype).removeprefix("torch.")
    return [index, kept, name, base64.b64encode(raw).decode("ascii")]
