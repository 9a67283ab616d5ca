"""How long the event loop was held, and by what: a metric of every turn, and a watchdog that names the culprit.

Not a profiler: one stack for a turn (`turns.py`) that took too long. A thread looks now and then whether the turn that runs
is a long one, and sleeps for good while there is none. Invariants: the loop never waits for the watchdog; every turn longer than `LoopLimits.blocked`
is counted, and told with the stack of the moment unless one was told within `LoopLimits.quiet` seconds; turns of the start-up
are counted only, because imports and the first garbage collection make long ones and nothing depends on us yet.
"""

import asyncio
import contextlib
import math
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Final, Self

import structlog

from autowasm.telemetry.turns import TimedLoop, TimedSelector, Turns

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


def turns_of(loop: asyncio.AbstractEventLoop) -> Turns:
    """What is counted of this loop; of any but a TimedLoop that is nothing, for ever."""
    return loop.timing.turns if isinstance(loop, TimedLoop) else Turns()


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
        self._untold = 0
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
            self._untold += 1
            return
        untold, self._untold, self._told = self._untold, 0, now
        seen = self._seen
        if seen is None or seen.began != began:
            seen = _Look(began, "not seen", 0.0)
        _log.warning(
            "loop blocked",
            seconds=round(took, 3),
            processor=round(seen.processor, 2),
            stack=seen.stack,
            untold=untold,
        )


def _stack(frame: FrameType | None) -> str:
    """Where it is, innermost first. Read from the frames: `traceback` would look at files."""
    lines: list[str] = []
    while frame is not None and len(lines) < _STACK_FRAMES:
        file = "/".join(frame.f_code.co_filename.split("/")[-2:])
        lines.append(f"{file}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(lines)
