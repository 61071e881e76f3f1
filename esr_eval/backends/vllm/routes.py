"""What the plugin adds to vLLM's HTTP server: rows are registered, and requests checked, here.

This process alone gives out places for rows and slots for requests, so that all workers agree. A
request that names what is not here is refused; one that finds no slot waits.
"""

import asyncio
import hashlib
import json
import math
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

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
from esr_eval.backends.vllm.steerer import KINDS, ROWS, TERMS

_DESK: list["Desk"] = []
"""This process's, once its engine is there."""


def unpacked(body: bytes) -> dict[str, dict[str, Tensor]]:
    """Rows by their digest, from safetensors with names `DIGEST/PART`.

    Raises:
        ValueError: It is no such file.
    """
    try:
        tensors = load(body)
    except Exception as error:  # its own exceptions, and those of whatever the bytes lead to
        raise ValueError(f"they are no safetensors: {error}") from error
    rows: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        digest, _, part = name.partition("/")
        rows.setdefault(digest, {})[part] = tensor
    return dict(sorted(rows.items()))


def row_digest(row: dict[str, Tensor]) -> str:
    """A row's name: what it holds, in float32."""
    parts = [row[part].float().numpy().tobytes() for part in sorted(row)]
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
        slots = engine.vllm_config.scheduler_config.max_num_seqs + SPARE_SLOTS
        self.slots: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(slots):
            self.slots.put_nowait(slot)
        self._places: dict[str, int] = {}
        """Places of rows in the bank, those used last at the end."""
        self._kinds: dict[str, int] = {}
        self.used: Counter[str] = Counter()
        self._putting = asyncio.Lock()
        self._asked: list[tuple[str, int, asyncio.Future[dict[str, Any]]]] = []
        self._fetching: asyncio.Task[None] | None = None

    async def put(self, body: bytes) -> None:
        """Register rows.

        Raises:
            ValueError: They are none, or do not fit the model.
            MemoryError: There is no room as long as requests use what is there.
        """
        rows = unpacked(body)
        for digest, row in rows.items():
            self._check(digest, row)
        async with self._putting:
            new = [digest for digest in rows if digest not in self._places]
            taken = set(self._places.values())
            free = [at for at in range(ROWS) if at not in taken]
            idle = [d for d in self._places if not self.used[d] and d not in rows]
            if len(new) > len(free) + len(idle):
                raise MemoryError(f"{len(new)} rows find no room among {ROWS}, as all are in use")
            for digest in idle[: max(0, len(new) - len(free))]:
                free.append(self._places.pop(digest))
            at = [self._places[d] if d in self._places else free.pop(0) for d in rows]
            await self._engine.collective_rpc("esr_put", args=(at, body))
            self._places |= dict(zip(rows, at, strict=True))
            self._kinds |= {digest: int(row["numbers"][2]) for digest, row in rows.items()}

    def _check(self, digest: str, row: dict[str, Tensor]) -> None:
        width = self.facts["width"]
        whole = {"direction", "numbers"} <= set(row) <= {"direction", "encoder", "numbers"}
        if not whole or row["numbers"].shape != (3,) or row_digest(row) != digest:
            raise ValueError(f"row {digest[:32]} is not what its name says")
        for part in ("direction", "encoder"):
            if part in row and row[part].shape != (width,):
                raise ValueError(f"a row has {row[part].numel()} values and the model {width}")
        if not all(bool(part.isfinite().all()) for part in row.values()):
            raise ValueError(f"row {digest} is not finite")
        if int(row["numbers"][2]) not in range(len(KINDS)):
            raise ValueError(f"row {digest} has an unknown normalisation")

    def plan(self, told: str) -> tuple[dict[str, Any], list[str]]:
        """A request's steering with places in the place of digests, and the rows it uses.

        Raises:
            ValueError: It is malformed, or names what is not here.
        """
        try:
            given = json.loads(told)
            edits = {int(layer): terms for layer, terms in given["edits"].items()}
            reads = [tuple(read) for read in given["reads"]]
            rows = [str(term[0]) for terms in edits.values() for term in terms]
            rows += [row for *_, what in reads for row in what if not isinstance(what, str)]
            layers = {*edits, *(int(layer) for _, layer, *_ in reads)}
            missing = sorted({*rows} - set(self._places))
            if missing:
                raise ValueError(f"it names {UNKNOWN_ROWS}: {', '.join(missing)}")
            plan = {
                "edits": {layer: [self._term(*t) for t in terms] for layer, terms in edits.items()},
                "reads": [self._read(*read) for read in reads],
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is malformed: {type(error).__name__}: {error}") from error
        if absent := sorted(layers - set(self.facts["layers"])):
            raise ValueError(
                f"layer {absent[0]} is not prepared: start the server for it (--layer; it has "
                f"{', '.join(map(str, self.facts['layers']))})"
            )
        if any(len(terms) > TERMS for terms in edits.values()):
            raise ValueError(f"it has more than {TERMS} edits at a layer")
        return plan, rows

    def _term(
        self, row: str, amount: float, start: int, stop: int, clamps: int
    ) -> tuple[float, ...]:
        if not math.isfinite(amount) or not 0 <= start <= NO_STOP or not 0 <= stop <= NO_STOP:
            raise TypeError("a term's numbers")
        return self._places[row], amount, start, stop, float(bool(clamps)), self._kinds[row]

    def _read(
        self, index: int, layer: int, start: int, stop: int, what: str | list[str]
    ) -> tuple[Any, ...]:
        if isinstance(what, str) and what not in ("residual", "norm"):
            raise TypeError(f"{what!r} cannot be read")
        rows = what if isinstance(what, str) else [self._places[row] for row in what]
        return int(index), int(layer), int(start), int(stop), rows

    async def fetch(self, ours: str, fed: int) -> dict[str, Any]:
        """What became of a request; those that end together are asked for together."""
        asked = asyncio.get_running_loop().create_future()
        self._asked.append((ours, fed, asked))
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
        return await asked

    async def _fetch(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, []
            wanted = [(ours, fed) for ours, fed, _ in asked]
            try:
                told = await self._engine.collective_rpc("esr_fetch", args=(wanted,))
            except Exception as error:
                for *_, future in asked:
                    future.set_exception(error)
                continue
            for i, (*_, future) in enumerate(asked):
                if not future.done():
                    future.set_result(joined([worker[i] for worker in told]))
        self._fetching = None


def joined(told: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """What several workers tell of one request: each that has a layer must have edited it."""
    ranks = [rank for rank in told if rank is not None]
    if not ranks:
        return {"error": "no worker knows it"}
    layers = {layer for rank in ranks for layer in rank["counts"]}
    return {
        "counts": {
            layer: [min(of) for of in zip(*_of(ranks, layer), strict=True)] for layer in layers
        },
        "error": next((rank["error"] for rank in ranks if rank["error"]), None),
        "finite": all(rank["finite"] for rank in ranks),
        "reads": list({read[0]: read for rank in ranks for read in rank["reads"]}.values()),
    }


def _of(ranks: Sequence[dict[str, Any]], layer: str) -> list[list[int]]:
    return [rank["counts"][layer] for rank in ranks if layer in rank["counts"]]


def steered_generate(original: Callable[..., AsyncIterator[Any]]) -> Callable[..., Any]:
    """VLLM's `AsyncLLM.generate` with steering checked before and receipts fetched after it."""

    async def generate(self: Any, prompt: Any, params: Any, request_id: str, **kwargs: Any) -> Any:
        extra = params.extra_args or {}
        try:
            if PLAN_ARG in extra:
                raise ValueError(f"{PLAN_ARG} is the server's own")
            if SAMPLING_ARG in extra:
                read_sampling(extra[SAMPLING_ARG])
            if STEERING_ARG not in extra:
                async for out in original(self, prompt, params, request_id, **kwargs):
                    yield out
                return
            if not _DESK or params.n != 1 or not isinstance(prompt, dict):
                raise ValueError("only single requests over HTTP can be steered")
            told = extra.pop(STEERING_ARG)
            plan, rows = _DESK[0].plan(told)
        except ValueError as error:
            raise ValueError(f"esr-eval cannot steer this request: {error}") from error
        desk, ours, fetched = _DESK[0], uuid.uuid4().hex, False
        # What a steered request leaves in the prefix cache is its own; and it reads nothing there,
        # so that every position is computed, counted and read here.
        prompt = {**prompt, "cache_salt": hashlib.sha256(told.encode()).hexdigest()}
        params.skip_reading_prefix_cache = True
        desk.used.update(rows)
        slot = None
        try:
            slot = await desk.slots.get()
            extra[PLAN_ARG] = json.dumps({**plan, "id": ours, "slot": slot})
            async for out in original(self, prompt, params, request_id, **kwargs):
                if out.finished:
                    fed = len(out.prompt_token_ids) + len(out.outputs[0].token_ids) - 1
                    found = await desk.fetch(ours, fed)
                    fetched = True
                    if found["error"]:
                        raise RuntimeError(f"esr-eval could not steer: {found['error']}")
                    out.kv_transfer_params = {ANSWER: {**found, "fed": fed}}
                yield out
        finally:
            if not fetched and slot is not None:  # given up half-way: the worker must forget it
                await asyncio.shield(desk.fetch(ours, 0))
            desk.used.subtract(rows)
            if slot is not None:
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

        async def facts() -> Any:
            return JSONResponse({**_DESK[0].facts, "code": code_digest()})

        async def rows(request: Request) -> Any:
            try:
                await _DESK[0].put(await request.body())
            except ValueError as error:
                said = {"error": {"message": f"esr-eval cannot take the rows: {error}"}}
                return JSONResponse(said, status_code=400)
            except MemoryError as error:
                return JSONResponse({"error": {"message": str(error)}}, status_code=503)
            return JSONResponse({})

        app.add_api_route(FACTS_PATH, facts, methods=["GET"])
        app.add_api_route(ROWS_PATH, rows, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Learn what the workers run."""
        facts = await engine_client.collective_rpc("esr_facts")
        layers = sorted({layer for one in facts for layer in one["layers"]})
        _DESK[:] = [Desk(engine_client, {**facts[0], "layers": layers})]
