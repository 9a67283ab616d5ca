"""LeaderElector in virtual time: the leader, the end of its tenure, and the content of the Lease."""

import asyncio
import dataclasses
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from autowasm.kube import leaderelection
from autowasm.kube.errors import AlreadyExists, ApiError, Conflict, ServerError
from autowasm.kube.leaderelection import (
    AlwaysLeading,
    LeaderElector,
    LeaseTimings,
    NotLeading,
    Tenure,
    while_leading,
)
from autowasm.kube.resources import ObjectKey
from tests.fakes.leases import FakeLeaseClient, FakeLeases

pytestmark = pytest.mark.looptime

FOREVER = 1e9
CLIENT_GO = LeaseTimings(lease_duration=15, renew_deadline=10.0, retry_period=2.0)
"""client-go's defaults."""
KEY = ObjectKey("istio-system", "wasmer")


class Luck(random.Random):
    """Always the same number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def random(self) -> float:
        return self.number


@dataclass
class Candidate:
    elector: LeaderElector
    client: FakeLeaseClient
    changes: list[bool]
    task: asyncio.Task[None]

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@dataclass
class Election:
    """Candidates for one Lease."""

    server: FakeLeases = field(default_factory=FakeLeases)
    candidates: list[Candidate] = field(default_factory=list)

    def join(
        self,
        name: str,
        timings: LeaseTimings | None = None,
        *,
        luck: float | None = None,
    ) -> Candidate:
        """`luck`: the value of the random numbers that spread its calls."""
        client = FakeLeaseClient(self.server)
        changes: list[bool] = []
        elector = LeaderElector(
            client,
            lease=KEY,
            identity=name,
            timings=timings or CLIENT_GO,
            on_change=changes.append,
            rng=None if luck is None else Luck(luck),
        )
        task = asyncio.get_running_loop().create_task(elector.run(), name=name)
        candidate = Candidate(elector, client, changes, task)
        self.candidates.append(candidate)
        return candidate


@pytest.fixture
async def election() -> AsyncIterator[Election]:
    election = Election()
    yield election
    for candidate in election.candidates:
        await candidate.stop()


@asynccontextmanager
async def led(candidate: Candidate) -> AsyncIterator[None]:
    async with asyncio.timeout(60):
        await candidate.elector.acquired()
    yield


async def test_candidate_knows_until_when_another_led(election: Election) -> None:
    loop = asyncio.get_running_loop()
    one = election.join("one")
    async with led(one):
        assert one.elector.others_led == float("-inf")
        two = election.join("two")
        await asyncio.sleep(60)
        until = loop.time()
        one.client.failure = lambda: ServerError("down", code=500)
        async with led(two):
            await asyncio.sleep(60)
            assert until - 5 < two.elector.others_led < until + 5


async def test_first_candidate_creates_the_lease_and_leads(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        assert election.server.spec["holderIdentity"] == "one"
        assert election.server.spec["leaseDurationSeconds"] == 15
        assert election.server.spec["leaseTransitions"] == 0
        assert election.server.spec["acquireTime"] == election.server.spec["renewTime"]
        assert one.changes == [True]


async def test_leader_renews_without_reading_and_keeps_acquire_time(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        first = dict(election.server.spec)
        await asyncio.sleep(60)
        assert one.elector.is_leading
        assert one.client.calls.count("get") == 1
        assert election.server.spec["acquireTime"] == first["acquireTime"]
        assert election.server.spec["renewTime"] > first["renewTime"]
        assert one.changes == [True]


async def test_second_waits_as_long_as_the_first_renews(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        two = election.join("two")
        await asyncio.sleep(300)
        assert (one.changes, two.changes) == ([True], [])
        assert two.elector.leader == "one"
        with pytest.raises(NotLeading):
            async with two.elector.scope():
                pytest.fail("entered")


async def test_another_leads_after_the_lease_duration_of_a_silent_leader(
    election: Election,
) -> None:
    one, loop = election.join("one"), asyncio.get_running_loop()
    async with led(one):
        two = election.join("two")
        await asyncio.sleep(20)
        one.client.failure = lambda: ServerError("down", code=500)
        cut = loop.time()
        async with led(two):
            assert (
                13 <= loop.time() - cut <= 15 + 2 * 1.2 + 2 * 0.2
            )  # seen late, and asked again late
            assert not one.elector.is_leading
            assert election.server.spec["leaseTransitions"] == 1
            assert one.changes == [True, False]


async def test_leader_stops_leading_at_the_renew_deadline_of_its_last_success(
    election: Election,
) -> None:
    one, loop = election.join("one"), asyncio.get_running_loop()
    async with led(one):
        await asyncio.sleep(1)
        one.client.failure = lambda: ServerError("down", code=500)
        with pytest.raises(NotLeading):
            async with one.elector.scope():
                await asyncio.sleep(FOREVER)
        assert loop.time() == pytest.approx(10, abs=0.01)


async def test_late_answer_to_a_renewal_counts_from_its_request(election: Election) -> None:
    one, loop = election.join("one"), asyncio.get_running_loop()
    async with led(one):
        one.client.after = lambda: 4.0
        await asyncio.sleep(13)  # requested at 2, 6 and 10 s, the last answered at 14 s
        one.client.after = lambda: FOREVER
        with pytest.raises(NotLeading):
            async with one.elector.scope():
                await asyncio.sleep(FOREVER)
        assert loop.time() == pytest.approx(20, abs=0.01)


async def test_scope_lives_on_while_the_lease_is_renewed(election: Election) -> None:
    one = election.join("one")
    async with led(one), one.elector.scope():
        await asyncio.sleep(100)


async def test_timeout_of_the_body_stays_a_timeout(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        with pytest.raises(TimeoutError):
            async with one.elector.scope(), asyncio.timeout(1):
                await asyncio.sleep(FOREVER)
        assert one.elector.is_leading


async def test_release_lets_another_lead_at_once_but_after_our_work(election: Election) -> None:
    one, loop = election.join("one"), asyncio.get_running_loop()
    ended = asyncio.Event()

    async def work() -> None:
        try:
            async with one.elector.scope():
                await asyncio.sleep(FOREVER)
        except NotLeading:
            assert election.server.spec["holderIdentity"] == "one"
            ended.set()

    async with led(one):
        worker = loop.create_task(work())
        two = election.join("two")
        await asyncio.sleep(20)
        stopped = loop.time()
        await one.stop()
        assert ended.is_set()
        assert election.server.spec["holderIdentity"] == ""
        assert election.server.spec["leaseDurationSeconds"] == 1
        async with led(two):
            assert loop.time() - stopped <= 2 * 1.2
            assert election.server.spec["leaseTransitions"] == 1
        await worker


async def test_stop_during_a_renewal_that_was_stored_releases_nevertheless(
    election: Election,
) -> None:
    one = election.join("one")
    async with led(one):
        one.client.after = lambda: 3.0
        await asyncio.sleep(2.5)  # stored at 2 s, not answered yet
        one.client.after = lambda: 0.0
        await one.stop()
        assert election.server.spec["holderIdentity"] == ""


async def test_stopped_follower_does_not_change_the_lease(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        two = election.join("two")
        await asyncio.sleep(5)
        await two.stop()
        assert "update" not in two.client.calls
        assert election.server.spec["holderIdentity"] == "one"


async def test_lease_deleted_under_the_leader_is_made_again(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        two = election.join("two")
        await asyncio.sleep(10.5)
        election.server.stored = None
        await asyncio.sleep(30)
        assert election.server.spec["holderIdentity"] == "one"
        assert (one.changes, two.changes) == ([True], [])


async def test_lease_taken_by_force_ends_leading_at_the_next_renewal(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        await asyncio.sleep(5)
        taken = {**election.server.spec, "holderIdentity": "person", "renewTime": "x"}
        election.server.update(taken, election.server.get())
        await asyncio.sleep(2.1)
        assert one.changes == [True, False]
        assert election.server.spec["holderIdentity"] == "person"


async def test_frozen_process_knows_at_once_that_it_leads_no_more(election: Election) -> None:
    one, loop = election.join("one"), asyncio.get_running_loop()
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


async def test_work_is_done_whenever_leading(election: Election) -> None:
    one, loop = election.join("one"), asyncio.get_running_loop()
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

    with structlog.testing.capture_logs() as logs:
        worker = asyncio.create_task(while_leading(AlwaysLeading(), work))
        await asyncio.sleep(12.5)
    assert begun == 3
    assert [(log["event"], log["log_level"], log["retry_in"]) for log in logs] == [
        ("leader work failed unexpectedly", "error", 5.0)
    ] * 3
    worker.cancel()
    await asyncio.wait([worker])


async def test_alone_is_always_leading() -> None:
    alone = AlwaysLeading()
    await alone.acquired()
    async with alone.scope():
        assert alone.is_leading


async def test_alone_leads_until_its_run_is_cancelled() -> None:
    alone, loop = AlwaysLeading(), asyncio.get_running_loop()
    begun: list[float] = []
    cancelled: list[float] = []

    async def work() -> None:
        begun.append(loop.time())
        try:
            await asyncio.sleep(FOREVER)
        finally:
            cancelled.append(loop.time())

    worker = loop.create_task(while_leading(alone, work))
    running = loop.create_task(alone.run())
    await asyncio.sleep(1e6)
    assert (len(begun), len(cancelled)) == (1, 0)
    running.cancel()
    await asyncio.sleep(1)
    assert not alone.is_leading
    assert (len(begun), len(cancelled)) == (1, 1)
    with pytest.raises(NotLeading):
        async with alone.scope():
            pytest.fail("entered")
    worker.cancel()
    await asyncio.wait([worker])


@pytest.mark.parametrize(
    ("timings", "message"),
    [
        ({"lease_duration": 10, "renew_deadline": 10.0}, "the lease duration must be longer"),
        ({"lease_duration": 0}, "the lease duration must be longer"),
        ({"lease_duration": 0, "renew_deadline": -1.0}, "must be longer than 1.2 retry periods"),
        ({"renew_deadline": 2.0}, "the renew deadline must be longer than 1.2 retry periods"),
        ({"retry_period": 5.0, "renew_deadline": 6.0}, "longer than 1.2 retry periods"),
        ({"retry_period": 0.0}, "longer than 1.2 retry periods"),
        ({"retry_period": -1.0}, "longer than 1.2 retry periods"),
    ],
)
def test_timings_that_allow_two_leaders_are_refused(
    timings: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CLIENT_GO, **timings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "timings",
    [
        {"lease_duration": 1, "renew_deadline": 0.9, "retry_period": 0.1},
        {"retry_period": 5.0},
        {"retry_period": 5.0, "renew_deadline": 6.1},
        {"lease_duration": 11},
    ],
)
def test_timings_that_leave_time_are_accepted(timings: dict[str, float]) -> None:
    dataclasses.replace(CLIENT_GO, **timings)  # type: ignore[arg-type]


def test_timings_are_those_of_client_go() -> None:
    timings = CLIENT_GO
    assert (timings.lease_duration, timings.renew_deadline, timings.retry_period) == (15, 10.0, 2.0)


@pytest.mark.parametrize("luck", [0.0, 0.5, 0.999])
async def test_followers_read_the_lease_at_jittered_intervals(
    election: Election, luck: float
) -> None:
    async with led(election.join("one")):
        two, loop = election.join("two", luck=luck), asyncio.get_running_loop()
        requests: list[float] = []

        def note() -> float:
            requests.append(loop.time())
            return 0.0

        two.client.before = note
        await asyncio.sleep(30)
        gaps = [after - before for before, after in itertools.pairwise(requests)]
        assert gaps == pytest.approx([2 * (1 + 0.2 * luck)] * len(gaps), abs=0.001)
        assert len(gaps) >= 6


async def test_one_answer_that_hangs_leaves_time_for_another_try(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        hangs = iter([FOREVER])
        one.client.after = lambda: next(hangs, 0.0)
        await asyncio.sleep(60)
        assert one.changes == [True]


def held(holder: str | None, **fields: Any) -> dict[str, Any]:
    """A Lease as another left it."""
    return {"holderIdentity": holder, "leaseDurationSeconds": 4, "leaseTransitions": 3, **fields}


async def leads_after(election: Election, spec: dict[str, Any], *, luck: float = 0.0) -> float:
    """Seconds until a candidate that tries every 2 seconds leads, with this Lease."""
    election.server.create(spec)
    one, loop = election.join("one", luck=luck), asyncio.get_running_loop()
    begun = loop.time()
    async with led(one):
        return round(loop.time() - begun, 3)


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [(1, 1), (2, 2), (4, 4), (5, 5), (20, 20), (0, 15), (-1, 15), (None, 15), ("4", 15)],
)
async def test_candidate_waits_for_the_lease_duration_of_a_silent_holder(
    election: Election, duration: object, seconds: float
) -> None:
    assert await leads_after(election, held("gone", leaseDurationSeconds=duration)) == seconds
    assert election.server.spec["leaseTransitions"] == 4


@pytest.mark.parametrize(
    ("duration", "seconds"), [(1, 1.2), (2, 2.2), (3, 3.2), (4, 4.2), (9, 9.2)]
)
async def test_candidates_ask_for_an_expired_lease_within_a_fifth_of_a_period(
    election: Election, duration: int, seconds: float
) -> None:
    """The period is 2 s, and half of a fifth of it is added to each wait."""
    spec = held("gone", leaseDurationSeconds=duration)
    assert await leads_after(election, spec, luck=0.5) == seconds


@pytest.mark.parametrize("holder", ["", None, "one"])
async def test_lease_that_is_free_or_our_own_is_taken_at_once(
    election: Election, holder: str | None
) -> None:
    assert await leads_after(election, held(holder)) == 0
    assert election.candidates[0].elector.others_led == float("-inf")


async def test_acquiring_the_lease_keeps_foreign_fields(election: Election) -> None:
    await leads_after(election, held("", strategy="OldestEmulationVersion", acquireTime="then"))
    assert election.server.spec["strategy"] == "OldestEmulationVersion"
    assert election.server.spec["leaseDurationSeconds"] == 15
    assert election.server.spec["acquireTime"] == election.server.spec["renewTime"] != "then"
    assert election.server.spec["leaseTransitions"] == 4


@pytest.mark.parametrize(("acquired", "kept"), [("then", True), (None, False), ("", False)])
async def test_leader_that_restarts_keeps_its_acquire_time_and_counts_no_transition(
    election: Election, acquired: str | None, kept: bool
) -> None:
    await leads_after(election, held("one", acquireTime=acquired))
    assert election.server.spec["leaseTransitions"] == 3
    expected = "then" if kept else election.server.spec["renewTime"]
    assert election.server.spec["acquireTime"] == expected


@pytest.mark.parametrize(("transitions", "after"), [(0, 1), (7, 8), (None, 1), ("7", 1)])
async def test_transitions_continue_from_the_count_in_the_lease(
    election: Election, transitions: object, after: int
) -> None:
    await leads_after(election, held("gone", leaseTransitions=transitions))
    assert election.server.spec["leaseTransitions"] == after


async def test_times_are_in_the_form_that_the_api_server_takes(election: Election) -> None:
    before = datetime.now(UTC)
    async with led(election.join("one")):
        text = election.server.spec["renewTime"]
    assert before <= datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z") <= datetime.now(UTC)
    assert text.endswith("Z")


async def test_renewals_within_one_tick_of_the_wall_clock_are_stored(
    election: Election, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = datetime(2027, 1, 15, 8, tzinfo=UTC)

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return moment

    monkeypatch.setattr(leaderelection, "datetime", Stopped)
    one = election.join("one")
    async with led(one):
        # Two times alternate: it must not always come at the same one.
        two = election.join("two", luck=0.4)
        await asyncio.sleep(60)
        assert (one.changes, two.changes) == ([True], [])
    times = [spec["renewTime"] for _, spec in election.server.history]
    form = "%Y-%m-%dT%H:%M:%S.%fZ"
    assert times[:2] == [
        moment.strftime(form),
        (moment + timedelta(microseconds=1)).strftime(form),
    ]
    assert all(before != after for before, after in itertools.pairwise(times))


async def test_leader_is_known_once_the_lease_was_read(election: Election) -> None:
    one, two = election.join("one"), election.join("two")
    assert (one.elector.leader, two.elector.leader) == ("", "")
    async with led(one):
        await asyncio.sleep(5)
        assert (one.elector.leader, two.elector.leader) == ("one", "one")


async def test_free_lease_is_no_sign_of_another_leader(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        two, loop = election.join("two"), asyncio.get_running_loop()
        await asyncio.sleep(20)
        stopped = loop.time()
        await one.stop()
        async with led(two):
            await asyncio.sleep(30)
            assert stopped - 5 < two.elector.others_led <= stopped


async def test_deleted_lease_is_made_again_as_it_was(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        before = election.server.spec
        election.server.stored = None
        await asyncio.sleep(5)
        for name in ("holderIdentity", "acquireTime", "leaseTransitions", "leaseDurationSeconds"):
            assert election.server.spec[name] == before[name]
        assert one.changes == [True]


async def test_deleted_lease_of_another_holder_binds_until_its_expiry(
    election: Election,
) -> None:
    election.server.create(held("gone"))
    one, loop = election.join("one", luck=0.0), asyncio.get_running_loop()
    await asyncio.sleep(1)
    election.server.stored = None
    async with led(one):
        assert loop.time() == pytest.approx(4, abs=0.01)
        assert election.server.spec["leaseTransitions"] == 4


def failing(candidate: Candidate, errors: dict[str, list[ApiError]]) -> list[str]:
    """The next calls of each verb fail with these; returns the verbs of all calls from now on."""
    candidate.client.calls.clear()

    def failure() -> ApiError | None:
        queue = errors.get(candidate.client.calls[-1], [])
        return queue.pop(0) if queue else None

    candidate.client.failure = failure
    return candidate.client.calls


async def test_lease_that_changed_under_the_leader_is_read_again(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        calls = failing(one, {"update": [Conflict("changed", code=409)]})
        await asyncio.sleep(5)
        assert calls == ["update", "get", "update", "update"]
        assert one.changes == [True]


@pytest.mark.parametrize("error", [Conflict("changed", code=409), ServerError("down", code=500)])
async def test_lease_is_read_first_once_it_is_known_to_have_changed(
    election: Election, error: ApiError
) -> None:
    one = election.join("one")
    async with led(one):
        changed = Conflict("changed", code=409)
        calls = failing(one, {"update": [changed, error]})
        with structlog.testing.capture_logs() as logs:
            await asyncio.sleep(5)
        read_again = ["get", "update"] if isinstance(error, Conflict) else ["update"]
        assert calls == ["update", "get", "update", *read_again]
        (log,) = logs
        if isinstance(error, Conflict):
            assert (log["event"], log["log_level"]) == ("lease changed by another client", "debug")
        else:
            assert (log["event"], log["log_level"]) == ("lease request failed", "warning")
            assert log["leading"] is True
        assert (log["error"], log["identity"]) == (str(error), "one")


async def test_lease_that_could_not_be_made_again_is_read_first(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        election.server.stored = None
        calls = failing(one, {"create": [ServerError("down", code=500)]})
        await asyncio.sleep(5)
        assert calls == ["update", "get", "create", "get", "create"]


async def test_follower_that_comes_second_waits(election: Election) -> None:
    two = election.join("two", luck=0.0)
    calls = failing(two, {"create": [AlreadyExists("there is one", code=409)]})
    with structlog.testing.capture_logs() as logs:
        await asyncio.sleep(1)
    assert calls == ["get", "create"]
    assert [(log["event"], log["log_level"]) for log in logs] == [
        ("lease changed by another client", "debug")
    ]
    assert not two.elector.is_leading
    async with led(two):
        assert calls == ["get", "create", "get", "create"]


async def test_candidate_that_stops_before_its_first_answer_has_nothing_to_release(
    election: Election,
) -> None:
    assert Tenure(lambda _: None).until == float("-inf")
    one = election.join("one")
    await asyncio.sleep(0)
    one.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one.task
    assert one.changes == []


async def test_leading_is_not_extended_to_a_time_that_is_over() -> None:
    changes: list[bool] = []
    tenure, now = Tenure(changes.append), asyncio.get_running_loop().time()
    assert not tenure.extend(now - 1)
    assert not tenure.extend(now)
    assert changes == []
    assert tenure.extend(now + 1)
    assert changes == [True]


async def test_beginning_and_end_of_leading_are_logged_with_the_holder(election: Election) -> None:
    with structlog.testing.capture_logs() as logs:
        one = election.join("one")
        async with led(one):
            election.server.update(held("person"), election.server.get())
            await asyncio.sleep(3)
    about = {"lease": "istio-system/wasmer", "identity": "one"}
    assert logs == [
        {"event": "leading", "log_level": "info", **about},
        {
            "event": "no longer leading",
            "log_level": "warning",
            "reason": "another replica holds the lease",
            "holder": "person",
            **about,
        },
    ]


async def test_leader_that_renewed_too_late_says_so(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        one.client.after = lambda: FOREVER
        with structlog.testing.capture_logs() as logs:
            await asyncio.sleep(15)
    assert ("no longer leading", "not renewed in time") in [
        (log["event"], log.get("reason")) for log in logs
    ]


async def test_late_answer_to_the_first_acquisition_counts_from_its_request(
    election: Election,
) -> None:
    one, loop = election.join("one"), asyncio.get_running_loop()
    one.client.after = lambda: 4.5
    async with led(one):
        assert loop.time() == pytest.approx(4.5, abs=0.01)
        one.client.failure = lambda: ServerError("down", code=500)
        with pytest.raises(NotLeading):
            async with one.elector.scope():
                await asyncio.sleep(FOREVER)
        assert loop.time() == pytest.approx(10, abs=0.01)


async def test_release_that_another_changed_is_tried_twice(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        changed = Conflict("changed", code=409)
        calls = failing(one, {"update": [changed, changed, changed]})
        with structlog.testing.capture_logs() as logs:
            await one.stop()
        assert calls == ["update", "get", "update"]
        assert [(log["event"], log["log_level"]) for log in logs] == [
            ("lease not released", "warning")
        ]
        assert logs[0]["error"] == "Conflict: changed"
        assert election.server.spec["holderIdentity"] == "one"


async def test_release_after_a_conflict_keeps_the_changes_of_the_lease(election: Election) -> None:
    one = election.join("one")
    async with led(one):
        election.server.update({**election.server.spec, "strategy": "x"}, election.server.get())
        renewed = election.server.spec["renewTime"]
        one.client.calls.clear()
        with structlog.testing.capture_logs() as logs:
            await one.stop()
        assert one.client.calls == ["update", "get", "update"]
        assert [(log["event"], log["log_level"]) for log in logs] == [("lease released", "info")]
        spec = election.server.spec
        assert (spec["holderIdentity"], spec["leaseDurationSeconds"]) == ("", 1)
        assert spec["strategy"] == "x"
        assert spec["renewTime"] > renewed
        assert one.changes == [True, False]


@pytest.mark.parametrize("is_deleted", [True, False])
async def test_lease_that_is_gone_or_another_s_is_not_released(
    election: Election, is_deleted: bool
) -> None:
    one = election.join("one")
    async with led(one):
        # Known to have changed: the release reads first.
        failing(
            one, {"update": [Conflict("changed", code=409)], "get": [ServerError("x", code=500)]}
        )
        await asyncio.sleep(2.5)
        if is_deleted:
            election.server.stored = None
        else:
            election.server.update(held("person"), election.server.get())
        calls = failing(one, {})
        await one.stop()
        assert calls == ["get"]
        if is_deleted:
            assert election.server.stored is None
        else:
            assert election.server.spec == held("person")


async def test_follower_releases_nothing_and_says_nothing(election: Election) -> None:
    async with led(election.join("one")):
        two = election.join("two")
        await asyncio.sleep(5)
        calls = failing(two, {})
        with structlog.testing.capture_logs() as logs:
            await two.stop()
        assert (calls, logs) == ([], [])


async def test_work_that_does_not_end_is_waited_for_until_the_deadline_only(
    election: Election,
) -> None:
    one, loop = election.join("one"), asyncio.get_running_loop()

    async def stubborn() -> None:
        async with one.elector.scope():
            try:
                await asyncio.sleep(FOREVER)
            except asyncio.CancelledError:
                await asyncio.sleep(100)

    async with led(one):
        await asyncio.sleep(5)  # renewed at 4 s
        worker = loop.create_task(stubborn())
        await asyncio.sleep(0)
        with structlog.testing.capture_logs() as logs:
            await one.stop()
        assert loop.time() == pytest.approx(14, abs=0.01)
        assert election.server.spec["holderIdentity"] == "one"
        assert [log["event"] for log in logs] == ["lease not released"]
        assert logs[0]["error"].startswith("TimeoutError")
        await asyncio.wait([worker])


async def test_work_that_returns_is_not_begun_again_while_leading() -> None:
    begun: list[int] = []

    async def work() -> None:
        begun.append(1)

    worker = asyncio.create_task(while_leading(AlwaysLeading(), work))
    await asyncio.sleep(100)
    assert begun == [1]
    worker.cancel()
    await asyncio.wait([worker])


async def test_end_of_leading_is_no_failure_of_the_work(election: Election) -> None:
    one = election.join("one")
    begun: list[float] = []
    loop = asyncio.get_running_loop()

    async def work() -> None:
        begun.append(loop.time())
        await asyncio.sleep(FOREVER)

    worker = loop.create_task(while_leading(one.elector, work))
    await asyncio.sleep(1)
    one.client.failure = lambda: ServerError("down", code=500)
    with structlog.testing.capture_logs() as logs:
        await asyncio.sleep(10)
        one.client.failure = lambda: None
        async with led(one):
            await asyncio.sleep(0.1)
            assert len(begun) == 2, "at once: nothing failed"
    assert "leader work failed unexpectedly" not in [log["event"] for log in logs]
    worker.cancel()
    await asyncio.wait([worker])
