"""Single flight under any order of joining, leaving and ending: one run at a time, and the result for all remaining callers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from autowasm.artifacts.fetchlimiter import FetchLimiter
from autowasm.artifacts.singleflight import SingleFlight
from autowasm.limits import FetchLimits
from autowasm.telemetry.metrics import Metrics

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.sampled_from("abc")),
        st.tuples(st.just("leave"), st.integers(min_value=0, max_value=10)),
        st.tuples(st.just("end"), st.booleans()),
        st.tuples(st.just("yield"), st.integers(min_value=1, max_value=3)),
    ),
    max_size=40,
)


class Work:
    """One kind of work; each run waits until the script ends it."""

    def __init__(self) -> None:
        self.running = 0
        self._end: asyncio.Future[str] | None = None

    async def __call__(self) -> str:
        assert not self.running, "the same work runs twice"
        self.running += 1
        self._end = asyncio.get_running_loop().create_future()
        try:
            return await self._end
        finally:
            self.running -= 1

    def end(self, *, well: bool) -> None:
        if self._end is not None and not self._end.done():
            if well:
                self._end.set_result("module")
            else:
                self._end.set_exception(OSError("down"))


@asynccontextmanager
async def single_flight_and_limiter() -> AsyncIterator[tuple[SingleFlight, FetchLimiter]]:
    limits = FetchLimits(per_host=1, per_namespace=1, per_namespace_host=1)
    async with asyncio.TaskGroup() as tasks:
        yield SingleFlight(tasks), FetchLimiter(limits, metrics=Metrics())


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def play(steps: list[tuple[str, object]]) -> None:
    work = Work()
    async with single_flight_and_limiter() as (single_flight, fetch_limiter):
        waiters: list[asyncio.Task[str]] = []
        for step, value in steps:
            if step == "join":
                namespace = str(value)

                def slot(namespace: str = namespace) -> object:
                    return fetch_limiter.slot(namespace, "h")

                waiters.append(asyncio.create_task(single_flight.join("k", work, slot=slot)))  # type: ignore[arg-type]
            elif step == "leave" and waiters:
                waiters[int(str(value)) % len(waiters)].cancel()
                await settle()
            elif step == "end":
                work.end(well=bool(value))
                await settle()
            else:
                await settle()
            staying = [waiter for waiter in waiters if not waiter.done()]
            assert work.running <= 1
            if not staying:
                await settle()
                assert not work.running
        await settle()
        staying = [waiter for waiter in waiters if not waiter.done()]
        assert bool(staying) == bool(work.running)
        work.end(well=True)
        for waiter in staying:
            assert await waiter == "module"
        await settle()
        assert not single_flight._calls
        assert fetch_limiter._running == fetch_limiter._waiting_count == 0
        await asyncio.gather(*waiters, return_exceptions=True)


@given(STEPS)
@settings(max_examples=settings().max_examples * 2)
def test_one_run_at_a_time_answers_every_remaining_caller(
    steps: list[tuple[str, object]],
) -> None:
    asyncio.run(play(steps))
