"""Clocks that a test controls: they stand still, jump by years, boot. No real machine does so on demand."""

import time
from dataclasses import dataclass, field

from autowasm.blobs.lastuse import ClockState


@dataclass
class FakeClock:
    """A clock that stands still until a test sets it."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeClocks:
    """`monotonic` begins at any number for each process; the real one is added so that nothing stands still."""

    boot: str = "first boot"
    since_boot: float = 1_000.0
    wall: float = 1_700_000_000.0
    process: float = 5.0
    _start: float = field(default_factory=time.monotonic)

    def monotonic(self) -> float:
        """A replacement of `time.monotonic`."""
        return self.process + time.monotonic() - self._start

    def moment(self) -> ClockState:
        """A replacement of `ClockState.now`."""
        return ClockState(boot=self.boot, since_boot=self.since_boot, wall=self.wall)

    def advance(self, seconds: float) -> None:
        """Let time pass on all clocks."""
        self.process += seconds
        self.since_boot += seconds
        self.wall += seconds

    def reboot(self, away: float = 0.0) -> None:
        """Another boot, `away` seconds later by the wall clock."""
        self.boot += " and another"
        self.since_boot = 1.0
        self.wall += away
