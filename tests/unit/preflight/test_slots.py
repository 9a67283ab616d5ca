"""One child for a namespace, two in all, and namespaces take turns."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from prometheus_client import Gauge

from autowasm.limits import PreflightLimits
from autowasm.preflight.messages import NoVerdictReason
from autowasm.preflight.runner import Slots
from autowasm.preflight.verdicts import NoVerdict
from autowasm.telemetry.metrics import Metrics


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def value(gauge: Gauge) -> float:
    return float(gauge._value.get())


class Callers:
    """Tasks that hold a slot until they are let go."""

    def __init__(self, metrics: Metrics, **limits: int) -> None:
        self.metrics = metrics
        self.slots = Slots(
            PreflightLimits(**limits),  # type: ignore[arg-type]
            running=metrics.preflight_children,
            waiting=metrics.preflight_waiting,
        )
        self.holding: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        """The namespace of a name is its first letter."""
        for name in names:
            self.tasks[name] = asyncio.create_task(self._hold(name))
        await settle()

    async def _hold(self, name: str) -> None:
        async with self.slots.place(name[0]):
            self.holding.append(name)
            try:
                await asyncio.Event().wait()
            finally:
                self.holding.remove(name)

    async def let_go(self, name: str) -> None:
        self.tasks.pop(name).cancel()
        await settle()


@contextlib.asynccontextmanager
async def callers(metrics: Metrics, **limits: int) -> AsyncIterator[Callers]:
    result = Callers(metrics, **limits)
    try:
        yield result
    finally:
        for task in result.tasks.values():
            task.cancel()
        await asyncio.gather(*result.tasks.values(), return_exceptions=True)


async def test_a_namespace_has_one_slot_and_all_have_two(metrics: Metrics) -> None:
    async with callers(metrics) as them:
        await them.ask("a1", "a2", "b1", "c1")
        assert them.holding == ["a1", "b1"]
        assert (value(metrics.preflight_children), value(metrics.preflight_waiting)) == (2, 2)
        await them.let_go("b1")
        assert them.holding == ["a1", "c1"]
    assert (value(metrics.preflight_children), value(metrics.preflight_waiting)) == (0, 0)


async def test_callers_that_wait_for_a_lock_take_no_slot(metrics: Metrics) -> None:
    lock = asyncio.Lock()
    async with callers(metrics) as them:
        await lock.acquire()
        locked = {name: asyncio.create_task(hold(them.slots, name, lock)) for name in "abc"}
        await settle()
        await them.ask("d1", "a1")
        assert them.holding == ["d1"], "a waits for the lock"
        assert (value(metrics.preflight_children), value(metrics.preflight_waiting)) == (1, 4)
        await them.ask("e1", "f1")
        assert them.holding == ["d1", "e1"]
        lock.release()
        await settle()
        assert value(metrics.preflight_children) == 2, "the first one has the lock, and no slot"
        await them.let_go("e1")
        assert them.holding == ["d1"], "the one with the lock goes before f1"
        locked["a"].cancel()
        await settle()
        assert value(metrics.preflight_children) == 2
        for task in locked.values():
            task.cancel()
        await settle()
        assert not lock.locked()
        await them.let_go("d1")
        assert sorted(them.holding) == ["a1", "f1"]


async def hold(slots: Slots, namespace: str, lock: asyncio.Lock) -> None:
    async with slots.place(namespace), slots.turn(namespace, lock):
        await asyncio.Event().wait()


@pytest.mark.parametrize("leaves", ["with the slot", "while it waits for a slot"])
async def test_a_caller_with_a_lock_that_leaves_passes_both_on(
    metrics: Metrics, leaves: str
) -> None:
    lock = asyncio.Lock()
    async with callers(metrics, total=1) as them:
        await lock.acquire()
        one = asyncio.create_task(hold(them.slots, "a", lock))
        await settle()
        if leaves == "while it waits for a slot":
            await them.ask("b1")
        lock.release()
        await settle()
        one.cancel()
        await settle()
        assert not lock.locked()
        await them.ask("c1")
        if leaves == "while it waits for a slot":
            assert them.holding == ["b1"]
            await them.let_go("b1")
        assert them.holding == ["c1"]
        assert value(metrics.preflight_children) == 1


async def test_a_hundred_requests_of_one_namespace_delay_another_by_one(metrics: Metrics) -> None:
    async with callers(metrics, total=1) as them:
        await them.ask(*(f"a{number}" for number in range(100)), "b1")
        await them.let_go("a0")
        assert them.holding == ["a1"]
        await them.let_go("a1")
        assert them.holding == ["b1"]
        await them.let_go("b1")
        assert them.holding == ["a2"]


async def test_a_caller_that_leaves_while_it_waits_takes_no_slot(metrics: Metrics) -> None:
    async with callers(metrics) as them:
        await them.ask("a1", "a2", "a3")
        await them.let_go("a2")
        assert value(metrics.preflight_waiting) == 1
        await them.let_go("a1")
        assert them.holding == ["a3"]


async def test_a_caller_that_leaves_in_the_moment_of_its_grant_passes_the_slot_on(
    metrics: Metrics,
) -> None:
    async with callers(metrics) as them:
        await them.ask("a1", "a2", "a3")
        them.tasks["a1"].cancel()
        while "a1" in them.holding:
            await asyncio.sleep(0)
        them.tasks["a2"].cancel()  # granted, and has not run since
        await settle()
        assert them.holding == ["a3"]
        assert value(metrics.preflight_children) == 1


async def test_callers_that_leave_together_are_passed_over(metrics: Metrics) -> None:
    async with callers(metrics) as them:
        await them.ask("a1", "a2", "a3", "a4")
        for name in ("a2", "a3", "a1"):
            them.tasks[name].cancel()
        await settle()
        assert them.holding == ["a4"]
        assert value(metrics.preflight_waiting) == 0


async def test_more_waiting_callers_than_the_limit_are_turned_away(metrics: Metrics) -> None:
    async with callers(metrics, queued=1) as them:
        await them.ask("a1", "a2")
        with pytest.raises(NoVerdict) as caught:
            async with them.slots.place("a"):
                pass
        assert caught.value.unknown.reason is NoVerdictReason.TOO_MANY_REQUESTS
        assert value(metrics.preflight_waiting) == 1
