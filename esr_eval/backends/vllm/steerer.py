"""Steering of a running batch on a vLLM worker: one operation per layer for all its tokens.

This file lies on the server's path by itself, so it needs nothing but torch and numpy there. The
arithmetic is that of `steering/edits.py`. Rows of SAEs lie in a bank that all
requests share; how much of each is due is a matrix of tokens and rows, made when the batch changes
or a span begins or ends. On a GPU all sizes are fixed and every kind of edit is computed, as CUDA
graphs want it; on a CPU what the batch at hand needs.
"""

import base64
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from esr_eval.backends.vllm.wire import KINDS, NO_STOP, Row
from esr_eval.sae.encoder import LAYER_NORM_EPS, norm_scale, spread
from esr_eval.steering.sampling import Sampling

ROWS = 512
"""Rows of SAEs, and vectors, that a server holds."""
EDITED, HELD = 1, 2


class Rows(NamedTuple):
    """Rows of SAEs, all or those of a batch; as many as have encoders come first.

    Attributes:
        directions: What is added, (row, d_model), float32.
        encoders: Encoder rows.
        numbers: Bias, threshold and kind of normalisation, (row, 3).
    """

    directions: Tensor
    encoders: Tensor
    numbers: Tensor


class Request:
    """A request that asks for something of ours.

    Attributes:
        place: Where its flags, and the tokens that it has seen, lie.
        ours: Its id on our side; None where nothing is steered, so that nothing will be fetched.
        sampling: How its tokens are chosen, if that is ours to do.
        prompt: Its tokens, until the sampler has noted them.
        made: How many tokens were chosen for it.
        edits: By layer its terms, (term, 5): row, amount, start, stop, whether it clamps.
        reads: By layer, the first position that is read and the one after the last.
        found: By layer the positions and residuals so far.
    """

    def __init__(self, plan: Mapping[str, Any], prompt: Sequence[int], place: int) -> None:
        """Take a plan as `routes.Desk` makes it."""
        self.place, self.prompt, self.made = place, prompt, 0
        self.ours: str | None = plan["id"]
        self.sampling = Sampling(**plan["sampling"]) if plan["sampling"] else None
        edits = {int(layer): np.array(terms, float) for layer, terms in plan["edits"].items()}
        self.edits = {layer: terms for layer, terms in edits.items() if len(terms)}
        self.reads = {int(layer): span for layer, span in plan["reads"].items()}
        self.found: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in self.reads}


class Layer:
    """What is due at one layer in the step under way, and what became of it.

    Attributes:
        flags: What became of every position, by place of its request.
        before: The stream unedited, (token, d_model).
        after: The stream edited.
        now: What became of the step's tokens.
        due: How much of each row, were the clamped latents 0, (token, row).
        spared: Which rows are not clamped, (token, row).
        rows: The rows; None where nothing is edited.
        constant: Product of `due` and the rows, where the residual's scale has no part in it.
        busy: Whether the batch edits here.
        alone: Whether a clamp may act by itself, so that nothing need change.
        read: Whether the batch reads here.
    """

    def __init__(self, like: Tensor, tokens: int, longest: int) -> None:
        """Allocate, on the device of `like`, in its dtype and width."""
        self.flags = torch.zeros(1, longest, dtype=torch.uint8, device=like.device)
        self.before = like.new_empty(tokens, like.shape[-1])
        self.after = torch.empty_like(self.before)
        self.now = torch.zeros(tokens, dtype=torch.uint8, device=like.device)
        self.due = self.spared = torch.zeros(0, device=like.device)
        self.rows: Rows | None = None
        self.constant: Tensor | None = None
        self.busy = self.alone = self.read = False


class Steerer:
    """Everything that is steered in one worker, and all requests there that ask for ours."""

    def __init__(
        self, layers: Iterable[int], like: Tensor, positions: Tensor, longest: int, fixed: bool
    ) -> None:
        """Allocate.

        Args:
            layers: Whose outputs may be edited and read.
            like: Any tensor with the residual's device, dtype and width.
            positions: Every token's position in its sequence: the model runner's own buffer.
            longest: Most tokens of a request.
            fixed: Whether every step must run the same operations, as CUDA graphs want it.
        """
        device, tokens = like.device, len(positions)
        self.layers = {layer: Layer(like, tokens, longest) for layer in layers}
        bank = torch.zeros(ROWS, like.shape[-1], device=device)
        self.bank = Rows(bank, bank.clone(), torch.zeros(ROWS, 3, device=device))
        self.positions = positions
        self.known: dict[str, Request] = {}
        """Steered requests by our id, until their results are fetched."""
        self._requests: dict[str, Request] = {}
        """By vLLM's id, as long as vLLM computes them."""
        self._places = itertools.count(1)  # at 0 lies what belongs to nobody
        self._free: list[int] = []
        self._sums = torch.zeros(1, device=device)
        """By place; no number where a request's output was none."""
        self._fixed = fixed
        self._now: list[tuple[Request | None, int]] = []
        self._next = np.zeros(0, np.int64)
        self._at = torch.zeros(0, dtype=torch.int64, device=device)
        self._same = 0
        for layer in self.layers.values() if self._fixed else ():
            layer.rows, layer.alone = self.bank, True
            layer.due = torch.zeros(tokens, ROWS, device=device)
            layer.spared = torch.ones_like(layer.due, dtype=torch.bool)

    def put(self, at: Sequence[int], rows: Iterable[Row]) -> None:
        """Write rows into places of the bank."""
        for place, row in zip(at, rows, strict=True):
            for held, part in zip(self.bank, (*row.vectors, row.numbers), strict=True):
                held[place] = part.to(held)

    def admit(self, name: str, plan: Mapping[str, Any], prompt: Sequence[int]) -> None:
        """Take a request that vLLM begins to compute; one that it computes anew is known."""
        if name in self._requests:
            return
        place = self._free.pop() if self._free else next(self._places)
        request = self._requests[name] = Request(plan, prompt, place)
        if request.ours is not None:
            self.known[request.ours] = request
        self._sums = grown(self._sums, place)
        self._sums[place] = 0
        for layer in self.layers.values():
            layer.flags = grown(layer.flags, place)
            layer.flags[place] = 0

    def leave(self, names: Iterable[str]) -> None:
        """Forget requests that vLLM computes no more; what was found stays until it is fetched."""
        for name in names:
            gone = self._requests.pop(name, None)
            if gone is not None and gone.ours is None:
                self._free.append(gone.place)

    def step(
        self, names: Sequence[str], starts: NDArray[Any], counts: NDArray[Any]
    ) -> list[Request | None]:
        """Learn what the next forward pass computes.

        Args:
            names: Requests in the order of the batch.
            starts: First position of each.
            counts: How many tokens of each.

        Returns:
            Those that are known here.
        """
        requests = [self._requests.get(name) for name in names]
        now = list(zip(requests, counts, strict=True))
        self._same -= 1
        as_expected = self._same >= 0 and now == self._now and np.array_equal(starts, self._next)
        self._next = starts + counts
        if as_expected:
            return requests
        self._now, self._same = now, NO_STOP
        places = np.repeat([0 if one is None else one.place for one in requests], counts)
        self._at = sent(places, self.positions.device)
        first = np.cumsum(counts) - counts
        for number, layer in self.layers.items():
            layer.read = any(number in one.reads for one in requests if one)
            at = [i for i, one in enumerate(requests) if one and number in one.edits]
            was_busy, layer.busy = layer.busy, bool(at)
            if layer.busy or (was_busy and self._fixed):
                edits = [one.edits[number] for one in (requests[i] for i in at) if one]
                self._lay_out(layer, edits, starts[at], counts[at], first[at])
            elif not self._fixed:
                layer.rows = None
        return requests

    def _lay_out(
        self,
        layer: Layer,
        edits: Sequence[NDArray[Any]],
        starts: NDArray[Any],
        counts: NDArray[Any],
        first: NDArray[Any],
    ) -> None:
        """Make a layer's matrices from the terms of requests, where they start and stand."""
        terms = np.concatenate([np.zeros((0, 5)), *edits])
        owner = np.repeat(np.arange(len(edits)), np.array([len(one) for one in edits], np.int64))
        times = counts[owner]  # every term at every token of its request
        within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        owner, terms = np.repeat(owner, times), np.repeat(terms, times, axis=0)
        token, position = first[owner] + within, starts[owner] + within
        row, amount, start, stop, clamps = terms.T
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
            encoders = self.bank.encoders[at[: len(clamped)]]
            layer.rows = Rows(self.bank.directions[at], encoders, self.bank.numbers[at])
            layer.due = torch.zeros(len(self._at), len(used))
            layer.spared = torch.ones_like(layer.due, dtype=torch.bool)
            layer.alone = len(np.setdiff1d(token[held], token[boosts])) > 0
        device, wide = layer.due.device, layer.due.shape[1]
        amounts = sent(amount * active, device).to(layer.due)
        layer.due.view(-1).index_add_(0, sent(token * wide + row, device), amounts)
        layer.spared[sent(token[held], device), sent(row[held], device)] = False
        if not self._fixed and layer.rows is not None:
            plain = not layer.rows.numbers[:, 2].any()
            layer.constant = layer.due @ layer.rows.directions if plain else None

    def edit(self, number: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Edit a layer's output in place.

        Args:
            number: Which layer.
            hidden: What it returns, (token, d_model).
            residual: What its residual stream has beside that, where the model keeps both apart.
        """
        layer, after = self.layers[number], self.layers[number].after[: len(hidden)]
        if layer.rows is None:
            if layer.read:
                _stream(hidden, residual, after)
            return
        before = _stream(hidden, residual, layer.before[: len(hidden)])
        # A batch may be padded: what lies behind its tokens is left alone.
        count = min(len(hidden), len(layer.due))
        delta, still = change(layer, layer.rows, before[:count])
        hidden[:count].add_(delta)
        moved = _apart(_stream(hidden, residual, after), before)
        now = torch.gt(moved, 0, out=layer.now[: len(hidden)])
        if still is not None:
            now[:count].add_(still & (moved[:count] == 0), alpha=HELD)

    def confirm(self, number: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Note at which positions the next layer gets to see what was made of them."""
        layer, count = self.layers[number], len(hidden)
        if layer.rows is not None:
            lost = _apart(_stream(hidden, residual), layer.after[:count]) != 0
            layer.now[:count].masked_fill_(lost, 0)

    def after(self, hidden: Tensor | None) -> None:
        """Note what became of the step's positions, what is read of them, and the output.

        Args:
            hidden: What the model returned, (token, d_model), if it is here.
        """
        tokens = len(self._at)
        busy = [layer for layer in self.layers.values() if layer.busy]
        for layer in busy:
            layer.flags[self._at, self.positions[:tokens]] = layer.now[:tokens]
        if busy and hidden is not None:  # finite only if all are, short of an overflow
            sums = hidden[:tokens].sum(-1, dtype=torch.float32)
            self._sums.index_add_(0, self._at, sums)
        if not any(layer.read for layer in self.layers.values()):
            return
        first = 0
        for one, count in self._now:
            part = slice(first, first + count)
            first += count
            for number in one.reads.keys() & self.layers.keys() if one is not None else ():
                found = self.positions[part].clone(), self.layers[number].after[part].clone()
                one.found[number].append(found)  # type: ignore[union-attr]

    def fetch(self, ours: str, fed: int) -> dict[str, Any] | None:
        """What became of a request, which is forgotten by that; None if it is not known here.

        Args:
            ours: Our id.
            fed: How many of its tokens went through the model.
        """
        one = self.known.pop(ours, None)
        if one is None:
            return None
        self._free.append(one.place)
        counts: dict[str, list[int]] = {}
        for number in one.edits.keys() & self.layers.keys():
            flags = self.layers[number].flags[one.place, :fed]
            _, *counts[str(number)] = flags.bincount(minlength=1 + HELD).tolist()
        reads = {str(n): _packed(one.reads[n], fed, at) for n, at in one.found.items() if at}
        return {"counts": counts, "finite": bool(self._sums[one.place].isfinite()), "reads": reads}


def change(layer: Layer, rows: Rows, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """What to add to the unedited stream `x`, (token, d_model), and where that may be 0.

    As `LayerEdits.delta` and `LayerEdits.negligible`, which is None where no clamp acts alone.
    """
    tokens, clamped, still = len(x), len(rows.encoders), None
    constant = None if layer.constant is None else layer.constant[:tokens]
    if not clamped and constant is not None:
        return constant, None
    wide, amounts = x.float(), layer.due[:tokens]
    bias, threshold, kind = rows.numbers.unbind(-1)
    scale = None
    if constant is None:
        scales = (torch.ones_like(wide[:, :1]), norm_scale(wide), spread(wide))  # of `KINDS`
        scale = torch.cat(scales, dim=-1)[:, kind.long()]
    if clamped:
        # What an encoder does to its input is done to the products, as rows may want it otherwise;
        # what it subtracts from the input is in the bias already.
        hidden = wide @ rows.encoders.T
        if scale is not None:
            centred = kind[:clamped] == KINDS.index("layer_norm")
            hidden -= wide.mean(dim=-1, keepdim=True) * (rows.encoders.sum(-1) * centred)
            hidden /= scale[:, :clamped] + LAYER_NORM_EPS * centred
        hidden += bias[:clamped]
        spared = layer.spared[:tokens]
        held = torch.relu(hidden).mul_(hidden > threshold[:clamped])
        held.masked_fill_(spared[:, :clamped], 0.0)
        if layer.alone:
            # A step this large moves at least the direction's largest component, whatever is there.
            least = wide.abs().amax(-1, keepdim=True) * torch.finfo(x.dtype).eps
            steps = (amounts[:, :clamped] - held).abs()
            if scale is not None:
                steps *= scale[:, :clamped]
            felt = steps * rows.directions[:clamped].abs().amax(-1) >= least
            others = (amounts != 0) & spared
            still = ~((felt & ~spared[:, :clamped]).any(-1) | others.any(-1) | spared.all(-1))
        if constant is not None:
            return torch.addmm(constant, held, rows.directions[:clamped], alpha=-1), still
        amounts = amounts.clone()
        amounts[:, :clamped].sub_(held)
    if scale is not None:
        amounts = amounts * scale
    return amounts @ rows.directions, still


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """How far each token's residuals are apart; no number where they are none."""
    return (one - other).abs_().amax(-1)


def _stream(hidden: Tensor, residual: Tensor | None, out: Tensor | None = None) -> Tensor:
    """The residual stream, where it is two tensors or one."""
    if residual is not None:
        return torch.add(hidden, residual, out=out)
    return hidden if out is None else out.copy_(hidden)


def _packed(span: Sequence[int], fed: int, found: Sequence[tuple[Tensor, Tensor]]) -> str:
    """What was read for the way back: positions and residuals, safetensors in base64."""
    at, values = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    # Under memory pressure vLLM computes a request anew: what was read last counts.
    last = {position: i for i, position in enumerate(at.tolist())}
    kept = [position for position in sorted(last) if span[0] <= position < min(span[1], fed)]
    told = {"at": torch.tensor(kept), "residuals": values[[last[one] for one in kept]]}
    return base64.b64encode(save(told)).decode("ascii")


def sent(numbers: Any, device: torch.device) -> Tensor:
    """Numbers on the device, without waiting for it."""
    return torch.as_tensor(numbers).to(device, non_blocking=True)


def grown(rows: Tensor, place: int) -> Tensor:
    """The same rows, with as many and more zeros behind them where they do not reach `place`."""
    if place < len(rows):
        return rows
    more = rows.new_zeros(2 * place, *rows.shape[1:])
    more[: len(rows)] = rows
    return more
