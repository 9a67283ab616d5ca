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
from autowasm.settings import Election
from tests.fakes.leases import FakeLeaseClient, FakeLeases

KEY = ObjectKey("istio-system", "wasmer")
MAX_STEP = 0.25


class VirtualLoop(looptime.LoopTimeEventLoop, asyncio.SelectorEventLoop):  # type: ignore[misc]
    """A loop with a clock that jumps."""


DEFAULTS = Election()
TIMINGS = LeaseTimings(
    lease_duration=int(DEFAULTS.lease_duration),
    renew_deadline=DEFAULTS.renew_deadline,
    retry_period=DEFAULTS.retry_period,
)
FOLLOWED_WITHIN = 7.5
"""Seconds after a leader was killed: a period until its last renewal is seen, the Lease, a fifth of a period, and requests."""


async def compete(rng: random.Random, *, faulty: float) -> None:
    server = FakeLeases()
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
        elector = LeaderElector(client, lease=KEY, identity=name, timings=TIMINGS, rng=rng)
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


async def seconds_without_a_leader(rng: random.Random, *, replicas: int) -> float:
    """From the kill of the leader, which releases nothing, until another leads. Requests take up to 40 ms."""
    server, loop = FakeLeases(), asyncio.get_running_loop()
    electors: list[LeaderElector] = []
    clients: list[FakeLeaseClient] = []
    tasks = []
    for number in range(replicas):
        clients.append(
            FakeLeaseClient(
                server, before=lambda: rng.random() / 50, after=lambda: rng.random() / 50
            )
        )
        electors.append(
            LeaderElector(clients[-1], lease=KEY, identity=f"{number}", timings=TIMINGS, rng=rng)
        )
        tasks.append(loop.create_task(electors[-1].run()))
        await asyncio.sleep(rng.random() * 3)
    await asyncio.sleep(20 + rng.random())
    (leader,) = [number for number, elector in enumerate(electors) if elector.is_leading]
    clients[leader].failure = lambda: ServerError("killed", code=500)
    others, killed = [one for one in electors if one is not electors[leader]], loop.time()
    while not any(elector.is_leading for elector in others):
        await asyncio.sleep(0.01)
        assert loop.time() - killed < 60
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return loop.time() - killed


@pytest.mark.timeout(600)  # 80 s while other suites run beside it
@given(seed=st.integers(0, 2**32), faulty=st.sampled_from([0.0, 0.2, 0.6]))
@settings(max_examples=settings().max_examples // 4, deadline=None)
def test_at_most_one_candidate_leads_and_one_finally_does(seed: int, faulty: float) -> None:
    loop = VirtualLoop()
    loop.setup_looptime(noop_cycles=0)
    try:
        loop.run_until_complete(compete(random.Random(seed), faulty=faulty))
    finally:
        loop.close()


@given(seed=st.integers(0, 2**32), replicas=st.integers(2, 5))
@settings(deadline=None)
def test_a_killed_leader_is_followed_soon(seed: int, replicas: int) -> None:
    loop = VirtualLoop()
    loop.setup_looptime(noop_cycles=0)
    try:
        taken = loop.run_until_complete(
            seconds_without_a_leader(random.Random(seed), replicas=replicas)
        )
    finally:
        loop.close()
    assert TIMINGS.lease_duration - TIMINGS.retry_period - 0.1 < taken < FOLLOWED_WITHIN
