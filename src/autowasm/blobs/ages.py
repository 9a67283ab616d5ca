"""Ages: a clock that only counts time which certainly passed, over restarts too.

Not the time of day. While the process runs it is the monotonic clock. From one run to the next it goes on by what the
kernel's clock since boot says, as long as the machine has not booted since; after a boot, or on another machine, the time
of day says how long the service was away, and is believed for `AWAY_MOST` only. Invariant: a clock that was set, forward or
back by years, makes nothing older than that, and nothing ages backwards; running time always counts, so nothing stays young.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec

AWAY_MOST: Final = 3600.0
"""Seconds credited for an absence over a boot. An hour wrong, of a grace of 24, hurts nobody in either direction."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One moment as seen on all clocks. Seconds."""

    boot: str
    """The kernel's id of this boot; empty where it tells none."""
    since_boot: float
    wall: float

    @classmethod
    def now(cls) -> Self:
        """Blocks for as long as /proc takes."""
        try:
            boot = _BOOT_ID.read_text().strip()
        except OSError:
            boot = ""
        return cls(boot=boot, since_boot=time.clock_gettime(time.CLOCK_BOOTTIME), wall=time.time())

    def passed_until(self, later: "Moment") -> float:
        """Seconds from here to `later` that certainly passed; never negative."""
        since_boot = later.since_boot - self.since_boot
        if self.boot and self.boot == later.boot and since_boot >= 0:
            return since_boot
        away = later.wall - self.wall
        return min(max(away, 0.0), AWAY_MOST) if math.isfinite(away) else 0.0


@dataclass(frozen=True, slots=True)
class Ages:
    """Seconds since the cache directory was first used. `start` on the monotonic clock was `base` on this one."""

    base: float
    start: float
    monotonic: Callable[[], float] = time.monotonic

    def now(self) -> float:
        """This moment."""
        return self.at(self.monotonic())

    def at(self, monotonic: float) -> float:
        """The moment at which the monotonic clock showed `monotonic`."""
        return self.base + (monotonic - self.start)
