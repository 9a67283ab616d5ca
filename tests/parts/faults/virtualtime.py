"""Time that passes at once for `wasmer` processes: an interval of a minute takes as long as the work at its end.

For periodic and rate-limited work of wasmer (polls, checks of Pods, limits of writes); other tests cover the intervals
themselves in virtual time. Calls in flight when time passes reach their deadline, so a test lets time pass while there are
none. A Lease must last longer than the time that passes. Invariant: time passes on both clocks (`clock/sitecustomize.py`), and
all timers that are due by then fire before `pass_` returns.
"""

import asyncio
import mmap
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from tests.parts import wire
from tests.parts.wasmer import Wasmer

_CLOCK = Path(__file__).with_name("clock")


class VirtualTime:
    """Start processes with `environment`; they read `file`."""

    def __init__(self, file: Path) -> None:
        file.write_bytes(struct.pack("q", 0))
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), 8)
        self._file = file

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for the processes, and for no others."""
        return {**os.environ, **self.variables}

    @property
    def variables(self) -> dict[str, str]:
        """Additional environment variables of the processes."""
        return {"PYTHONPATH": str(_CLOCK), "AUTOWASM_TEST_PASSED": str(self._file)}

    @property
    def passed(self) -> float:
        """Seconds by which the processes' clocks are ahead of the system's."""
        nanoseconds: int = struct.unpack_from("q", self._memory)[0]
        return nanoseconds / 1e9

    def time(self) -> float:
        """The processes' wall clock: seconds since the epoch."""
        return time.time() + self.passed

    def monotonic(self) -> float:
        """Their monotonic clock."""
        return time.monotonic() + self.passed

    async def pass_(self, seconds: float, servers: Iterable[Wasmer]) -> None:
        """Let this much time pass for the processes, and wake the running ones of `servers`. Raises OSError if one does not answer."""
        assert seconds > 0
        self._memory[:] = struct.pack("q", round((self.passed + seconds) * 1e9))
        # A sleeping event loop has already computed its timeout: any event makes it read the clock again.
        running = [one for one in servers if one.process.alive]
        await asyncio.gather(*(wire.get(f"http://{one.admin}/healthz") for one in running))
