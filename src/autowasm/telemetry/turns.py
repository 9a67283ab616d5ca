"""An event loop whose turns are short and timed.

A turn is what the loop does between two waits; nobody else is served meanwhile, so its length is the delay that everybody
else had. asyncio handles all sockets that are ready in one turn: with thousands of sidecars that download, that is half a
second in which no lease is renewed and no probe answered. Here a turn takes a few, and the others wait for the next ones.
Invariants: what was ready first is handled first, so nobody starves; a socket that was closed or changed meanwhile is left
out (the kernel tells of it again if it is still ready). Timing costs about a microsecond a turn, and nothing while nothing
happens.
"""

import asyncio
import math
import selectors
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from autowasm.limits import LoopLimits

BOUNDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Upper bounds of the buckets, in seconds: the budgets are 1 to 50 ms."""

_Ready = tuple[selectors.SelectorKey, int]


@dataclass(slots=True)
class Turns:
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
        self.turns = Turns()
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
