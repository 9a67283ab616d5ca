"""A worker does not begin a test while too many threads want to run, as `make --max-load` does not begin a job.

A pytest plugin. Tests on real parts mostly wait, so there are more workers than processors. When all workers compute, each step takes many
times as long as alone, and the deadlines of clients and parts pass. Workers begin files with a length one after the other, so that each
sees the load of the one before. Invariant: together, the tests of a file wait no longer than the file's recorded length, so load
from outside at most doubles the time of a run.
"""

import fcntl
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import mean

import pytest

_LOAD = Path("/proc/loadavg")
"""Its fourth field is `runnable/all`: threads that run or wait for a processor (proc_loadavg(5))."""
_PER_PROCESSOR = 2
_POLL_SECONDS = 0.1
_SAMPLES = 10
"""Samples of which the mean counts: the load falls for moments, too."""
_LONG = 10.0
"""Seconds of a file that starts parts."""
_START_SECONDS = 2.0
"""Time in which the load of a file that starts parts becomes visible."""


def runnable_threads() -> int:
    """Threads that run or wait for a processor, besides the caller; 0 on a system other than Linux."""
    try:
        return int(_LOAD.read_text().split()[3].partition("/")[0]) - 1
    except FileNotFoundError:
        return 0


class Turn:
    """Held by one of the processes that use the same file (flock(2)). It ends with the process at the latest."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._held = -1

    def take(self) -> bool:
        """Whether this process has the turn now. It does not wait."""
        if self._held < 0:
            descriptor = os.open(self._file, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            self._held = descriptor
        return True

    def leave(self, *, after: float) -> None:
        """Another process may have the turn after so many seconds. No error without the turn."""
        held, self._held = self._held, -1
        if held >= 0:
            timer = threading.Timer(after, os.close, [held])
            timer.daemon = True
            timer.start()


class MaxLoad:
    """Delays tests of files with a recorded length. Others are too short to matter."""

    def __init__(
        self,
        seconds: Mapping[str, float],
        turn: Turn,
        *,
        limit: float = _PER_PROCESSOR * (os.cpu_count() or 1),
        load: Callable[[], int] = runnable_threads,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`seconds`: path of a test file below the root → its recorded length. `turn`: shared by all workers."""
        self._seconds = seconds
        self._turn = turn
        self._limit = limit
        self._load = load
        self._sleep = sleep
        self._clock = clock
        self._waited: defaultdict[str, float] = defaultdict(float)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Before the test, its fixtures and its timer: wait."""
        self.wait(item.nodeid.partition("::")[0])
        return (yield)

    def wait(self, file: str) -> None:
        """Return when a test of this file may begin."""
        length = self._seconds.get(file, 0)
        starts_parts = length >= _LONG and file not in self._waited
        begun = self._clock()
        deadline = begun + length - self._waited[file]
        loads: deque[int] = deque(maxlen=_SAMPLES)
        while self._clock() < deadline:
            if not starts_parts or self._turn.take():
                loads.append(self._load())
                if len(loads) in {1, _SAMPLES} and mean(loads) < self._limit:
                    break
            self._sleep(_POLL_SECONDS)
        self._waited[file] += self._clock() - begun
        self._turn.leave(after=_START_SECONDS)
