"""Ages: a clock that only counts time which certainly passed, over restarts too.

Not the time of day. While the process runs it is the monotonic clock. From one run to the next it goes on by what the
kernel's clock since boot says, as long as the machine has not booted since; after a boot, or on another machine, the time
of day says how long the service was away, and is believed for `MAX_DOWNTIME` only. Invariant: a clock that was set, forward or
back by years, makes nothing older than that, and nothing ages backwards; running time always counts, so nothing stays young.

LastUse: when each blob was last needed, in a small file that a restart reads.

Not a decision about who goes. The file is written rarely (a restart may repeat what the last minutes taught), whole, by
rename. Invariants: what is named at the time of writing is written as such, so that time which nobody watched never counts
against it; a file that is missing, half or nonsense makes every blob young, never old.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec
import structlog

from autowasm.blobs.files import sync_directory
from autowasm.digest import Sha256Hex, sha256_hex

MAX_DOWNTIME: Final = 3600.0
"""Seconds credited for an absence over a boot. An hour wrong, of a grace of 24, hurts nobody in either direction."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class ClockState(msgspec.Struct, frozen=True, kw_only=True):
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

    def passed_until(self, later: "ClockState") -> float:
        """Seconds from here to `later` that certainly passed; never negative."""
        since_boot = later.since_boot - self.since_boot
        if self.boot and self.boot == later.boot and since_boot >= 0:
            return since_boot
        away = later.wall - self.wall
        return min(max(away, 0.0), MAX_DOWNTIME) if math.isfinite(away) else 0.0


@dataclass(frozen=True, slots=True)
class DurableClock:
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


_LARGEST: Final = 64 * 1024 * 1024
"""Bytes of the file that are read: half a million blobs."""

_log = structlog.get_logger(__name__)


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    saved: ClockState
    age: float
    """`DurableClock.now()` when it was written."""
    used: dict[str, float | None]
    """None: named by somebody when this was written."""


_DECODER: Final = msgspec.json.Decoder(_Document)


class LastUse:
    """Last uses by digest, on the clock `clock`."""

    def __init__(
        self,
        clock: DurableClock,
        used: dict[Sha256Hex, float] | None = None,
        named: Iterable[Sha256Hex] = (),
    ) -> None:
        self.clock = clock
        self._used = used or {}
        self._named = set(named)

    def last(self, sha256: Sha256Hex) -> float:
        """When it was last used; now, for one that is named or that we never heard of."""
        if sha256 in self._named:
            return self.clock.now()
        return self._used.get(sha256, self.clock.now())

    def observe(
        self, stored: Iterable[Sha256Hex], named: Callable[[Sha256Hex], bool], *, complete: bool
    ) -> bool:
        """Take down which of the `stored` blobs somebody names now. True if that differs from before.

        `complete` False: not everybody was heard yet, so what was named, or is new to us, still counts as named.
        """
        now = self.clock.now()
        used: dict[Sha256Hex, float] = {}
        still: set[Sha256Hex] = set()
        for sha256 in stored:
            before = sha256 in self._named
            if named(sha256) or (not complete and (before or sha256 not in self._used)):
                still.add(sha256)
            until_now = before or sha256 in still
            used[sha256] = now if until_now else self._used.get(sha256, now)
        changed = used.keys() != self._used.keys() or still != self._named
        self._used, self._named = used, still
        return changed

    def served(self, sha256: Sha256Hex, monotonic: float) -> None:
        """It was sent to somebody then."""
        if sha256 in self._used:
            self._used[sha256] = max(self._used[sha256], self.clock.at(monotonic))

    def encode(self, moment: ClockState) -> bytes:
        """The file's content."""
        used: dict[str, float | None] = {
            sha256: None if sha256 in self._named else round(at, 1)
            for sha256, at in self._used.items()
        }
        document = _Document(version=1, saved=moment, age=round(self.clock.now(), 1), used=used)
        return msgspec.json.encode(document)


def unknown(monotonic: Callable[[], float] = time.monotonic) -> LastUse:
    """One that was told nothing: every blob counts as just used."""
    return LastUse(DurableClock(0.0, monotonic(), monotonic))


def load(
    path: Path,
    *,
    moment: Callable[[], ClockState] = ClockState.now,
    monotonic: Callable[[], float] = time.monotonic,
) -> LastUse:
    """What `path` tells, or an empty one. Blocks. Never raises: a cache that starts young is no failure."""
    document = _read(path)
    if document is None:
        return unknown(monotonic)
    age = document.age + document.saved.passed_until(moment())
    used: dict[Sha256Hex, float] = {}
    for name, at in document.used.items():
        with contextlib.suppress(ValueError):
            used[sha256_hex(name)] = age if at is None else min(at, age)
    named = [sha256 for sha256 in used if document.used[sha256] is None]
    return LastUse(DurableClock(age, monotonic(), monotonic), used, named)


def _read(path: Path) -> _Document | None:
    try:
        with path.open("rb") as file:
            document = _DECODER.decode(file.read(_LARGEST))
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeError) as error:
        _log.warning("last uses not readable, all blobs count as just used", reason=str(error))
        return None
    if document.version != 1 or not math.isfinite(document.age) or document.age < 0:
        _log.warning("last uses not understood, all blobs count as just used")
        return None
    return document


def save(path: Path, content: bytes) -> None:
    """Replace `path` durably. Blocks. Raises OSError; the file is then what it was."""
    half = path.with_name(f"{path.name}.new")
    try:
        with half.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        half.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
