import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from autowasm.artifacts.fetchlimiter import FetchLimiter
from autowasm.artifacts.singleflight import SingleFlight
from autowasm.errors import SourceUnavailable
from autowasm.limits import FetchLimits
from autowasm.telemetry.metrics import Metrics


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def free() -> AsyncIterator[None]:
    yield


class Work:
    """Runs until its result is set."""

    def __init__(self) -> None:
        self.runs = 0
        self.running = 0
        self.ends: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> str:
        self.runs += 1
        self.running += 1
        try:
            return await asyncio.shield(self.ends)
        finally:
            self.running -= 1


@pytest.fixture
async def tasks() -> AsyncIterator[asyncio.TaskGroup]:
    async with asyncio.TaskGroup() as group:
        yield group
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # of a test that failed: it must not hang as well


@pytest.fixture
def single_flight(tasks: asyncio.TaskGroup) -> SingleFlight:
    return SingleFlight(tasks)


@pytest.fixture
async def work() -> Work:
    return Work()


async def test_callers_with_the_same_key_share_one_run(
    single_flight: SingleFlight, work: Work
) -> None:
    waiters = [asyncio.create_task(single_flight.join("k", work, slot=free)) for _ in range(5)]
    await settle()
    late = asyncio.create_task(single_flight.join("k", work, slot=free))
    await settle()
    work.ends.set_result("module")
    assert await asyncio.gather(*waiters, late) == ["module"] * 6
    assert work.runs == 1


async def test_result_is_not_kept(single_flight: SingleFlight, work: Work) -> None:
    work.ends.set_result("module")
    await single_flight.join("k", work, slot=free)
    await single_flight.join("k", work, slot=free)
    assert work.runs == 2


async def test_other_keys_run_apart(single_flight: SingleFlight, work: Work) -> None:
    waiters = [asyncio.create_task(single_flight.join(key, work, slot=free)) for key in "ab"]
    await settle()
    assert work.running == 2
    work.ends.set_result("module")
    await asyncio.gather(*waiters)


async def test_failure_reaches_all_waiters_and_is_not_cached(
    single_flight: SingleFlight, work: Work
) -> None:
    waiters = [asyncio.create_task(single_flight.join("k", work, slot=free)) for _ in range(3)]
    await settle()
    work.ends.set_exception(SourceUnavailable("down"))
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [str(result) for result in results] == ["down"] * 3
    assert not single_flight._calls


async def test_run_outlives_its_first_caller(single_flight: SingleFlight, work: Work) -> None:
    first = asyncio.create_task(single_flight.join("k", work, slot=free))
    await settle()
    second = asyncio.create_task(single_flight.join("k", work, slot=free))
    await settle()
    first.cancel()
    await settle()
    assert work.running == 1
    work.ends.set_result("module")
    assert await second == "module"
    assert work.runs == 1


async def test_run_ends_when_the_last_waiter_leaves(
    single_flight: SingleFlight, work: Work
) -> None:
    waiters = [asyncio.create_task(single_flight.join("k", work, slot=free)) for _ in range(3)]
    await settle()
    for waiter in waiters:
        assert work.running == 1
        waiter.cancel()
        await settle()
    assert work.running == 0
    assert not single_flight._calls


async def test_caller_after_a_cancelled_run_starts_another(
    single_flight: SingleFlight, work: Work
) -> None:
    first = asyncio.create_task(single_flight.join("k", work, slot=free))
    await settle()
    first.cancel()
    await asyncio.sleep(0)
    second = asyncio.create_task(single_flight.join("k", work, slot=free))
    await settle()
    work.ends.set_result("module")
    assert await second == "module"


async def test_single_flight_runs_in_the_first_slot_granted_to_any_caller(
    single_flight: SingleFlight, work: Work
) -> None:
    """The first caller's namespace is full of hanging fetches; the second's is not."""
    fetch_limiter = FetchLimiter(FetchLimits(), metrics=Metrics())
    hanging = [asyncio.create_task(_hang(fetch_limiter, "busy", f"h{n}")) for n in range(4)]
    await settle()
    busy = asyncio.create_task(
        single_flight.join("k", work, slot=lambda: fetch_limiter.slot("busy", "h"))
    )
    await settle()
    assert work.running == 0
    idle = asyncio.create_task(
        single_flight.join("k", work, slot=lambda: fetch_limiter.slot("idle", "h"))
    )
    await settle()
    assert work.running == 1
    work.ends.set_result("module")
    assert await asyncio.gather(busy, idle) == ["module"] * 2
    assert work.runs == 1
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    assert fetch_limiter._running == fetch_limiter._waiting_count == 0


async def _hang(fetch_limiter: FetchLimiter, namespace: str, host: str) -> None:
    async with fetch_limiter.slot(namespace, host):
        await asyncio.Event().wait()


async def test_callers_that_share_a_run_take_no_slot(
    single_flight: SingleFlight, work: Work
) -> None:
    fetch_limiter = FetchLimiter(FetchLimits(), metrics=Metrics())
    waiters = [
        asyncio.create_task(
            single_flight.join("k", work, slot=lambda n=n: fetch_limiter.slot(f"n{n}", "h"))  # type: ignore[misc]
        )
        for n in range(50)
    ]
    await settle()
    assert (fetch_limiter._running, fetch_limiter._waiting_count) == (1, 0)
    work.ends.set_result("module")
    assert await asyncio.gather(*waiters) == ["module"] * 50


async def test_caller_refused_by_a_full_queue_shares_the_run_of_other_waiters(
    single_flight: SingleFlight, work: Work
) -> None:
    fetch_limiter = FetchLimiter(FetchLimits(per_host=1, queued=1), metrics=Metrics())
    hanging = asyncio.create_task(_hang(fetch_limiter, "a", "h"))
    await settle()
    waiters = [
        asyncio.create_task(
            single_flight.join("k", work, slot=lambda: fetch_limiter.slot("b", "h"))
        )
        for _ in range(3)
    ]
    await settle()
    assert not any(waiter.done() for waiter in waiters)
    hanging.cancel()
    await settle()
    work.ends.set_result("module")
    assert await asyncio.gather(*waiters) == ["module"] * 3


async def test_caller_refused_by_a_full_queue_fails_without_other_waiters(
    single_flight: SingleFlight, work: Work
) -> None:
    fetch_limiter = FetchLimiter(FetchLimits(per_host=1, queued=1), metrics=Metrics())
    hanging = asyncio.create_task(_hang(fetch_limiter, "a", "h"))
    await settle()
    first, second = (
        asyncio.create_task(
            single_flight.join("k", work, slot=lambda: fetch_limiter.slot("b", "h"))
        )
        for _ in range(2)
    )
    await settle()
    first.cancel()
    with pytest.raises(SourceUnavailable, match=r"fetch queue is full \([0-9]+ waiting\)"):
        await second
    assert not single_flight._calls
    hanging.cancel()


async def test_shut_down_ends_runs_and_waiters(work: Work) -> None:
    waiters: list[asyncio.Task[str]] = []

    async def process() -> None:
        async with asyncio.TaskGroup() as group:
            single_flight = SingleFlight(group)
            waiters.append(group.create_task(single_flight.join("k", work, slot=free)))
            await settle()
            raise ValueError("the process stops")

    with pytest.raises(ExceptionGroup) as caught:
        await process()
    assert len(caught.value.exceptions) == 1
    assert waiters[0].cancelled()
    assert work.running == 0


async def test_all_callers_fail_if_no_slot_is_granted(
    single_flight: SingleFlight, work: Work
) -> None:
    fetch_limiter = FetchLimiter(FetchLimits(per_host=1, queued=0), metrics=Metrics())
    hanging = asyncio.create_task(_hang(fetch_limiter, "a", "h"))
    await settle()
    refused = await asyncio.gather(
        *(
            single_flight.join("k", work, slot=lambda: fetch_limiter.slot("b", "h"))
            for _ in range(3)
        ),
        return_exceptions=True,
    )
    assert [type(error) for error in refused] == [SourceUnavailable] * 3
    assert work.runs == 0
    assert not single_flight._calls
    hanging.cancel()
