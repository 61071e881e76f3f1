"""What the hook saved on a vLLM server, read as plain data: the receipt and the readouts."""

import base64
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Runs = list[list[int]]
"""Positions as `[layer, rank, first, end]`."""
ABOUT = ("width", "dtype", "torch", "device")
"""What the hook tells of the server."""
_READ_DTYPES = {"float32": torch.float32, "bfloat16": torch.int16, "float16": torch.int16}


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
        edit = _plain(found.get("0"))
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


def _plain(saved: Any) -> dict[str, Any]:
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


def _tensor(text: str, dtype: str) -> Tensor:
    raw = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=_READ_DTYPES[dtype])
    return raw.view(getattr(torch, dtype)).float()
