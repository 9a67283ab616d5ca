import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from autowasm.artifacts.fetchlimiter import CircuitBreakers, FetchLimiter
from autowasm.artifacts.source import SourceKey
from autowasm.errors import ContentRejected, SourceDenied, SourceNotFound, SourceUnavailable
from autowasm.limits import FetchLimits
from autowasm.telemetry.metrics import Metrics
from tests.fakes.clocks import FakeClock


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Holder:
    """Fetches that hold their slot until they are let go."""

    def __init__(self, fetch_limiter: FetchLimiter) -> None:
        self._fetch_limiter = fetch_limiter
        self.holding: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def request(self, name: str, namespace: str, host: str) -> None:
        self.tasks[name] = asyncio.create_task(self._hold(name, namespace, host))

    async def _hold(self, name: str, namespace: str, host: str) -> None:
        async with self._fetch_limiter.slot(namespace, host):
            self.holding.append(name)
            try:
                await asyncio.Event().wait()
            finally:
                self.holding.remove(name)

    async def let_go(self, name: str) -> None:
        self.tasks.pop(name).cancel()
        await settle()

    async def let_all_go(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


def limits(**changes: int) -> FetchLimits:
    return FetchLimits(**changes)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def holder(metrics: Metrics | None = None, **changes: int) -> AsyncIterator[Holder]:
    result = Holder(FetchLimiter(limits(**changes), metrics=metrics or Metrics()))
    try:
        yield result
    finally:
        await result.let_all_go()


async def test_a_hundred_hanging_fetches_of_one_namespace_delay_no_other() -> None:
    async with holder() as fetches:
        for number in range(100):
            fetches.request(f"bad {number}", "bad", f"host{number % 3}")
        await settle()
        fetches.request("good", "good", "host0")
        await settle()
        assert "good" in fetches.holding
        assert sum(name.startswith("bad") for name in fetches.holding) == 4


async def test_full_host_does_not_stop_the_same_namespaces_other_hosts() -> None:
    async with holder() as fetches:
        for number in range(10):
            fetches.request(f"slow {number}", "a", "slow")
        fetches.request("fast", "a", "fast")
        await settle()
        assert sorted(fetches.holding) == ["fast", "slow 0", "slow 1"]


async def test_first_come_first_served_for_one_namespace_and_host() -> None:
    async with holder(per_namespace_host=1) as fetches:
        for name in ["one", "two", "three"]:
            fetches.request(name, "a", "h")
        await settle()
        order = []
        while fetches.holding:
            (name,) = fetches.holding
            order.append(name)
            await fetches.let_go(name)
        assert order == ["one", "two", "three"]


async def test_next_place_goes_over_namespaces_in_turn() -> None:
    async with holder(per_host=1) as fetches:
        for name in ["a1", "a2", "a3", "b1", "c1"]:
            fetches.request(name, name[0], "h")
        await settle()
        order = []
        while fetches.holding:
            (name,) = fetches.holding
            order.append(name)
            await fetches.let_go(name)
        assert order == ["a1", "a2", "b1", "c1", "a3"]


async def test_waiter_that_is_cancelled_leaves_no_trace(metrics: Metrics) -> None:
    async with holder(metrics, per_host=1) as fetches:
        for name in ["one", "two", "three"]:
            fetches.request(name, name, "h")
        await settle()
        await fetches.let_go("two")
        await fetches.let_go("one")
        assert fetches.holding == ["three"]
        await fetches.let_go("three")
    value = metrics.registry.get_sample_value
    assert value("autowasm_fetches_running") == value("autowasm_fetches_waiting") == 0


async def test_place_granted_in_the_moment_of_cancellation_is_given_back() -> None:
    async with holder(per_host=1) as fetches:
        fetches.request("one", "a", "h")
        await settle()
        fetches.request("two", "b", "h")
        fetches.request("three", "c", "h")
        await settle()
        fetches.tasks.pop("one").cancel()
        await asyncio.sleep(0)  # the slot is given to `two`, which has not run since
        fetches.tasks.pop("two").cancel()
        await settle()
        assert fetches.holding == ["three"]


async def test_too_many_waiting_are_refused_for_now() -> None:
    async with holder(per_host=1, queued=1) as fetches:
        fetches.request("one", "a", "h")
        fetches.request("two", "a", "h")
        await settle()
        fetches.request("three", "a", "h")
        with pytest.raises(SourceUnavailable) as caught:
            await fetches.tasks.pop("three")
        assert caught.value.reason == "TooManyFetches"
        fetches.request("elsewhere", "a", "free")
        await settle()
        assert "elsewhere" in fetches.holding


async def test_ten_thousand_waiters_come_and_go_quickly() -> None:
    """Each costs the same, however many wait: the loop serves Envoys meanwhile."""
    async with holder() as fetches:
        for namespace in ("same", "other"):
            fetches.request(f"{namespace} a", namespace, "h")
            fetches.request(f"{namespace} b", namespace, "h")
        await settle()
        for number in range(9_000):
            fetches.request(str(number), "same" if number % 2 else f"ns{number}", "h")
        await settle()
        begin = time.process_time()
        await fetches.let_all_go()
        assert time.process_time() - begin < 3.0


async def test_two_namespaces_that_fill_a_host_give_its_next_place_to_a_third(
    metrics: Metrics,
) -> None:
    holder = Holder(FetchLimiter(FetchLimits(), metrics=metrics))
    for name in ("a1", "a2", "a3", "b1", "b2", "b3"):
        holder.request(name, name[0], "host")
    await settle()
    holder.request("c1", "c", "host")
    await settle()
    assert sorted(holder.holding) == ["a1", "a2", "b1", "b2"]
    for name in ("a1", "b1", "a2"):
        await holder.let_go(name)
    assert "c1" in holder.holding
    await holder.let_all_go()


@pytest.mark.looptime
async def test_namespaces_that_hang_on_a_host_make_room_for_a_third_after_their_turn(
    metrics: Metrics,
) -> None:
    begin = asyncio.get_running_loop().time()
    async with holder(metrics) as fetches:
        for name in ("a1", "a2", "a3", "b1", "b2", "b3"):
            fetches.request(name, name[0], "host")
        await settle()
        fetches.request("c1", "c", "host")
        await asyncio.sleep(FetchLimits().long_after - 0.5)
        assert sorted(fetches.holding) == ["a1", "a2", "b1", "b2"]
        await asyncio.sleep(1)
        assert asyncio.get_running_loop().time() - begin < 16
        # No fetch was cancelled, and no namespace got more than its share.
        assert sorted(fetches.holding) == ["a1", "a2", "b1", "b2", "c1"]


@pytest.mark.looptime
async def test_long_fetches_never_take_more_than_half_of_all_places(metrics: Metrics) -> None:
    async with holder(metrics) as fetches:
        for number in range(40):
            fetches.request(f"{number}", f"ns{number // 2}", "host")
        await asyncio.sleep(600)
        assert len(fetches.holding) == FetchLimits().long + FetchLimits().per_host
        fetches.request("elsewhere", "other", "free")
        await settle()
        assert "elsewhere" in fetches.holding
        await fetches.let_go(fetches.holding[0])  # a long one: the next overdue takes its room
        await settle()
        assert len(fetches.holding) == FetchLimits().long + FetchLimits().per_host + 1


@pytest.mark.looptime
async def test_places_of_long_fetches_are_counted_back(metrics: Metrics) -> None:
    fetch_limiter = FetchLimiter(limits(per_host=1), metrics=metrics)
    for _ in range(3):  # long, then again from the start: no count is left over
        fetches = Holder(fetch_limiter)
        for name in ("one", "two", "three"):
            fetches.request(name, name, "host")
        await asyncio.sleep(60)
        assert len(fetches.holding) == 3
        await fetches.let_all_go()
    assert fetch_limiter._long == len(fetch_limiter._overdue) == len(fetch_limiter._by_host) == 0


@pytest.mark.looptime
async def test_ten_namespaces_that_hang_on_one_host_leave_places_to_others(
    metrics: Metrics,
) -> None:
    async with holder(metrics) as fetches:
        for number in range(100):
            fetches.request(f"{number}", f"ns{number % 10}", "slow")
        await asyncio.sleep(120)
        assert len(fetches.holding) == FetchLimits().long + FetchLimits().per_host
        fetches.request(
            "also", "ns0", "elsewhere"
        )  # a namespace with a hanging host gets slots for other hosts
        for number in range(4):
            fetches.request(f"good{number}", f"tenant{number}", f"host{number}")
        await settle()
        assert {"good0", "good1", "good2", "good3", "also"} <= set(fetches.holding)


async def test_namespaces_that_hang_on_many_hosts_leave_places_to_others() -> None:
    async with holder() as fetches:
        for number in range(400):
            fetches.request(f"{number}", f"ns{number % 8}", f"slow{number // 8}")
        await settle()
        most = FetchLimits()
        assert len(fetches.holding) == most.total - most.reserved
        for number in range(most.reserved):
            fetches.request(f"good{number}", f"tenant{number}", f"host{number}")
        fetches.request("second", "tenant0", "host")
        await settle()
        assert sum(name.startswith("good") for name in fetches.holding) == most.reserved
        assert "second" not in fetches.holding
        # A slot that comes free is the next newcomer's.
        fetches.request("late", "tenant", "host")
        await fetches.let_go("0")
        assert "late" in fetches.holding


async def test_a_single_slot_is_shared_by_all_namespaces() -> None:
    async with holder(total=1) as fetches:
        fetches.request("a", "a", "host")
        await settle()
        fetches.request("b", "a", "host")
        await settle()
        assert fetches.holding == ["a"]
        await fetches.let_go("a")
        assert fetches.holding == ["b"]


async def test_one_place_that_is_free_again_goes_to_one_namespace() -> None:
    async with holder(total=1, reserved=0) as fetches:
        for name in ["a", "b", "c"]:
            fetches.request(name, name, f"host-{name}")
        await settle()
        order = []
        while fetches.holding:
            (name,) = fetches.holding
            order.append(name)
            await fetches.let_go(name)
        assert order == ["a", "b", "c"]


KEY = SourceKey("r.example", "team/filter", "alice")
DOWN = SourceUnavailable("connection refused")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breakers(metrics: Metrics, clock: FakeClock) -> CircuitBreakers:
    limits = FetchLimits(breaker_failures=3, breaker_open=60.0, retry_maximum=300.0)
    return CircuitBreakers(limits, metrics=metrics, clock=clock)


def opened(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("autowasm_circuit_breakers_open")


def test_opens_after_enough_failures_in_a_row(
    breakers: CircuitBreakers, clock: FakeClock, metrics: Metrics
) -> None:
    for _ in range(2):
        breakers.failed(KEY, DOWN)
        breakers.check(KEY)
    breakers.failed(KEY, DOWN)
    with pytest.raises(SourceUnavailable, match=r"r\.example/team/filter: .* refused") as caught:
        breakers.check(KEY)
    assert (caught.value.reason, caught.value.retry_after) == ("BackingOff", 60.0)
    assert opened(metrics) == 1
    clock.now += 60.0
    breakers.check(KEY)
    assert opened(metrics) == 0


def test_success_forgets_failures(breakers: CircuitBreakers, metrics: Metrics) -> None:
    for _ in range(3):
        breakers.failed(KEY, DOWN)
    breakers.succeeded(KEY)
    breakers.failed(KEY, DOWN)
    breakers.check(KEY)
    assert opened(metrics) == 0


@pytest.mark.parametrize(
    "other",
    [
        SourceKey("r.example", "team/filter", "bob"),
        SourceKey("r.example", "team/other", "alice"),
        SourceKey("s.example", "team/filter", "alice"),
    ],
)
def test_other_key_is_not_affected(breakers: CircuitBreakers, other: SourceKey) -> None:
    for _ in range(9):
        breakers.failed(KEY, SourceDenied("wrong password"))
    breakers.check(other)


@pytest.mark.parametrize(
    "error", [SourceNotFound("no such tag"), ContentRejected("not wasm")], ids=["missing", "bad"]
)
def test_missing_image_or_bad_content_says_nothing_about_the_source(
    breakers: CircuitBreakers, error: SourceNotFound | ContentRejected
) -> None:
    for _ in range(9):
        breakers.failed(KEY, error)
    breakers.check(KEY)


def test_retry_after_is_honoured_from_the_first_failure(
    breakers: CircuitBreakers, clock: FakeClock
) -> None:
    breakers.failed(KEY, SourceUnavailable("slow down", retry_after=20.0))
    with pytest.raises(SourceUnavailable):
        breakers.check(KEY)
    clock.now += 20.0
    breakers.check(KEY)


def test_no_server_stops_us_for_longer_than_the_maximum(
    breakers: CircuitBreakers, clock: FakeClock
) -> None:
    breakers.failed(KEY, SourceUnavailable("go away", retry_after=1e9))
    clock.now += 300.0
    breakers.check(KEY)


def test_message_does_not_change_while_the_state_does_not(
    breakers: CircuitBreakers, clock: FakeClock
) -> None:
    """It goes into statuses, and a status that changes is written."""
    messages = set()
    for _ in range(6):
        breakers.failed(KEY, DOWN)
        clock.now += 1.5
        try:
            breakers.check(KEY)
        except SourceUnavailable as error:
            messages.add(str(error))
    assert len(messages) == 1


def test_number_of_keys_is_bounded(breakers: CircuitBreakers) -> None:
    for number in range(10_050):
        breakers.failed(SourceKey("h", str(number), ""), SourceUnavailable("x"))
    assert len(breakers._states) == 10_000
