"""What the plugin adds to vLLM's HTTP server: rows are registered, and requests checked, here.

This process alone gives out places for rows, so that all workers agree. A request that names what
is not here is refused.
"""

import asyncio
import functools
import hashlib
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any

from esr_eval.backends.vllm import (
    FACTS_PATH,
    OURS,
    PLUGIN,
    ROWS_PATH,
    UNKNOWN_ROWS,
    code_digest,
)
from esr_eval.backends.vllm.steerer import ROWS
from esr_eval.backends.vllm.wire import KINDS, Asked, Row, read_rows


class Desk:
    """Who is served, and with which rows."""

    def __init__(self, engine: Any, facts: dict[str, Any]) -> None:
        """Start empty.

        Args:
            engine: vLLM's client of its engine.
            facts: What the workers told of themselves.
        """
        self.facts, self._engine = {**facts, "code": code_digest()}, engine
        self.used: Counter[str] = Counter()
        """Rows of the requests that are served."""
        self._rows: dict[str, int] = {}
        """Place in the bank of every row."""
        self._putting, self._fetching = asyncio.Lock(), asyncio.Lock()
        self._asked: dict[str, int] = {}
        self._next: asyncio.Task[dict[str, Any]] | None = None

    async def put(self, body: bytes) -> tuple[int, str]:
        """Register rows: the status and sentence to answer with."""
        try:
            rows = read_rows(body)
            for digest, row in rows.items():
                self._check(digest, row)
        except Exception as error:  # safetensors' own, and those of whatever the bytes lead to
            return 400, f"esr-eval cannot take the rows: {type(error).__name__}: {error}"
        async with self._putting:
            free = {*range(ROWS)} - {*self._rows.values()}
            idle = [d for d in self._rows if not self.used[d] and d not in rows]
            new = [d for d in rows if d not in self._rows]
            while idle and len(free) < len(new):
                free.add(self._rows.pop(idle.pop(0)))
            if len(free) < len(new):
                return 503, f"esr-eval has no room for {len(new)} rows among {ROWS} in use"
            at = {d: self._rows[d] if d in self._rows else free.pop() for d in rows}
            await self._engine.collective_rpc("esr_put", args=(list(at.values()), body))
            self._rows |= at
        return 200, ""

    def _check(self, digest: str, row: Row) -> None:
        if row.vectors.shape != (2, self.facts["width"]) or row.numbers.shape != (3,):
            raise ValueError(f"row {digest} is not of this model")
        if row.digest() != digest or not all(part.isfinite().all() for part in row):
            raise ValueError(f"row {digest} is damaged, or not finite")
        if row.numbers[2] not in range(len(KINDS)):
            raise ValueError(f"row {digest} wants an unknown normalisation")

    def plan(self, asked: Asked) -> dict[str, Any]:
        """What a request asks, with rows' places in the place of their digests.

        Raises:
            ValueError: It names what is not here.
        """
        if missing := sorted({*asked.rows()} - self._rows.keys()):
            raise ValueError(f"it names {UNKNOWN_ROWS}: {', '.join(missing)}")
        if absent := sorted({*asked.edits, *asked.reads} - {*self.facts["layers"]}):
            has = ", ".join(map(str, self.facts["layers"]))
            raise ValueError(f"layer {absent[0]} is not prepared (--layer), but {has}")
        placed = {
            layer: [(self._rows[term.row], *term[1:]) for term in terms]
            for layer, terms in asked.edits.items()
        }
        return asked.model_dump(mode="json") | {"edits": placed}

    async def generate(
        self,
        original: Callable[..., AsyncGenerator[Any]],
        prompt: Any,
        params: Any,
        request_id: str,
        **kwargs: Any,
    ) -> AsyncGenerator[Any]:
        """`AsyncLLM.generate` with requests checked before it, and receipts fetched after it."""
        extra = params.extra_args or {}
        told, rows, ours = extra.get(OURS), list[str](), None
        if told is not None:
            try:
                asked = Asked.from_json(told)
                plan = self.plan(asked)
                if params.n != 1:
                    raise ValueError("it must be one request")
            except ValueError as error:
                raise ValueError(f"esr-eval cannot serve this request: {error}") from error
            rows = asked.rows()
            if asked.edits or asked.reads:
                ours = uuid.uuid4().hex
                # What a steered request leaves in the prefix cache is its own; and it reads
                # nothing there, so that every position is computed, counted and read here.
                prompt = {**prompt, "cache_salt": hashlib.sha256(told.encode()).hexdigest()}
                params.skip_reading_prefix_cache = True
            params.extra_args = {**extra, OURS: {**plan, "id": ours}}
        self.used.update(rows)
        try:
            # Closed, so that a request given up half-way leaves vLLM before it is forgotten.
            async with aclosing(original(prompt, params, request_id, **kwargs)) as outs:
                async for out in outs:
                    if out.finished and ours is not None:
                        fed = len(out.prompt_token_ids) + len(out.outputs[0].token_ids) - 1
                        done, ours = ours, None
                        found = joined((await asyncio.shield(self._ask(done, fed)))[done])
                        out.kv_transfer_params = {OURS: {**found, "fed": fed}}
                    yield out
        finally:
            self.used.subtract(rows)
            if ours is not None:  # given up half-way: the workers must forget it, too
                self._ask(ours, 0)

    def _ask(self, ours: str, fed: int) -> "asyncio.Task[dict[str, Any]]":
        """Have the workers tell of a request, with all that ask before they are asked."""
        self._asked[ours] = fed
        if self._next is None:
            self._next = asyncio.create_task(self._fetch())
        return self._next

    async def _fetch(self) -> dict[str, Any]:
        async with self._fetching:
            asked, self._asked, self._next = self._asked, {}, None
            workers = await self._engine.collective_rpc("esr_fetch", args=([*asked.items()],))
        return dict(zip(asked, zip(*workers, strict=True), strict=True))


def joined(ranks: Iterable[dict[str, Any] | None]) -> dict[str, Any]:
    """What several workers tell of one request: all that have a layer must have edited it.

    Raises:
        RuntimeError: None has it.
    """
    told = [rank for rank in ranks if rank is not None]
    if not told:
        raise RuntimeError("esr-eval could not steer the request: no worker has it")
    counts: dict[str, list[int]] = {}
    for rank in told:
        for layer, found in rank["counts"].items():
            counts[layer] = [*map(min, found, counts.get(layer, found))]
    reads = {layer: read for rank in told for layer, read in rank["reads"].items()}
    return {"counts": counts, "finite": all(rank["finite"] for rank in told), "reads": reads}


class Routes:
    """vLLM's endpoint plugin."""

    name = PLUGIN
    required_tasks = ("generate",)
    desk: Desk

    def attach_router(self, app: Any) -> None:
        """Add the routes; vLLM asks for its key under /v1."""
        from fastapi import Request
        from fastapi.responses import JSONResponse

        async def facts() -> Any:
            return JSONResponse(self.desk.facts)

        async def rows(request: Request) -> Any:
            status, said = await self.desk.put(await request.body())
            return JSONResponse({"error": {"message": said}} if said else {}, status_code=status)

        app.add_api_route(FACTS_PATH, facts, methods=["GET"])
        app.add_api_route(ROWS_PATH, rows, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Learn what the workers run."""
        facts = await engine_client.collective_rpc("esr_facts")
        layers = sorted({layer for one in facts for layer in one["layers"]})
        self.desk = Desk(engine_client, {**facts[0], "layers": layers})
        engine_client.generate = functools.partial(self.desk.generate, engine_client.generate)
