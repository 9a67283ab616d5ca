"""LeaderElector in virtual time: who leads, until when, and what the Lease says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from autowasm.kube.errors import ServerError
from autowasm.kube.leaderelection import LeaderElector, LeaseTimings
from autowasm.kube.leadership import FAILED_RETRY, AlwaysLeading, NotLeading, while_leading
from autowasm.kube.resources import ObjectKey
from tests.fakes.leases import FakeLeaseClient, FakeLeases

pytestmark = pytest.mark.looptime

FOREVER = 1e9
KEY = ObjectKey("istio-system", "wasmer")


@dataclass
class Candidate:
    elector: LeaderElector
    client: FakeLeaseClient
    told: list[bool]
    task: asyncio.Task[None]

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@dataclass
class Arena:
    """Candidates for one Lease."""

    server: FakeLeases = field(default_factory=FakeLeases)
    candidates: list[Candidate] = field(default_factory=list)

    def join(self, name: str, timings: LeaseTimings | None = None) -> Candidate:
        client = FakeLeaseClient(self.server)
        told: list[bool] = []
        elector = LeaderElector(
            client,
            lease=KEY,
            identity=name,
            timings=timings or LeaseTimings(),
            on_change=told.append,
        )
        task = asyncio.get_running_loop().create_task(elector.run(), name=name)
        candidate = Candidate(elector, client, told, task)
        self.candidates.append(candidate)
        return candidate


@pytest.fixture
async def arena() -> AsyncIterator[Arena]:
    arena = Arena()
    yield arena
    for candidate in arena.candidates:
        await candidate.stop()


@asynccontextmanager
async def led(candidate: Candidate) -> AsyncIterator[None]:
    async with asyncio.timeout(60):
        await candidate.elector.acquired()
    yield


async def test_candidate_knows_until_when_another_led(arena: Arena) -> None:
    loop = asyncio.get_running_loop()
    one = arena.join("one")
    async with led(one):
        assert one.elector.others_led == float("-inf")
        two = arena.join("two")
        await asyncio.sleep(60)
        until = loop.time()
        one.client.failure = lambda: ServerError("down", code=500)
        async with led(two):
            await asyncio.sleep(60)
            assert until - 5 < two.elector.others_led < until + 5


async def test_first_candidate_creates_the_lease_and_leads(arena: Arena) -> None:
    one = arena.join("one")
    async with led(one):
        assert arena.server.spec["holderIdentity"] == "one"
        assert arena.server.spec["leaseDurationSeconds"] == 15
        assert arena.server.spec["leaseTransitions"] == 0
        assert arena.server.spec["acquireTime"] == arena.server.spec["renewTime"]
        assert one.told == [True]


async def test_leader_renews_without_reading_and_keeps_acquire_time(arena: Arena) -> None:
    one = arena.join("one")
    async with led(one):
        first = dict(arena.server.spec)
        await asyncio.sleep(60)
        assert one.elector.is_leading
        assert one.client.calls.count("get") == 1
        assert arena.server.spec["acquireTime"] == first["acquireTime"]
        assert arena.server.spec["renewTime"] > first["renewTime"]
        assert one.told == [True]


async def test_second_waits_as_long_as_the_first_renews(arena: Arena) -> None:
    one = arena.join("one")
    async with led(one):
        two = arena.join("two")
        await asyncio.sleep(300)
        assert (one.told, two.told) == ([True], [])
        assert two.elector.leader == "one"
        with pytest.raises(NotLeading):
            async with two.elector.scope():
                pytest.fail("entered")


async def test_another_leads_after_the_lease_duration_of_a_silent_leader(arena: Arena) -> None:
    one, loop = arena.join("one"), asyncio.get_running_loop()
    async with led(one):
        two = arena.join("two")
        await asyncio.sleep(20)
        one.client.failure = lambda: ServerError("down", code=500)
        cut = loop.time()
        async with led(two):
            assert 13 <= loop.time() - cut <= 15 + 4 * 2.2  # seen late, and given up late
            assert not one.elector.is_leading
            assert arena.server.spec["leaseTransitions"] == 1
            assert one.told == [True, False]


async def test_leader_stops_leading_at_the_renew_deadline_of_its_last_success(
    arena: Arena,
) -> None:
    one, loop = arena.join("one"), asyncio.get_running_loop()
    async with led(one):
        await asyncio.sleep(1)
        one.client.failure = lambda: ServerError("down", code=500)
        with pytest.raises(NotLeading):
            async with one.elector.scope():
                await asyncio.sleep(FOREVER)
        assert loop.time() == pytest.approx(10, abs=0.01)


async def test_answer_that_hangs_counts_from_when_it_was_asked_for(arena: Arena) -> None:
    one, loop = arena.join("one"), asyncio.get_running_loop()
    async with led(one):
        one.client.after = lambda: 4.0
        await asyncio.sleep(13)  # asked for at 2, 6 and 10 s, the last answered at 14 s
        one.client.after = lambda: FOREVER
        with pytest.raises(NotLeading):
            async with one.elector.scope():
                await asyncio.sleep(FOREVER)
        assert loop.time() == pytest.approx(20, abs=0.01)


async def test_scope_lives_on_while_the_lease_is_renewed(arena: Arena) -> None:
    one = arena.join("one")
    async with led(one), one.elector.scope():
        await asyncio.sleep(100)


async def test_timeout_of_the_body_stays_a_timeout(arena: Arena) -> None:
    one = arena.join("one")
    async with led(one):
        with pytest.raises(TimeoutError):
            async with one.elector.scope(), asyncio.timeout(1):
                await asyncio.sleep(FOREVER)
        assert one.elector.is_leading


async def test_release_lets_another_lead_at_once_but_after_our_work(arena: Arena) -> None:
    one, loop = arena.join("one"), asyncio.get_running_loop()
    ended = asyncio.Event()

    async def work() -> None:
        try:
            async with one.elector.scope():
                await asyncio.sleep(FOREVER)
        except NotLeading:
            assert arena.server.spec["holderIdentity"] == "one"
            ended.set()

    async with led(one):
        worker = loop.create_task(work())
        two = arena.join("two")
        await asyncio.sleep(20)
        stopped = loop.time()
        await one.stop()
        assert ended.is_set()
        assert arena.server.spec["holderIdentity"] == ""
        assert arena.server.spec["leaseDurationSeconds"] == 1
        async with led(two):
            assert loop.time() - stopped <= 2 * 2.2
            assert arena.server.spec["leaseTransitions"] == 1
        await worker


async def test_stop_during_a_renewal_that_was_stored_releases_nevertheless(arena: Arena) -> None:
    one = arena.join("one")
    async with led(one):
        one.client.after = lambda: 3.0
        await asyncio.sleep(2.5)  # stored at 2 s, not answered yet
        one.client.after = lambda: 0.0
        await one.stop()
        assert arena.server.spec["holderIdentity"] == ""


async def test_follower_that_stops_leaves_the_lease_alone(arena: Arena) -> None:
    one = arena.join("one")
    async with led(one):
        two = arena.join("two")
        await asyncio.sleep(5)
        await two.stop()
        assert "update" not in two.client.calls
        assert arena.server.spec["holderIdentity"] == "one"


async def test_lease_deleted_under_the_leader_is_made_again(arena: Arena) -> None:
    one = arena.join("one")
    async with led(one):
        two = arena.join("two")
        await asyncio.sleep(10.5)
        arena.server.stored = None
        await asyncio.sleep(30)
        assert arena.server.spec["holderIdentity"] == "one"
        assert (one.told, two.told) == ([True], [])


async def test_lease_taken_by_force_ends_leading_at_the_next_renewal(arena: Arena) -> None:
    one = arena.join("one")
    async with led(one):
        await asyncio.sleep(5)
        taken = {**arena.server.spec, "holderIdentity": "person", "renewTime": "x"}
        arena.server.update(taken, arena.server.get())
        await asyncio.sleep(2.1)
        assert one.told == [True, False]
        assert arena.server.spec["holderIdentity"] == "person"


async def test_frozen_process_knows_at_once_that_it_leads_no_more(arena: Arena) -> None:
    one, loop = arena.join("one"), asyncio.get_running_loop()
    async with led(one):
        clock = loop.time
        offset = 0.0
        loop.time = lambda: clock() + offset  # type: ignore[method-assign]
        offset = 20.0
        try:
            assert not one.elector.is_leading
            with pytest.raises(NotLeading):
                async with one.elector.scope():
                    pytest.fail("entered")
        finally:
            loop.time = clock  # type: ignore[method-assign]


async def test_work_is_done_whenever_leading(arena: Arena) -> None:
    one, loop = arena.join("one"), asyncio.get_running_loop()
    begun: list[float] = []
    cancelled: list[float] = []

    async def work() -> None:
        begun.append(loop.time())
        try:
            await asyncio.sleep(FOREVER)
        finally:
            cancelled.append(loop.time())

    worker = loop.create_task(while_leading(one.elector, work))
    await asyncio.sleep(5)
    one.client.failure = lambda: ServerError("down", code=500)
    await asyncio.sleep(30)
    assert (len(begun), len(cancelled)) == (1, 1)
    one.client.failure = lambda: None
    await asyncio.sleep(10)
    assert (len(begun), len(cancelled)) == (2, 1)
    worker.cancel()
    await asyncio.wait([worker])


async def test_work_that_fails_unexpectedly_is_begun_anew() -> None:
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        raise KeyError("a bug")

    worker = asyncio.create_task(while_leading(AlwaysLeading(), work))
    await asyncio.sleep(FAILED_RETRY * 2.5)
    assert begun == 3
    worker.cancel()
    await asyncio.wait([worker])


async def test_alone_is_always_leading() -> None:
    alone = AlwaysLeading()
    await alone.acquired()
    async with alone.scope():
        assert alone.is_leading


@pytest.mark.parametrize(
    "timings",
    [
        {"lease_duration": 10, "renew_deadline": 10.0},
        {"renew_deadline": 2.0},
        {"lease_duration": 0},
        {"retry_period": 0.0},
    ],
)
def test_timings_that_allow_two_leaders_are_refused(timings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="longer than"):
        LeaseTimings(**timings)  # type: ignore[arg-type]
