import threading
import time

import anyio
import pytest

from esr_eval.backends.local import rows_in
from esr_eval.provider import api
from esr_eval.provider.api import CPU_ROWS, ESRModelAPI
from esr_eval.provider.batching import Batcher


def run_all(batcher, requests, delay=0.0):
    results = {}

    async def one(request):
        results[request] = await batcher.submit(request)

    async def main():
        async with anyio.create_task_group() as tasks:
            for request in requests:
                tasks.start_soon(one, request)
                await anyio.sleep(delay)

    anyio.run(main)
    return results


def test_one_wave_is_one_batch_and_everyone_gets_their_own_result():
    sizes = []

    def engine(batch):
        sizes.append(len(batch))
        return [2 * request for request in batch]

    assert run_all(Batcher(engine, 16), range(10)) == {i: 2 * i for i in range(10)}
    assert sizes == [10]


def test_a_lone_request_does_not_wait_for_company():
    started = time.monotonic()
    run_all(Batcher(lambda batch: list(batch), 16), [1])
    assert time.monotonic() - started < 0.3


def test_batches_stay_within_their_size():
    sizes = []

    def engine(batch):
        sizes.append(len(batch))
        return list(batch)

    assert len(run_all(Batcher(engine, 4), range(11))) == 11
    assert max(sizes) == 4


def test_memory_running_out_halves_the_batch_for_good():
    sizes = []

    def engine(batch):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return [request + 100 for request in batch]

    batcher = Batcher(engine, 16)
    assert run_all(batcher, range(12)) == {i: i + 100 for i in range(12)}
    assert batcher.max_batch == 3
    assert sizes[0] == 12


def test_an_error_reaches_every_request_of_its_batch_and_the_next_batch_runs():
    calls = []

    def engine(batch):
        calls.append(list(batch))
        if len(calls) == 1:
            raise ValueError("broken once")
        return list(batch)

    batcher = Batcher(engine, 4)
    with pytest.raises(BaseExceptionGroup):
        run_all(batcher, range(3))
    assert run_all(Batcher(engine, 4), [9]) == {9: 9}


def test_memory_that_is_short_for_a_single_row_is_an_error():
    def engine(batch):
        raise RuntimeError("out of memory")

    with pytest.raises(BaseExceptionGroup):
        run_all(Batcher(engine, 4), range(2))


def test_batches_run_beside_each_other_where_the_engine_allows_it():
    under_way, most = [], []

    def engine(batch):
        under_way.append(1)
        most.append(len(under_way))
        time.sleep(0.1)
        under_way.pop()
        return [3 * request for request in batch]

    batcher = Batcher(engine, 1, parallel=4)
    started = time.monotonic()
    assert run_all(batcher, range(12)) == {i: 3 * i for i in range(12)}
    assert max(most) == 4
    assert time.monotonic() - started < 0.1 * 12 * 0.7


def test_busy_seconds_are_counted_once_however_many_batches_run():
    told = []
    batcher = Batcher(
        lambda batch: [time.sleep(0.2)] and list(batch),
        1,
        lambda size, seconds: told.append(seconds),
        parallel=4,
    )
    run_all(batcher, [1, 2, 3, 4])
    assert 0.19 < sum(told) < 0.35


def test_a_cancelled_request_gives_a_slow_servers_batch_up_and_tells_the_others():
    release = threading.Event()
    told = []

    def engine(batch):
        release.wait(20)
        return list(batch)

    batcher = Batcher(engine, 8, abandon=True)

    async def leader():
        with anyio.move_on_after(0.3):
            await batcher.submit(1)

    async def follower():
        with pytest.raises(RuntimeError, match="another that was cancelled"):
            await batcher.submit(2)
        told.append(time.monotonic())

    async def main():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leader)
            tasks.start_soon(follower)
        ended = time.monotonic()
        release.set()
        return ended

    started = time.monotonic()
    assert anyio.run(main) - started < 5
    assert told


def test_while_a_batch_is_judged_the_next_is_already_there():
    """96 samples in batches of 64 are two batches, not 64, a few, and the rest."""
    sizes = []

    def engine(batch):
        time.sleep(0.05)
        sizes.append(len(batch))
        return list(batch)

    connections = ESRModelAPI("smollm2-135m", device="cpu").max_connections()
    batcher = Batcher(engine, CPU_ROWS)

    async def sample(number, slots):
        async with slots:
            await batcher.submit(number)
            await anyio.sleep(0.02 * (number % 5))  # the judge's time

    async def main():
        slots = anyio.Semaphore(connections)
        async with anyio.create_task_group() as tasks:
            for number in range(96):
                tasks.start_soon(sample, number, slots)

    anyio.run(main)
    assert sizes == [64, 32]


@pytest.mark.parametrize(
    ("chosen", "gpus", "connections"),
    [
        ({}, [], 128),
        ({}, [80.0], 512),
        ({"batch_size": 4}, [80.0], 8),
        ({"device": "cpu"}, [80.0], 128),
    ],
)
def test_more_samples_than_a_batch_are_under_way(monkeypatch, chosen, gpus, connections):
    monkeypatch.setattr(api, "gpu_memory_gib", lambda: gpus)
    assert ESRModelAPI("smollm2-135m", **chosen).max_connections() == connections


def test_rows_follow_free_memory():
    # An 8B model's cache in 16 bits, 768 tokens a row, beside its weights on 80 GB.
    row = 32 * 2 * 8 * 128 * 2 * 768 + 16 * 128_256
    assert 300 < rows_in(62 * 2**30, row) < 400
    assert rows_in(0, row) == 1
