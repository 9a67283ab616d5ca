"""Three candidates under random delays, failures and deletions: never two that lead at one moment, and one in the end."""

import asyncio
import random

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autowasm.kube.errors import ApiError, ServerError
from autowasm.kube.leaderelection import LeaderElector, LeaseTimings
from autowasm.kube.resources import ObjectKey
from tests.fakes.leases import FakeLeaseClient, FakeLeases

KEY = ObjectKey("istio-system", "wasmer")
MAX_STEP = 0.25


class VirtualLoop(looptime.LoopTimeEventLoop, asyncio.SelectorEventLoop):  # type: ignore[misc]
    """A loop with a clock that jumps."""


async def compete(rng: random.Random, *, faulty: float) -> None:
    server = FakeLeases()
    timings = LeaseTimings(lease_duration=6, renew_deadline=4.0, retry_period=1.0)
    electors, tasks = [], []
    failing = True

    def delay() -> float:
        return rng.choice([0.0, 0.01, 0.5, 1.5, 2.5]) if failing else 0.0

    def failure() -> ApiError | None:
        failed = failing and rng.random() < faulty
        return ServerError("down", code=500) if failed else None

    loop = asyncio.get_running_loop()
    for name in ("one", "two", "three"):
        client = FakeLeaseClient(server, before=delay, after=delay, failure=failure)
        elector = LeaderElector(client, lease=KEY, identity=name, timings=timings, rng=rng)
        electors.append(elector)
        tasks.append(loop.create_task(elector.run(), name=name))
        await asyncio.sleep(rng.random() * 3)
    while loop.time() < 120:
        await asyncio.sleep(rng.random() * MAX_STEP)
        assert sum(elector.is_leading for elector in electors) <= 1
        if rng.random() < 0.01:
            index = rng.randrange(3)
            tasks[index].cancel()
            await asyncio.wait([tasks[index]])
            tasks[index] = loop.create_task(electors[index].run())
    failing = False
    await asyncio.sleep(30)
    assert sum(elector.is_leading for elector in electors) == 1
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.timeout(600)  # 80 s while other suites run beside it
@given(seed=st.integers(0, 2**32), faulty=st.sampled_from([0.0, 0.2, 0.6]))
@settings(max_examples=settings().max_examples // 4, deadline=None)
def test_never_two_lead_and_one_does_in_the_end(seed: int, faulty: float) -> None:
    loop = VirtualLoop()
    loop.setup_looptime(noop_cycles=0)
    try:
        loop.run_until_complete(compete(random.Random(seed), faulty=faulty))
    finally:
        loop.close()
