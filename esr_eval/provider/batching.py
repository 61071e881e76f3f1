"""Requests of concurrent samples, gathered into batches for one engine."""

import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import anyio
import anyio.to_thread

Request = TypeVar("Request")
Result = TypeVar("Result")

GATHER_SECONDS = 0.02
"""Requests of one wave of samples arrive within milliseconds of each other."""
GATHER_LIMIT_SECONDS = 0.5
"""A steady trickle of requests must not hold the first one back for longer than this."""


class _Ticket(Generic[Request, Result]):
    def __init__(self, request: Request) -> None:
        self.request = request
        self.taken = False
        self.done = anyio.Event()
        self.result: Result | None = None
        self.error: BaseException | None = None


class Batcher(Generic[Request, Result]):
    """Runs requests in batches, in worker threads, a bounded number of batches at once.

    Whoever gets a free slot leads: it waits until no further request has come for a moment, runs
    what is there, and hands out the results to the others of its batch. No thread or task outlives
    a request.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Request]], Sequence[Result]],
        max_batch: int,
        on_batch: Callable[[int, float], None] | None = None,
        parallel: int = 1,
        abandon: bool = False,
    ) -> None:
        """Set up; nothing runs yet.

        Args:
            run: The engine: as many results as requests, in order. Runs in a worker thread.
            max_batch: Largest batch; halved for good when memory runs out.
            on_batch: Called after each batch with its size and the seconds for which any batch has
                been running since the last such call.
            parallel: Most batches at once; above 1, `run` must be thread-safe.
            abandon: Whether a cancelled request gives its batch up at once, which a server may
                keep waiting for long, rather than wait for its end.
        """
        self.max_batch = max_batch
        self._run = run
        self._on_batch = on_batch
        self._abandon = abandon
        self._slots = anyio.Semaphore(parallel)
        self._threads = anyio.CapacityLimiter(parallel)
        self._waiting: list[_Ticket[Request, Result]] = []
        self._running = 0
        self._since = 0.0

    async def submit(self, request: Request) -> Result:
        """Run one request, together with whatever else is waiting.

        Raises:
            BaseException: What the engine raised on this request's batch.
        """
        ticket: _Ticket[Request, Result] = _Ticket(request)
        self._waiting.append(ticket)
        try:
            async with self._slots:
                while not ticket.taken:
                    await self._lead()
            await ticket.done.wait()  # another leader may have taken it
        finally:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
        if ticket.error is not None:
            raise ticket.error
        assert ticket.result is not None
        return ticket.result

    async def _lead(self) -> None:
        opened, count = time.monotonic(), 0
        while count < len(self._waiting) < self.max_batch:
            count = len(self._waiting)
            await anyio.sleep(GATHER_SECONDS)
            if time.monotonic() - opened > GATHER_LIMIT_SECONDS:
                break
        batch = self._waiting[: self.max_batch]
        if not batch:  # another leader was faster
            return
        del self._waiting[: self.max_batch]
        for ticket in batch:
            ticket.taken = True
        if self._running == 0:
            self._since = time.monotonic()
        self._running += 1
        try:
            results = await anyio.to_thread.run_sync(
                self._run_halving,
                [ticket.request for ticket in batch],
                limiter=self._threads,
                abandon_on_cancel=self._abandon,
            )
        except Exception as error:  # whatever it is, it is each requester's to handle
            _fail(batch, error)
            return
        except anyio.get_cancelled_exc_class():
            _fail(batch, RuntimeError("The request went under with another that was cancelled."))
            raise
        finally:
            self._running -= 1
        for ticket, result in zip(batch, results, strict=True):
            ticket.result = result
            ticket.done.set()
        if self._on_batch is not None:
            now = time.monotonic()
            self._on_batch(len(batch), now - self._since)
            self._since = now

    def _run_halving(self, requests: Sequence[Request]) -> list[Result]:
        """Run a batch; when memory runs out, run its halves and remember the smaller size."""
        if len(requests) > self.max_batch:
            return self._in_halves(requests)
        try:
            return list(self._run(requests))
        except (MemoryError, RuntimeError) as error:
            if len(requests) == 1 or not _out_of_memory(error):
                raise
        release_memory()
        self.max_batch = len(requests) // 2
        return self._in_halves(requests)

    def _in_halves(self, requests: Sequence[Request]) -> list[Result]:
        middle = len(requests) // 2
        return self._run_halving(requests[:middle]) + self._run_halving(requests[middle:])


def _fail(batch: "Sequence[_Ticket[Request, Result]]", error: Exception) -> None:
    for ticket in batch:
        ticket.error = error
        ticket.done.set()


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


def release_memory() -> None:
    """Give cached device memory back before the next try."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
