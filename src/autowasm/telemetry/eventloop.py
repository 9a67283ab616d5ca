"""Python's garbage collector, told not to hold the loop.

A full collection looks at every container object: with some thousand connections it takes 0.1 s, in the middle of serving
them. What was imported never becomes garbage, and what is thrown away is nearly all found young. Invariant: nothing is
switched off; a full collection still comes, seldom.

An event loop whose turns are short and timed.

A turn is what the loop does between two waits; nobody else is served meanwhile, so its length is the delay that everybody
else had. asyncio handles all sockets that are ready in one turn: with thousands of sidecars that download, that is half a
second in which no lease is renewed and no probe answered. Here a turn takes a few, and the others wait for the next ones.
Invariants: what was ready first is handled first, so nobody starves; a socket that was closed or changed meanwhile is left
out (the kernel tells of it again if it is still ready). Timing costs about a microsecond a turn, and nothing while nothing
happens.

How long the event loop was held, and by what: a metric of every turn, and a watchdog that names the culprit.

Not a profiler: one stack for a turn (`eventloop.py`) that took too long. A thread looks now and then whether the turn that runs
is a long one, and sleeps for good while there is none. Invariants: the loop never waits for the watchdog; every turn longer than `LoopLimits.blocked`
is counted, and told with the stack of the moment unless one was told within `LoopLimits.quiet` seconds; turns of the start-up
are counted only, because imports and the first garbage collection make long ones and nothing depends on us yet.
"""

import asyncio
import contextlib
import gc
import math
import selectors
import sys
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Final, Self

import structlog

from autowasm.limits import LoopLimits

YOUNG: Final = 5_000
"""Objects after which the youngest are looked at: a third of a millisecond."""
MIDDLE: Final = 10
"""Such looks until those that survived one are looked at: at most 50 000 objects."""
OLD: Final = 200
"""Such looks until all are looked at: after ten million objects that were made and kept."""


def tame() -> None:
    """Call once everything is imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)


BOUNDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Upper bounds of the buckets, in seconds: the budgets are 1 to 50 ms."""

_Ready = tuple[selectors.SelectorKey, int]


@dataclass(slots=True)
class LoopTiming:
    """All turns so far: how many by the bound that they kept (the last: none), and how long they were together."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0
    longest: float = 0.0
    """Since somebody last set it to 0."""
    blocked: int = 0


class TimedSelector(selectors.DefaultSelector):
    """The selector of a loop. Everything but `select` is the platform's own."""

    def __init__(self, limits: LoopLimits | None = None) -> None:
        super().__init__()
        self.limits = limits or LoopLimits()
        self.turns = LoopTiming()
        self._later: deque[_Ready] = deque()
        self.began = 0.0
        """When the latest turn began, on time.perf_counter."""
        self.waits = True
        """Whether that one is over."""
        self.wake: Callable[[], None] | None = None
        """Called once, as the next turn begins; must not wait."""
        self.on_blocked: Callable[[float, float], None] | None = None
        """Called with the start and the length of a long turn; runs on the loop and must not wait."""
        self.started = math.inf
        """When start-up was complete, on time.perf_counter; infinity: it is not."""

    def select(self, timeout: float | None = None) -> list[_Ready]:
        """Wait, unless some are ready still. A turn ends as this is called, and the next one begins as it returns."""
        if not self.waits:
            self.waits = True
            self._ended(time.perf_counter() - self.began)
        ready = self._rest() if self._later else self._first(super().select(timeout))
        self.began = time.perf_counter()
        self.waits = False
        if self.wake is not None:
            wake, self.wake = self.wake, None
            wake()
        return ready

    def _first(self, ready: list[_Ready]) -> list[_Ready]:
        most = self.limits.ready
        if len(ready) <= most:
            return ready
        self._later.extend(ready[most:])
        return ready[:most]

    def _rest(self) -> list[_Ready]:
        known = self.get_map()
        ready: list[_Ready] = []
        while self._later and len(ready) < self.limits.ready:
            key, events = self._later.popleft()
            if known.get(key.fd) is key:
                ready.append((key, events))
        return ready

    def _ended(self, took: float) -> None:
        turns = self.turns
        turns.counts[bisect_left(BOUNDS, took)] += 1
        turns.seconds += took
        turns.longest = max(turns.longest, took)
        if took > self.limits.blocked:
            turns.blocked += 1
            if self.on_blocked is not None:
                self.on_blocked(self.began, took)


class TimedLoop(asyncio.SelectorEventLoop):
    """An event loop that knows its selector: `asyncio.Runner(loop_factory=TimedLoop)`."""

    def __init__(self) -> None:
        self.timing = TimedSelector()
        super().__init__(self.timing)


_log = structlog.get_logger(__name__)

_STACK_FRAMES: Final = 12
_LOOK_SHARE: Final = 0.4
"""Between two looks, as a share of what counts as blocked."""


@contextlib.contextmanager
def watched_runner() -> Iterator[asyncio.Runner]:
    """An asyncio.Runner whose loop is timed and watched."""
    loop = TimedLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner, Watchdog(loop.timing):
        yield runner


def timing_of(loop: asyncio.AbstractEventLoop) -> LoopTiming:
    """What is counted of this loop; of any but a TimedLoop that is nothing, for ever."""
    return loop.timing.turns if isinstance(loop, TimedLoop) else LoopTiming()


def start_up_complete(loop: asyncio.AbstractEventLoop) -> None:
    """Report blocked turns that begin from now on. The first call counts; any loop but a TimedLoop is left as it is."""
    if isinstance(loop, TimedLoop):
        loop.timing.started = min(loop.timing.started, time.perf_counter())


def shut_down(loop: asyncio.AbstractEventLoop) -> None:
    """Report no more blocked turns: nobody waits for a loop that closes. Any loop but a TimedLoop is left as it is."""
    if isinstance(loop, TimedLoop):
        loop.timing.started = math.inf


@dataclass(frozen=True, slots=True)
class _Look:
    """What the thread saw in a turn that had lasted a while. `processor`: the share that the loop's thread had of one."""

    began: float
    stack: str
    processor: float


class Watchdog:
    """The thread that looks. A context manager, entered on the loop's own thread while the loop does not run.

    A stack is taken of every turn that is older than the time between two looks when it is looked at; two looks fit well
    into `LoopLimits.blocked`, so no long turn is missed.
    """

    def __init__(self, selector: TimedSelector) -> None:
        self._selector = selector
        self._look = _LOOK_SHARE * selector.limits.blocked
        self._wanted = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="loop watchdog", daemon=True)
        self._seen: _Look | None = None
        self._told = -math.inf
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
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        selector, clock = self._selector, time.pthread_getcpuclockid(self._loop_thread)
        looked, used, latest = time.perf_counter(), time.clock_gettime(clock), 0.0
        while not self._stopping:
            time.sleep(self._look)
            before, looked, used_before = looked, time.perf_counter(), used
            used = time.clock_gettime(clock)
            began = selector.began
            if selector.waits:
                # With turns all the time, being woken by each costs more than to look.
                if began == latest:
                    self._sleep_until_wanted()
                    looked, used = time.perf_counter(), time.clock_gettime(clock)
                latest = began
                continue
            if looked - began < self._look:
                continue
            stack = _stack(sys._current_frames().get(self._loop_thread))
            if (
                selector.began == began and not selector.waits
            ):  # else the stack is of another moment
                self._seen = _Look(began, stack, (used - used_before) / (looked - before))

    def _sleep_until_wanted(self) -> None:
        """Until a turn begins. Each look costs a wake-up of the processor, which idle machines do not need."""
        self._wanted.clear()
        self._selector.wake = self._wanted.set
        if (
            self._selector.waits and not self._stopping
        ):  # else the turn may have begun before it could wake us
            self._wanted.wait()

    def _blocked(self, began: float, took: float) -> None:
        if began < self._selector.started:
            return
        now = began + took
        if now - self._told < self._selector.limits.quiet:
            self._suppressed += 1
            return
        suppressed, self._suppressed, self._told = self._suppressed, 0, now
        seen = self._seen
        if seen is None or seen.began != began:
            seen = _Look(began, "not seen", 0.0)
        _log.warning(
            "loop blocked",
            seconds=round(took, 3),
            processor=round(seen.processor, 2),
            stack=seen.stack,
            suppressed=suppressed,
        )


def _stack(frame: FrameType | None) -> str:
    """Where it is, innermost first. Read from the frames: `traceback` would look at files."""
    lines: list[str] = []
    while frame is not None and len(lines) < _STACK_FRAMES:
        file = "/".join(frame.f_code.co_filename.split("/")[-2:])
        lines.append(f"{file}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(lines)
