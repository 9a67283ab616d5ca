"""Transfers end when the loop ends them, independently of the server, and leave no thread or descriptor."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from autowasm.errors import SourceUnavailable
from autowasm.limits import Limits
from autowasm.net.pools import Pool, Pools
from autowasm.net.transfer import (
    RateWatch,
    Transfer,
    TransferEnded,
    current_transfer,
    run_transfer,
)

LIMITS = Limits(minimum_rate=1000, minimum_rate_after=0.4, thread_return=2.0)


@pytest.fixture
def pools() -> Iterator[Pools]:
    with Pools(transfers=2) as pools:
        yield pools


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


async def run(
    pool: Pool, function: object, *, deadline: float = 10.0, limits: Limits = LIMITS
) -> object:
    return await run_transfer(
        pool,
        function,  # type: ignore[arg-type]
        what="transfer of x",
        deadline=deadline,
        limits=limits,
    )


async def assert_thread_is_free(pool: Pool, *, threads: int = 2) -> None:
    """Every thread of the pool takes new work at once."""
    barrier = threading.Barrier(threads)
    async with asyncio.timeout(30):
        await asyncio.gather(*(pool.run(barrier.wait) for _ in range(threads)))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_run_returns_the_result_of_the_function(pools: Pools) -> None:
    def work(transfer: Transfer) -> str:
        assert current_transfer() is transfer
        return threading.current_thread().name

    assert str(await run(pools.transfer, work)).startswith("autowasm-transfer")


async def test_run_raises_the_exception_of_the_function(pools: Pools) -> None:
    def work(transfer: Transfer) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await run(pools.transfer, work)


async def test_deadline_cuts_a_silent_socket(
    pools: Pools, pair: tuple[socket.socket, socket.socket]
) -> None:
    def work(transfer: Transfer) -> bytes:
        transfer.adopt(pair[0])
        return pair[0].recv(1)  # no timeout of its own

    with pytest.raises(
        SourceUnavailable, match=r"transfer of x: not finished within 0\.2 s"
    ) as caught:
        await run(pools.transfer, work, deadline=0.2)
    assert caught.value.reason == "Timeout"
    await assert_thread_is_free(pools.transfer)


async def test_no_answer_in_its_time_is_cut_long_before_the_deadline(
    pools: Pools, pair: tuple[socket.socket, socket.socket]
) -> None:
    def work(transfer: Transfer) -> bytes:
        transfer.adopt(pair[0])
        transfer.expect_answer(0.2)
        return pair[0].recv(1)

    with pytest.raises(SourceUnavailable, match=r"no answer within 0\.2 s") as caught:
        await run(pools.transfer, work, deadline=60)
    assert caught.value.reason == "Timeout"
    await assert_thread_is_free(pools.transfer)


async def test_a_drip_is_cut_after_the_window(
    pools: Pools, pair: tuple[socket.socket, socket.socket]
) -> None:
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.02):
            try:
                pair[1].send(b"x")
            except OSError:
                return

    def work(transfer: Transfer) -> None:
        transfer.adopt(pair[0])
        transfer.expect_body()
        while data := pair[0].recv(100):
            transfer.received(len(data))

    dripping = threading.Thread(target=drip)
    dripping.start()
    began = time.monotonic()
    try:
        with pytest.raises(SourceUnavailable, match="slower than 1000 B/s") as caught:
            await run(pools.transfer, work, deadline=600)
    finally:
        stop.set()
        dripping.join()
    assert caught.value.reason == "TooSlow"
    assert time.monotonic() - began > 0.35
    await assert_thread_is_free(pools.transfer)


async def test_waiting_for_an_answer_is_not_slow(pools: Pools) -> None:
    def work(transfer: Transfer) -> str:
        transfer.expect_answer(5)
        time.sleep(3 * LIMITS.minimum_rate_after)
        transfer.expect_body()
        return "done"

    assert await run(pools.transfer, work) == "done"


async def test_cancelling_a_transfer_frees_its_thread_and_raises(
    pools: Pools, pair: tuple[socket.socket, socket.socket]
) -> None:
    waiting = threading.Event()

    def work(transfer: Transfer) -> bytes:
        transfer.adopt(pair[0])
        waiting.set()
        return pair[0].recv(1)

    task = asyncio.create_task(run(pools.transfer, work), name="transfer")
    await pools.disk.run(waiting.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_thread_is_free(pools.transfer)


async def test_a_socket_adopted_too_late_is_refused(pools: Pools) -> None:
    near, far = socket.socketpair()
    seen: list[type[BaseException]] = []
    ended = threading.Event()

    def work(transfer: Transfer) -> None:
        ended.wait(0.5)
        try:
            transfer.adopt(near)
        except TransferEnded as error:
            seen.append(type(error))
            raise

    with near, far, pytest.raises(SourceUnavailable):
        await run(pools.transfer, work, deadline=0.1)
    assert seen == [TransferEnded]


async def test_work_that_waits_for_a_thread_ends_at_its_deadline_too() -> None:
    release = threading.Event()
    with Pools(transfers=1) as pools:
        blocker = asyncio.wrap_future(pools.transfer.submit(release.wait))
        try:
            with pytest.raises(SourceUnavailable) as caught:
                await run(pools.transfer, lambda _: "never", deadline=0.1)
        finally:
            release.set()
            await blocker
    assert caught.value.reason == "Timeout"


async def test_a_lookup_that_hangs_does_not_hold_the_thread(pools: Pools) -> None:
    never: Future[str] = Future()

    def work(transfer: Transfer) -> str:
        return transfer.wait_for(never, timeout=60)

    with pytest.raises(SourceUnavailable):
        await run(pools.transfer, work, deadline=0.1)
    await assert_thread_is_free(pools.transfer)


async def test_a_lookup_has_a_bounded_wait(pools: Pools) -> None:
    with pytest.raises(TimeoutError, match=r"no result within 0\.05 s"):
        await run(pools.transfer, lambda transfer: transfer.wait_for(Future(), timeout=0.05))


async def test_a_thread_that_never_comes_back_does_not_hold_the_caller() -> None:
    release = threading.Event()
    limits = Limits(thread_return=0.2)
    with Pools(transfers=1) as pools:
        try:
            with pytest.raises(SourceUnavailable):
                await run(pools.transfer, lambda _: release.wait(600), deadline=0.1, limits=limits)
        finally:
            release.set()
            await pools.transfer.run(int)


async def test_progress_is_reported_on_the_loop_and_complete(pools: Pools) -> None:
    told: list[int] = []
    here = threading.get_ident()

    def on_bytes(count: int) -> None:
        assert threading.get_ident() == here
        told.append(count)

    def work(transfer: Transfer) -> None:
        for _ in range(10):
            transfer.received(100)

    await run_transfer(pools.transfer, work, what="x", deadline=5, limits=LIMITS, on_bytes=on_bytes)
    assert sum(told) == 1000


async def test_no_descriptor_is_left(
    pools: Pools, pair: tuple[socket.socket, socket.socket]
) -> None:
    await pools.transfer.run(int)
    before = open_descriptors()

    def work(transfer: Transfer) -> bytes:
        transfer.adopt(pair[0])
        transfer.adopt(pair[0])
        return pair[0].recv(1)

    for _ in range(5):
        pair[1].send(b"x")
        await run(pools.transfer, work)
    with pytest.raises(SourceUnavailable):
        await run(pools.transfer, work, deadline=0.05)
    assert open_descriptors() == before


def test_rate_is_judged_over_the_last_window_only() -> None:
    watch = RateWatch(minimum=100, window=10)
    total = 0
    for second in range(20):
        total += 1000
        assert not watch.is_too_slow(second, total)
    for second in range(20, 28):
        assert not watch.is_too_slow(second, total), "the fast part is still in the window"
    assert any(watch.is_too_slow(second, total) for second in range(28, 32))


def test_nothing_is_slow_before_one_window_has_passed() -> None:
    watch = RateWatch(minimum=100, window=10)
    assert not any(watch.is_too_slow(tenth / 10, 0) for tenth in range(100))
    assert watch.is_too_slow(10, 0)


def test_exactly_the_minimum_is_enough() -> None:
    watch = RateWatch(minimum=100, window=10)
    assert not any(watch.is_too_slow(second, 100 * second) for second in range(60))


def test_samples_stay_few() -> None:
    watch = RateWatch(minimum=1, window=10)
    for step in range(100_000):
        watch.is_too_slow(step / 1000, step)
    assert len(watch._samples) < 40
