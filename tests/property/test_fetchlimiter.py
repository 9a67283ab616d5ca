"""Places under any order of requests, releases and cancellations: no limit is exceeded, and no request starves."""

import asyncio
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from autowasm.artifacts.fetchlimiter import FetchLimiter
from autowasm.limits import FetchLimits
from autowasm.telemetry.metrics import Metrics

LIMITS = FetchLimits(per_namespace_host=2, per_namespace=3, per_host=3, total=5)
NAMESPACES, HOSTS = ["a", "b", "c"], ["x", "y"]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(NAMESPACES), st.sampled_from(HOSTS)),
        st.tuples(st.just("leave"), st.integers(min_value=0, max_value=20), st.booleans()),
    ),
    max_size=60,
)


class Asker:
    """A request for a slot."""

    def __init__(self, fetch_limiter: FetchLimiter, namespace: str, host: str) -> None:
        self.namespace, self.host = namespace, host
        self.holds = False
        self._go = asyncio.Event()
        self.task = asyncio.create_task(self._run(fetch_limiter))

    async def _run(self, fetch_limiter: FetchLimiter) -> None:
        async with fetch_limiter.slot(self.namespace, self.host):
            self.holds = True
            try:
                await self._go.wait()
            finally:
                self.holds = False

    def leave(self, *, cancelled: bool) -> None:
        if cancelled:
            self.task.cancel()
        self._go.set()


def fits(askers: list[Asker], asker: Asker) -> bool:
    holding = [each for each in askers if each.holds]
    namespaces = Counter(each.namespace for each in holding)
    hosts = Counter(each.host for each in holding)
    both = Counter((each.namespace, each.host) for each in holding)
    reserved = min(LIMITS.reserved, LIMITS.total // 4) if namespaces[asker.namespace] else 0
    return (
        len(holding) < LIMITS.total - reserved
        and namespaces[asker.namespace] < LIMITS.per_namespace
        and hosts[asker.host] < LIMITS.per_host
        and both[asker.namespace, asker.host] < LIMITS.per_namespace_host
    )


def assert_limits_hold(askers: list[Asker]) -> None:
    holding = [each for each in askers if each.holds]
    assert len(holding) <= LIMITS.total
    for count, most in (
        (Counter(each.namespace for each in holding), LIMITS.per_namespace),
        (Counter(each.host for each in holding), LIMITS.per_host),
        (Counter((each.namespace, each.host) for each in holding), LIMITS.per_namespace_host),
    ):
        assert not count or max(count.values()) <= most  # type: ignore[type-var]


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


async def play(steps: list[tuple[str, object, object]]) -> None:
    fetch_limiter = FetchLimiter(LIMITS, metrics=Metrics())
    askers: list[Asker] = []
    for step, one, other in steps:
        if step == "ask":
            askers.append(Asker(fetch_limiter, str(one), str(other)))
        elif askers:
            asker = askers[int(str(one)) % len(askers)]
            # Before it is granted it can only be cancelled.
            asker.leave(cancelled=bool(other) or not asker.holds)
            if bool(other):
                await settle()
                askers.remove(asker)
        await settle()
        askers = [each for each in askers if not each.task.done()]
        assert_limits_hold(askers)
        assert not [each for each in askers if not each.holds and fits(askers, each)]
    for _ in range(len(askers) + 1):  # each waiter is granted while the others end
        for asker in askers:
            if asker.holds:
                asker.leave(cancelled=False)
        await settle()
        askers = [each for each in askers if not each.task.done()]
        assert_limits_hold(askers)
    assert not askers
    assert (
        fetch_limiter._running == fetch_limiter._waiting_count == len(fetch_limiter._waiting) == 0
    )


@given(STEPS)
@settings(max_examples=settings().max_examples * 3 // 2)
def test_no_limit_is_exceeded_and_no_fetch_waits_for_a_free_slot(
    steps: list[tuple[str, object, object]],
) -> None:
    asyncio.run(play(steps))


async def turns(others: int, line: int) -> int:
    """How many are served before a new request, when each other namespace has `line` fetches waiting."""
    fetch_limiter = FetchLimiter(FetchLimits(per_host=1), metrics=Metrics())
    order: list[str] = []
    all_requested = asyncio.Event()

    async def fetch(namespace: str) -> None:
        async with fetch_limiter.slot(namespace, "h"):
            order.append(namespace)
            await all_requested.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fetch("other0"))
        for _ in range(line):
            for number in range(others):
                tasks.create_task(fetch(f"other{number}"))
        tasks.create_task(fetch("newcomer"))
        await settle()
        order.clear()
        all_requested.set()
    return order.index("newcomer")


@given(st.integers(min_value=1, max_value=6), st.integers(min_value=1, max_value=30))
@settings(max_examples=settings().max_examples * 3 // 10)
def test_newcomer_waits_for_at_most_one_turn_of_each_other_namespace(
    others: int, line: int
) -> None:
    assert asyncio.run(turns(others, line)) <= others
