"""The event loop: short and timed iterations, a watchdog for long ones, and settings of the garbage collector.

An iteration is the work of the loop between two waits. It delays everything else on the loop. Invariants: each iteration
handles a bounded number of ready sockets, first come, first served, and one that stays ready goes behind all others; a socket
that becomes ready waits only for those before it; the loop never waits for the watchdog; every iteration longer
than `LoopLimits.blocked` is counted; the garbage collector is never off, and a full collection still comes, rarely.
"""

import asyncio
import contextlib
import gc
import math
import os
import select
import selectors
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Final, Self

import structlog

from autowasm.limits import LoopLimits

YOUNG: Final = 5_000
"""Objects after which the youngest generation is collected: a third of a millisecond."""
MIDDLE: Final = 10
"""Such collections until the middle generation is collected: at most 50 000 objects."""
OLD: Final = 200
"""Such collections until all are collected: after ten million objects that were made and kept."""


def tune_gc() -> None:
    """Set up the garbage collector so that it does not hold the loop. Call once everything is imported.

    A full collection visits every container object: with some thousand connections it takes 0.1 s while they are served.
    Imported objects never become garbage, and nearly all garbage is young.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)


BOUNDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Upper bounds of the buckets, in seconds: the budgets are 1 to 50 ms."""

_Ready = tuple[selectors.SelectorKey, int]


@dataclass(slots=True)
class LoopTiming:
    """All iterations so far: counts by the bound within which they stayed (the last has none), and their total time."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0
    longest: float = 0.0
    """Since it was last reset to 0."""
    blocked: int = 0


class TimedSelector(selectors.EpollSelector):
    """A loop's selector that limits and times its iterations. Everything except `select` is Python's own.

    asyncio handles all ready sockets in one iteration: with thousands of sidecars that download, half a second passes in which
    no Lease is renewed and no probe answered. Here an iteration handles a few, and the kernel keeps the others in order: calls of
    epoll_wait with a small `maxevents` go round robin through the ready sockets (epoll_wait(2), Notes). Timing costs about a microsecond for each iteration, and nothing while the loop is idle.
    """

    def __init__(self, limits: LoopLimits | None = None) -> None:
        super().__init__()
        self.limits = limits or LoopLimits()
        self.iterations = LoopTiming()
        self._epoll = select.epoll.fromfd(os.dup(self.fileno()))
        """Python's own asks it for all ready sockets."""
        self.began = 0.0
        """Start of the latest iteration, on time.perf_counter."""
        self.is_waiting = True
        """Whether that iteration is over."""
        self.wake: Callable[[], None] | None = None
        """Called once, as the next iteration begins; must not wait."""
        self.on_blocked: Callable[[float, float], None] | None = None
        """Called with the start and the length of a long iteration; runs on the loop and must not wait."""
        self.started = math.inf
        """When start-up was complete, on time.perf_counter; infinity: it is not."""

    def select(self, timeout: float | None = None) -> list[_Ready]:
        """Wait for the first ready sockets. The call ends an iteration, and its return begins the next."""
        if not self.is_waiting:
            self.is_waiting = True
            self._ended(time.perf_counter() - self.began)
        ready = self._first_ready(timeout)
        self.began = time.perf_counter()
        self.is_waiting = False
        if self.wake is not None:
            wake, self.wake = self.wake, None
            wake()
        return ready

    def close(self) -> None:
        """Close both descriptors of the epoll instance."""
        self._epoll.close()
        super().close()

    def _first_ready(self, timeout: float | None) -> list[_Ready]:
        """Like `EpollSelector.select`, which has no limit."""
        seconds = -1.0 if timeout is None else math.ceil(max(timeout, 0.0) * 1e3) * 1e-3
        known = self.get_map()
        ready: list[_Ready] = []
        for fd, mask in self._epoll.poll(seconds, self.limits.ready):
            key = known.get(fd)
            if key is not None:
                events = bool(mask & ~select.EPOLLOUT) * selectors.EVENT_READ
                events |= bool(mask & ~select.EPOLLIN) * selectors.EVENT_WRITE
                ready.append((key, events & key.events))
        return ready

    def _ended(self, took: float) -> None:
        iterations = self.iterations
        iterations.counts[bisect_left(BOUNDS, took)] += 1
        iterations.seconds += took
        iterations.longest = max(iterations.longest, took)
        if took > self.limits.blocked:
            iterations.blocked += 1
            if self.on_blocked is not None:
                self.on_blocked(self.began, took)


class TimedLoop(asyncio.SelectorEventLoop):
    """An event loop with a TimedSelector: `asyncio.Runner(loop_factory=TimedLoop)`."""

    def __init__(self) -> None:
        self.timing = TimedSelector()
        super().__init__(self.timing)


_log = structlog.get_logger(__name__)

_STACK_FRAMES: Final = 12
_SAMPLING_SHARE: Final = 0.4
"""Time between two checks of the watchdog, as a share of `LoopLimits.blocked`."""


@contextlib.contextmanager
def watched_runner() -> Iterator[asyncio.Runner]:
    """An asyncio.Runner whose loop is timed and watched."""
    loop = TimedLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner, Watchdog(loop.timing):
        yield runner


def timing_of(loop: asyncio.AbstractEventLoop) -> LoopTiming:
    """The timing of this loop; always empty for any loop except a TimedLoop."""
    return loop.timing.iterations if isinstance(loop, TimedLoop) else LoopTiming()


def start_up_complete(loop: asyncio.AbstractEventLoop) -> None:
    """Report long iterations that begin from now on. Only the first call counts; no effect on a loop that is not a TimedLoop."""
    if isinstance(loop, TimedLoop):
        loop.timing.started = min(loop.timing.started, time.perf_counter())


def stop_reporting(loop: asyncio.AbstractEventLoop) -> None:
    """Stop reporting long iterations: the loop is closing. No effect on a loop that is not a TimedLoop."""
    if isinstance(loop, TimedLoop):
        loop.timing.started = math.inf


@dataclass(frozen=True, slots=True)
class _Sample:
    """A sample of a long iteration. `processor`: the share of a processor that the loop's thread had."""

    began: float
    stack: str
    processor: float


class Watchdog:
    """The thread that samples long iterations. A context manager, entered on the loop's thread while the loop does not run.

    It checks from time to time whether the current iteration is long, and sleeps while there is none. Any iteration older than
    the time between two checks is sampled; two checks fit well into `LoopLimits.blocked`, so no long one is missed. Each is
    logged with its stack, unless one was logged within `LoopLimits.quiet` seconds. Iterations of the start-up are only counted:
    imports and the first garbage collection are long, and nothing depends on the loop yet. It is not a profiler.
    """

    def __init__(self, selector: TimedSelector) -> None:
        self._selector = selector
        self._period = _SAMPLING_SHARE * selector.limits.blocked
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="loop watchdog", daemon=True)
        self._sample: _Sample | None = None
        self._logged_at = -math.inf
        self._suppressed = 0
        self._loop_thread = 0

    def __enter__(self) -> Self:
        self._loop_thread = threading.get_ident()
        self._selector.on_blocked = self._blocked
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._selector.on_blocked = self._selector.wake = None
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        selector, clock = self._selector, time.pthread_getcpuclockid(self._loop_thread)
        checked_at, used, latest = time.perf_counter(), time.clock_gettime(clock), 0.0
        while not self._stopping:
            time.sleep(self._period)
            before, checked_at, used_before = checked_at, time.perf_counter(), used
            used = time.clock_gettime(clock)
            began = selector.began
            if selector.is_waiting:
                # While iterations follow each other, a wake-up for each would cost more than these checks.
                if began == latest:
                    self._sleep_until_woken()
                    checked_at, used = time.perf_counter(), time.clock_gettime(clock)
                latest = began
                continue
            if checked_at - began < self._period:
                continue
            stack = _stack(sys._current_frames().get(self._loop_thread))
            if (
                selector.began == began and not selector.is_waiting
            ):  # else the stack belongs to another moment
                self._sample = _Sample(began, stack, (used - used_before) / (checked_at - before))

    def _sleep_until_woken(self) -> None:
        """Sleep until an iteration begins. Each check wakes the processor, which an idle machine does not need."""
        self._wake.clear()
        self._selector.wake = self._wake.set
        if (
            self._selector.is_waiting and not self._stopping
        ):  # else the iteration may have begun before it could wake us
            self._wake.wait()

    def _blocked(self, began: float, took: float) -> None:
        if began < self._selector.started:
            return
        now = began + took
        if now - self._logged_at < self._selector.limits.quiet:
            self._suppressed += 1
            return
        suppressed, self._suppressed, self._logged_at = self._suppressed, 0, now
        sample = self._sample
        if sample is None or sample.began != began:
            sample = _Sample(began, "not sampled", 0.0)
        _log.warning(
            "loop blocked",
            seconds=round(took, 3),
            processor=round(sample.processor, 2),
            stack=sample.stack,
            suppressed=suppressed,
        )


def _stack(frame: FrameType | None) -> str:
    """The innermost frames first. Read from the frames, because `traceback` reads files."""
    lines: list[str] = []
    while frame is not None and len(lines) < _STACK_FRAMES:
        file = "/".join(frame.f_code.co_filename.split("/")[-2:])
        lines.append(f"{file}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(lines)
