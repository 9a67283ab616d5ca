import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from types import FrameType, SimpleNamespace

import pytest
from structlog.testing import capture_logs

from autowasm.limits import LoopLimits
from autowasm.performance import eventloop
from autowasm.performance.eventloop import (
    BOUNDS,
    LoopTiming,
    TimedLoop,
    TimedSelector,
    Watchdog,
    start_up_complete,
    stop_reporting,
    timing_of,
    watched_runner,
)
from autowasm.telemetry.metrics import Metrics


def hold_the_loop(seconds: float) -> None:
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        pass


@pytest.fixture
def hold_until_sampled(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Holds the loop until the watchdog has sampled the iteration, however late the machine runs its thread."""
    take, samples = eventloop._stack, itertools.count()
    seen = next(samples)

    def counted(frame: FrameType | None) -> str:
        nonlocal seen
        stack = take(frame)
        seen = next(samples)
        return stack

    def hold_the_loop_until_sampled() -> None:
        # The second sample shows that the first one is stored.
        before, ends = seen, time.perf_counter() + 60
        while seen < before + 2 and time.perf_counter() < ends:
            pass

    monkeypatch.setattr(eventloop, "_stack", counted)
    return hold_the_loop_until_sampled


def run(work: Callable[[], Awaitable[None]], *, limits: LoopLimits | None = None) -> LoopTiming:
    """Run it on a timed loop under the watchdog; the iterations of `work` alone."""
    loop = TimedLoop()
    if limits is not None:
        loop.timing.limits = limits

    async def main() -> None:
        await asyncio.sleep(0)
        loop.timing.iterations = LoopTiming()
        start_up_complete(loop)
        await asyncio.sleep(0)  # an iteration that begins after it
        await work()
        await asyncio.sleep(0)  # the iteration in which `work` ended is over, too

    with asyncio.Runner(loop_factory=lambda: loop) as runner, Watchdog(loop.timing):
        runner.run(main())
    return loop.timing.iterations


def test_counts_a_held_turn_in_its_bucket() -> None:
    async def work() -> None:
        hold_the_loop(0.03)

    iterations = run(work)
    above = iterations.counts[
        BOUNDS.index(0.05) :
    ]  # the bucket up to 50 ms, and those above on a slow machine
    assert sum(above) >= 1
    assert iterations.longest >= 0.03
    assert iterations.seconds >= 0.03


def test_waiting_is_no_turn() -> None:
    async def work() -> None:
        for _ in range(3):
            await asyncio.sleep(0.1)

    began = time.perf_counter()
    assert run(work).seconds <= time.perf_counter() - began - 0.3


def test_a_blocked_loop_is_logged_with_its_stack_and_duration(
    hold_until_sampled: Callable[[], None],
) -> None:
    async def work() -> None:
        hold_the_loop(0.2)
        hold_until_sampled()

    with capture_logs() as logs:
        iterations = run(work)
    logged = next(entry for entry in logs if "hold_the_loop" in entry.get("stack", ""))
    assert logged["event"] == "loop blocked"
    assert logged["seconds"] >= 0.2
    assert logged["stack"].startswith("performance/test_watchdog.py:")
    assert iterations.blocked >= 1


@pytest.mark.parametrize("over", [0.001, 0.01, 0.024])
def test_no_turn_above_the_limit_is_without_a_stack(
    over: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two samples fit into the limit, so one of them falls into a longer iteration, unless the machine has no time for the thread."""
    limits, margin = LoopLimits(blocked=0.1, quiet=0), 0.02
    samples: list[float] = []
    iterations: list[tuple[float, float]] = []

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        samples.append(time.perf_counter())

    watched = SimpleNamespace(**{**vars(time), "sleep": sleep})
    monkeypatch.setattr(eventloop, "time", watched)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, TimedLoop)
        report = loop.timing.on_blocked
        assert report is not None

        def note(began: float, took: float) -> None:
            iterations.append((began, took))
            report(began, took)

        loop.timing.on_blocked = note
        for _ in range(5):
            await asyncio.sleep(0.013)  # out of step with the samples
            hold_the_loop(limits.blocked + over)

    with capture_logs() as logs:
        run(work, limits=limits)
    logged = [entry["stack"] for entry in logs if entry["event"] == "loop blocked"]
    assert len(logged) >= 5
    for (began, took), stack in zip(iterations, logged, strict=True):
        in_time = [sample for sample in samples if began + 0.04 <= sample <= began + took - margin]
        assert stack != "not sampled" or not in_time


def test_turns_of_the_start_up_are_counted_and_not_reported() -> None:
    loop = TimedLoop()

    async def main() -> None:
        for _ in range(2):
            await asyncio.sleep(0)
            hold_the_loop(0.06)
        start_up_complete(loop)  # in the middle of a long iteration, which began before
        hold_the_loop(0.06)
        await asyncio.sleep(0)

    with (
        capture_logs() as logs,
        asyncio.Runner(loop_factory=lambda: loop) as runner,
        Watchdog(loop.timing),
    ):
        runner.run(main())
    assert logs == []
    assert loop.timing.iterations.blocked >= 2


def test_the_first_long_turn_after_the_start_up_is_reported(
    hold_until_sampled: Callable[[], None],
) -> None:
    async def work() -> None:
        start_up_complete(asyncio.get_running_loop())  # a second call moves nothing
        hold_the_loop(0.2)
        hold_until_sampled()

    with capture_logs() as logs:
        run(work)
    assert [entry["event"] for entry in logs] == ["loop blocked"]
    assert logs[0]["stack"].startswith("performance/test_watchdog.py:")


def test_turns_after_the_shutdown_are_not_reported(hold_until_sampled: Callable[[], None]) -> None:
    async def work() -> None:
        hold_until_sampled()
        hold_the_loop(0.06)
        stop_reporting(asyncio.get_running_loop())  # at the end of a long iteration

    with capture_logs() as logs:
        iterations = run(work)
    assert logs == []
    assert iterations.blocked >= 1


def test_a_loop_that_is_always_late_is_reported_once_and_counted() -> None:
    async def work() -> None:
        for _ in range(3):
            hold_the_loop(0.06)
            await asyncio.sleep(0)

    with capture_logs() as logs:
        iterations = run(work, limits=LoopLimits(quiet=3600.0))
    assert len([entry for entry in logs if entry["event"] == "loop blocked"]) == 1
    assert iterations.blocked >= 3


def test_stack_of_an_earlier_turn_is_not_shown_for_a_later_one() -> None:
    selector = TimedSelector(LoopLimits(quiet=0))
    selector.started = time.perf_counter()
    watchdog = Watchdog(selector)
    with selector, capture_logs() as logs, watchdog:
        assert selector.on_blocked is not None
        selector.on_blocked(time.perf_counter(), 1.0)
    assert [entry["stack"] for entry in logs] == ["not sampled"]


def test_wakes_up_for_a_long_turn_after_a_long_silence(
    hold_until_sampled: Callable[[], None],
) -> None:
    limits = LoopLimits(blocked=0.05, quiet=0)

    async def work() -> None:
        for _ in range(3):
            await asyncio.sleep(0.2)  # the thread is asleep by now
            hold_until_sampled()

    with capture_logs() as logs:
        run(work, limits=limits)
    seen = [entry for entry in logs if "hold_the_loop" in entry.get("stack", "")]
    assert len(seen) >= 3


def test_watchdog_sleeps_while_nothing_happens() -> None:
    with TimedSelector() as selector, Watchdog(selector):
        deadline = time.monotonic() + 30
        while selector.wake is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        selector.select(0)
        assert selector.wake is None, "the iteration that began has called it"


def test_other_loops_are_left_alone() -> None:
    async def main() -> LoopTiming:
        return timing_of(asyncio.get_running_loop())

    assert asyncio.run(main()) == LoopTiming()


def test_runner_times_its_loop_and_leaves_no_thread() -> None:
    async def main() -> LoopTiming:
        await asyncio.sleep(0)
        return timing_of(asyncio.get_running_loop())

    with watched_runner() as runner:
        assert "loop watchdog" in {thread.name for thread in threading.enumerate()}
        iterations = runner.run(main())
    assert sum(iterations.counts) >= 1
    assert "loop watchdog" not in {thread.name for thread in threading.enumerate()}


def test_metrics_show_the_turns(metrics: Metrics) -> None:
    iterations = metrics.loop.iterations = LoopTiming()
    iterations.counts[0], iterations.counts[-1] = 7, 1
    iterations.seconds, iterations.longest, iterations.blocked = 6.5, 6.0, 1
    value = metrics.registry.get_sample_value
    name = "autowasm_loop_turn_duration_seconds"
    assert value(f"{name}_bucket", {"le": "0.0005"}) == 7
    assert value(f"{name}_bucket", {"le": "5.0"}) == 7
    assert value(f"{name}_bucket", {"le": "+Inf"}) == 8
    assert value(f"{name}_sum") == 6.5
    assert value("autowasm_loop_blocked_total") == 1
    assert value("autowasm_loop_longest_turn_seconds") == 6.0
    assert value("autowasm_loop_longest_turn_seconds") == 0.0, "the scrape resets it"
