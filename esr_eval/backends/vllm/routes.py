"""What the plugin adds to vLLM's HTTP server: rows are registered, and requests checked, here.

This process alone gives out places for rows and slots for requests, so that all workers agree. A
request that names what is not here is refused; one that finds no slot waits.
"""

import asyncio
import hashlib
import json
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from esr_eval.backends.vllm import (
    ANSWER,
    FACTS_PATH,
    NO_STOP,
    PLAN_ARG,
    PLUGIN,
    ROWS_PATH,
    SAMPLING_ARG,
    SPARE_SLOTS,
    STEERING_ARG,
    UNKNOWN_ROWS,
    code_digest,
)
from esr_eval.backends.vllm.sampler import read_sampling
from esr_eval.backends.vllm.steerer import KINDS, ROWS

_DESK: list["Desk"] = []
"""This process's, once its engine is there."""
_ROW = {"direction", "numbers"}


def unpacked(body: bytes) -> dict[str, dict[str, Tensor]]:
    """Rows by their digest, in order, from safetensors with names `DIGEST/PART`."""
    rows: dict[str, dict[str, Tensor]] = {}
    for name, tensor in sorted(load(body).items()):
        digest, _, part = name.partition("/")
        rows.setdefault(digest, {})[part] = tensor.float()
    return rows


def row_digest(row: dict[str, Tensor]) -> str:
    """A row's name: what it holds, in float32."""
    parts = [row[part].numpy().tobytes() for part in sorted(row)]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:32]


class Desk:
    """Who is served, and with which rows."""

    def __init__(self, engine: Any, facts: dict[str, Any]) -> None:
        """Start empty.

        Args:
            engine: vLLM's client of its engine.
            facts: What the workers told of themselves.
        """
        self.facts, self._engine = facts, engine
        self.slots: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(engine.vllm_config.scheduler_config.max_num_seqs + SPARE_SLOTS):
            self.slots.put_nowait(slot)
        self.used: Counter[str] = Counter()
        """Rows of the requests that are served."""
        self._rows: dict[str, tuple[int, int]] = {}
        """Place in the bank and kind of every row."""
        self._putting = asyncio.Lock()
        self._asked: list[tuple[str, int, asyncio.Future[Any]]] = []
        self._fetching: asyncio.Task[None] | None = None

    async def put(self, body: bytes) -> tuple[int, str]:
        """Register rows: the status and sentence to answer with."""
        try:
            rows = unpacked(body)
            for digest, row in rows.items():
                self._check(digest, row)
        except Exception as error:  # safetensors' own, and those of whatever the bytes lead to
            return 400, f"esr-eval cannot take the rows: {type(error).__name__}: {error}"
        async with self._putting:
            taken = {place for place, _ in self._rows.values()}
            free = [place for place in range(ROWS) if place not in taken]
            idle = [d for d in self._rows if not self.used[d] and d not in rows]
            new = [d for d in rows if d not in self._rows]
            while idle and len(free) < len(new):
                free.append(self._rows.pop(idle.pop(0))[0])
            if len(free) < len(new):
                return 503, f"esr-eval has no room for {len(new)} rows among {ROWS} in use"
            at = {d: self._rows[d][0] if d in self._rows else free.pop() for d in rows}
            await self._engine.collective_rpc("esr_put", args=(list(at.values()), body))
            self._rows |= {d: (at[d], int(row["numbers"][2])) for d, row in rows.items()}
        return 200, ""

    def _check(self, digest: str, row: dict[str, Tensor]) -> None:
        wide = [part.shape == (self.facts["width"],) for n, part in row.items() if n != "numbers"]
        if not (_ROW <= set(row) <= {*_ROW, "encoder"} and all(wide) and len(row["numbers"]) == 3):
            raise ValueError(f"row {digest} is not of this model")
        if row_digest(row) != digest or not torch.cat(list(row.values())).isfinite().all():
            raise ValueError(f"row {digest} is damaged, or not finite")
        if int(row["numbers"][2]) not in range(len(KINDS)):
            raise ValueError(f"row {digest} wants an unknown normalisation")

    def plan(self, told: str) -> tuple[dict[str, Any], list[str]]:
        """A request's steering with places in the place of digests, and the rows it uses.

        Raises:
            ValueError: It is malformed, or names what is not here.
        """
        try:
            given = json.loads(told)
            edits = {int(layer): list(terms) for layer, terms in given["edits"].items()}
            reads = [[int(number) for number in read] for read in given["reads"]]
            layers = {*edits, *(layer for _, layer, _, _ in reads)}
            rows = [row for terms in edits.values() for row, *_ in terms]
            numbers = torch.tensor([rest for terms in edits.values() for _, *rest in terms])
            fits = bool(numbers.isfinite().all()) and (not rows or numbers.shape[1] == 4)
            fits &= all(isinstance(row, str) for row in rows)
            fits &= bool((numbers[..., 1:] >= 0).all() and (numbers[..., 1:] <= NO_STOP).all())
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise ValueError(f"it is malformed: {type(error).__name__}: {error}") from error
        if not fits:
            raise ValueError(
                "it is malformed: a term is row, amount, start, stop, whether it clamps"
            )
        if missing := sorted({*rows} - set(self._rows)):
            raise ValueError(f"it names {UNKNOWN_ROWS}: {', '.join(missing)}")
        if absent := sorted(layers - set(self.facts["layers"])):
            has = ", ".join(map(str, self.facts["layers"]))
            raise ValueError(f"layer {absent[0]} is not prepared (--layer), but {has}")
        placed = {
            layer: [(self._rows[row][0], *rest, self._rows[row][1]) for row, *rest in terms]
            for layer, terms in edits.items()
        }
        return {"edits": placed, "reads": reads}, rows

    async def fetch(self, ours: str, fed: int) -> dict[str, Any]:
        """What became of a request; those that end together are asked for together.

        Raises:
            RuntimeError: No worker has steered it.
        """
        return joined(await self.ask(ours, fed))

    def ask(self, ours: str, fed: int) -> "asyncio.Future[Any]":
        """Have the workers tell of a request, which they forget by that."""
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append((ours, fed, told))
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch())
        return told

    async def _fetch(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, []
            wanted = [(ours, fed) for ours, fed, _ in asked]
            try:
                workers = await self._engine.collective_rpc("esr_fetch", args=(wanted,))
            except Exception as error:
                workers = [[error] * len(asked)]
            for (*_, told), ranks in zip(asked, zip(*workers, strict=True), strict=True):
                if not told.done():
                    told.set_result([rank for rank in ranks if rank is not None])


def joined(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several workers tell of one request: all that have a layer must have edited it.

    Raises:
        RuntimeError: None has it.
    """
    if not ranks or isinstance(ranks[0], Exception):
        raise RuntimeError(
            f"esr-eval could not steer the request: {[*ranks] or 'no worker has it'}"
        )
    counts: dict[str, list[int]] = {}
    for rank in ranks:
        for layer, found in rank["counts"].items():
            counts[layer] = [*map(min, found, counts.get(layer, found))]
    reads = {read[0]: read for rank in ranks for read in rank["reads"]}
    finite = all(rank["finite"] for rank in ranks)
    return {"counts": counts, "finite": finite, "reads": [*reads.values()]}


def steered(original: Callable[..., AsyncGenerator[Any]]) -> Callable[..., Any]:
    """VLLM's `AsyncLLM.generate` with steering checked before and receipts fetched after it."""

    async def generate(self: Any, prompt: Any, params: Any, request_id: str, **kwargs: Any) -> Any:
        extra = params.extra_args or {}
        told = extra.pop(STEERING_ARG, None)
        try:
            if PLAN_ARG in extra or (told is not None and not (_DESK and params.n == 1)):
                raise ValueError("it must be one request over HTTP, with a plan of the server's")
            if SAMPLING_ARG in extra:
                read_sampling(extra[SAMPLING_ARG])
            plan, rows = ({}, []) if told is None else _DESK[0].plan(told)
        except ValueError as error:
            raise ValueError(f"esr-eval cannot serve this request: {error}") from error
        if told is None:
            async for out in original(self, prompt, params, request_id, **kwargs):
                yield out
            return
        desk, ours, slot, fetched = _DESK[0], uuid.uuid4().hex, None, False
        # What a steered request leaves in the prefix cache is its own; and it reads nothing there,
        # so that every position is computed, counted and read here.
        prompt = {**prompt, "cache_salt": hashlib.sha256(told.encode()).hexdigest()}
        params.skip_reading_prefix_cache = True
        desk.used.update(rows)
        try:
            slot = await desk.slots.get()
            extra[PLAN_ARG] = json.dumps({**plan, "id": ours, "slot": slot})
            # Closed, so that a request given up half-way leaves vLLM before its slot is free.
            async with aclosing(original(self, prompt, params, request_id, **kwargs)) as outs:
                async for out in outs:
                    if out.finished:
                        fed = len(out.prompt_token_ids) + len(out.outputs[0].token_ids) - 1
                        fetched, found = True, await desk.fetch(ours, fed)
                        out.kv_transfer_params = {ANSWER: {**found, "fed": fed}}
                    yield out
        finally:
            desk.used.subtract(rows)
            if slot is not None:
                if not fetched:  # given up half-way: the workers must forget it, too
                    desk.ask(ours, 0)
                desk.slots.put_nowait(slot)

    return generate


class Routes:
    """vLLM's endpoint plugin."""

    name = PLUGIN
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Add the routes; vLLM asks for its key under /v1."""
        from fastapi import Request
        from fastapi.responses import JSONResponse
        from vllm.v1.engine.async_llm import AsyncLLM

        AsyncLLM.generate = steered(AsyncLLM.generate)

        async def facts() -> Any:
            return JSONResponse({**_DESK[0].facts, "code": code_digest()})

        async def rows(request: Request) -> Any:
            status, said = await _DESK[0].put(await request.body())
            return JSONResponse({"error": {"message": said}} if said else {}, status_code=status)

        app.add_api_route(FACTS_PATH, facts, methods=["GET"])
        app.add_api_route(ROWS_PATH, rows, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Learn what the workers run."""
        facts = await engine_client.collective_rpc("esr_facts")
        layers = sorted({layer for one in facts for layer in one["layers"]})
        _DESK[:] = [Desk(engine_client, {**facts[0], "layers": layers})]
