"""Workers: every outcome of a reconcile leads to the right next step, and none ends a worker."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from unittest.mock import ANY

import pytest

from autowasm.errors import SourceUnavailable
from autowasm.flowcontrol import Backoff
from autowasm.kube.controller import Controller, Result, TerminalError
from autowasm.kube.errors import Conflict, TooManyRequests
from autowasm.kube.resources import ObjectKey
from autowasm.kube.workqueue import WorkQueue

KEY = ObjectKey("default", "one")
OTHER = ObjectKey("default", "two")
Step = Callable[[ObjectKey], Awaitable[Result]]


def now() -> float:
    return asyncio.get_running_loop().time()


class Scripted:
    """A Reconciler that does the given steps one after another, then succeeds."""

    def __init__(self, *steps: Result | BaseException | Step) -> None:
        self._steps = list(steps)
        self.calls: list[tuple[ObjectKey, float]] = []

    @property
    def times(self) -> list[float]:
        """Seconds since the first call."""
        return [round(when - self.calls[0][1], 2) for _, when in self.calls]

    async def reconcile(self, key: ObjectKey) -> Result:
        self.calls.append((key, now()))
        step = self._steps.pop(0) if self._steps else Result()
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, Result):
            return step
        return await step(key)


class Outcomes:
    def __init__(self) -> None:
        self.results: list[str] = []

    def reconciled(self, result: str, seconds: float) -> None:
        assert seconds >= 0
        self.results.append(result)


class Running:
    def __init__(self, reconciler: Scripted, **options: float) -> None:
        self.queue: WorkQueue[ObjectKey] = WorkQueue(backoff=Backoff(1.0, 60.0, 0.0))
        self.outcomes = Outcomes()
        self.controller = Controller(
            "test",
            queue=self.queue,
            reconciler=reconciler,
            metrics=self.outcomes,
            workers=int(options.pop("workers", 1)),
            **options,
        )


@asynccontextmanager
async def running(reconciler: Scripted, **options: float) -> AsyncIterator[Running]:
    it = Running(reconciler, **options)
    async with asyncio.TaskGroup() as group:
        group.create_task(it.controller.run())
        yield it
        it.queue.shut_down(drain=False)


pytestmark = pytest.mark.looptime


async def test_success_is_forgotten() -> None:
    reconciler = Scripted(ValueError("once"))
    async with running(reconciler) as it:
        it.queue.add(KEY)
        await asyncio.sleep(10)
        assert reconciler.times == [0, 1]
        assert it.outcomes.results == ["panic", "success"]
        assert it.queue.num_requeues(KEY) == 0


async def test_requeue_after_calls_again_and_forgets_failures() -> None:
    reconciler = Scripted(ValueError("once"), Result(requeue_after=30))
    async with running(reconciler) as it:
        it.queue.add(KEY)
        await asyncio.sleep(5)
        assert it.queue.num_requeues(KEY) == 0
        await asyncio.sleep(60)
        assert reconciler.times == [0, 1, 31]
        assert it.outcomes.results == ["panic", "requeue", "success"]


@pytest.mark.parametrize(("later", "expected"), [(None, [0, 5]), (30.0, [0, 5, 35])])
async def test_result_replaces_the_requeue_of_the_previous_one(
    later: float | None, expected: list[int]
) -> None:
    reconciler = Scripted(Result(requeue_after=10), Result(requeue_after=later))
    async with running(reconciler) as it:
        it.queue.add(KEY)
        await asyncio.sleep(5)
        it.queue.add(KEY)
        await asyncio.sleep(100)
        assert reconciler.times == expected


async def test_success_keeps_what_is_queued_meanwhile_and_the_requeue_of_other_keys() -> None:
    async def changed_meanwhile(key: ObjectKey) -> Result:
        it.queue.add(key)
        return Result()

    reconciler = Scripted(Result(requeue_after=10), changed_meanwhile)
    async with running(reconciler) as it:
        it.queue.add(OTHER)
        await asyncio.sleep(1)
        it.queue.add(KEY)
        await asyncio.sleep(100)
        assert reconciler.calls[1:] == [(KEY, ANY), (KEY, ANY), (OTHER, ANY)]
        assert reconciler.times == [0, 1, 1, 10]


async def test_failure_keeps_an_earlier_requeue() -> None:
    reconciler = Scripted(Result(requeue_after=1.5), ValueError("once"))
    async with running(reconciler) as it:
        it.queue.add(KEY)
        await asyncio.sleep(1)
        it.queue.add(KEY)
        await asyncio.sleep(100)
        assert reconciler.times == [0, 1, 1.5]


@pytest.mark.parametrize(
    ("requeue_after", "seconds", "expected"),
    [(None, None, None), (None, 3.0, 3.0), (2.0, None, 2.0), (2.0, 3.0, 2.0), (3.0, 0.0, 0.0)],
)
def test_the_sooner_of_two_requeues_is_taken(
    requeue_after: float | None, seconds: float | None, expected: float | None
) -> None:
    assert Result(requeue_after).within(seconds) == Result(expected)


async def test_requeue_at_once_does_not_need_another_event() -> None:
    reconciler = Scripted(Result(requeue_after=0))
    async with running(reconciler) as it:
        it.queue.add(KEY)
        await asyncio.sleep(1)
        assert reconciler.times == [0, 0]


@pytest.mark.parametrize("error", [SourceUnavailable("down"), ZeroDivisionError()])
async def test_errors_are_tried_again_with_backoff(error: Exception) -> None:
    reconciler = Scripted(*[error] * 3)
    async with running(reconciler) as it:
        it.queue.add(KEY)
        await asyncio.sleep(20)
        assert reconciler.times == [0, 1, 3, 7]


async def test_retry_after_of_the_server_sets_the_time_of_the_retry() -> None:
    reconciler = Scripted(TooManyRequests("later", code=429, retry_after=17))
    async with running(reconciler) as it:
        it.queue.add(KEY)
        await asyncio.sleep(20)
        assert reconciler.times == [0, 17]


async def test_a_write_conflict_is_tried_again_within_milliseconds() -> None:
    reconciler = Scripted(Conflict("newer", code=409), Conflict("newer", code=409))
    async with running(reconciler) as it:
        it.queue.add(KEY)
        await asyncio.sleep(0.1)
        assert len(reconciler.calls) == 3


async def test_a_terminal_error_is_not_tried_again() -> None:
    reconciler = Scripted(TerminalError("never"))
    async with running(reconciler) as it:
        it.queue.add(KEY)
        await asyncio.sleep(1000)
        assert it.outcomes.results == ["terminal"]
        it.queue.add(KEY)
        await asyncio.sleep(1)
        assert it.outcomes.results == ["terminal", "success"]


async def test_a_hanging_reconcile_is_cut_by_its_deadline() -> None:
    async def hang(key: ObjectKey) -> Result:
        await asyncio.sleep(1e6)
        return Result()

    reconciler = Scripted(hang)
    async with running(reconciler, deadline=30) as it:
        it.queue.add(KEY)
        await asyncio.sleep(100)
        assert reconciler.times == [0, 31]
        assert it.outcomes.results == ["error", "success"]


async def test_a_reconcile_whose_inner_call_was_cancelled_does_not_end_the_worker() -> None:
    reconciler = Scripted(asyncio.CancelledError())
    async with running(reconciler) as it:
        it.queue.add(KEY)
        await asyncio.sleep(10)
        assert it.outcomes.results == ["error", "success"]


async def test_one_key_is_never_with_two_workers_and_others_go_on() -> None:
    inside: list[ObjectKey] = []
    most = 0

    async def slow(key: ObjectKey) -> Result:
        nonlocal most
        assert key not in inside
        inside.append(key)
        most = max(most, len(inside))
        await asyncio.sleep(1)
        inside.remove(key)
        return Result()

    reconciler = Scripted(*[slow] * 8)
    async with running(reconciler, workers=4) as it:
        for _ in range(4):
            it.queue.add(KEY)
            it.queue.add(OTHER)
            await asyncio.sleep(0.9)
        await asyncio.sleep(10)
    assert most == 2
    assert set(it.outcomes.results) == {"success"}


async def test_a_drained_shut_down_reconciles_the_queued_keys() -> None:
    reconciler = Scripted()
    it = Running(reconciler)
    it.queue.add(KEY)
    it.queue.add(OTHER)
    it.queue.shut_down(drain=True)
    await it.controller.run()
    assert [key for key, _ in reconciler.calls] == [KEY, OTHER]


async def test_cancelling_ends_the_workers_and_gives_their_keys_back() -> None:
    async def hang(key: ObjectKey) -> Result:
        await asyncio.sleep(1e6)
        return Result()

    it = Running(Scripted(hang))
    it.queue.add(KEY)
    task = asyncio.create_task(it.controller.run())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert it.queue.running_times() == []


async def test_others_have_their_turn_between_reconciles_that_wait_for_nothing() -> None:
    reconciler = Scripted()
    async with running(reconciler, workers=4) as it:
        for number in range(100):
            it.queue.add(ObjectKey("default", str(number)))
        iterations = 0
        while len(reconciler.calls) < 100:
            await asyncio.sleep(0)
            iterations += 1
        assert iterations >= 100 // 4
