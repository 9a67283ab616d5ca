"""LastUse: when each blob was last needed, on a durable clock, in a small file that a restart reads.

The file is written rarely (a restart may lose the last minutes), whole, by rename. Invariants: a digest that is named at
the time of writing is written as named, so time that was not observed never counts against it; a file that is missing,
truncated or invalid makes every blob young, never old.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec
import structlog

from autowasm import atomicfile
from autowasm.digest import Sha256Hex, sha256_hex

MAX_DOWNTIME: Final = 3600.0
"""Seconds credited for an absence over a boot. An error of an hour, in a grace of 24, does no harm in either direction."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class ClockState(msgspec.Struct, frozen=True, kw_only=True):
    """One moment on all clocks. Seconds."""

    boot: str
    """The kernel's id of this boot; empty if the kernel gives none."""
    since_boot: float
    wall: float

    @classmethod
    def now(cls) -> Self:
        """Blocks while /proc is read."""
        try:
            boot = _BOOT_ID.read_text().strip()
        except OSError:
            boot = ""
        return cls(boot=boot, since_boot=time.clock_gettime(time.CLOCK_BOOTTIME), wall=time.time())

    def passed_until(self, later: "ClockState") -> float:
        """Seconds from this moment to `later` that certainly passed; never negative."""
        since_boot = later.since_boot - self.since_boot
        if self.boot and self.boot == later.boot and since_boot >= 0:
            return since_boot
        away = later.wall - self.wall
        return min(max(away, 0.0), MAX_DOWNTIME) if math.isfinite(away) else 0.0


@dataclass(frozen=True, slots=True)
class DurableClock:
    """Seconds since the cache directory was first used: a monotonic clock that continues across restarts, not the time of day.

    While the process runs it is the monotonic clock: `start` there was `base` on this clock. Between two runs it advances by
    the kernel's clock since boot if the machine has not booted since. After a boot, or on another machine, it advances by the
    time of day, for at most `MAX_DOWNTIME`. Invariant: setting the clock, even by years, makes nothing older than that and decreases no age; running
    time always counts, so nothing stays young.
    """

    base: float
    start: float
    monotonic: Callable[[], float] = time.monotonic

    def now(self) -> float:
        """The current time."""
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
    """`DurableClock.now()` when the file was written."""
    used: dict[str, float | None]
    """None: named by an owner when the file was written."""


_DECODER: Final = msgspec.json.Decoder(_Document)


class LastUse:
    """Last uses by digest, on the clock `clock`. `eviction.py` decides which blobs are evicted."""

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
        """When the blob was last used; the current time for one that is named or unknown."""
        if sha256 in self._named:
            return self.clock.now()
        return self._used.get(sha256, self.clock.now())

    def observe(
        self, stored: Iterable[Sha256Hex], named: Callable[[Sha256Hex], bool], *, complete: bool
    ) -> bool:
        """Record which of the `stored` blobs are named now. True if that differs from before.

        `complete` False: some owners have not reported yet, so blobs that were named, or are new, still count as named.
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
        """Record that the blob was served at that time."""
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
    """Without any record: every blob counts as just used."""
    return LastUse(DurableClock(0.0, monotonic(), monotonic))


def load(
    path: Path,
    *,
    moment: Callable[[], ClockState] = ClockState.now,
    monotonic: Callable[[], float] = time.monotonic,
) -> LastUse:
    """The last uses in `path`, or none. Blocks. Never raises: a cache that starts young is no failure."""
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
        _log.warning("last-use times not readable; all blobs count as just used", error=str(error))
        return None
    if document.version != 1 or not math.isfinite(document.age) or document.age < 0:
        _log.warning("last-use times not understood; all blobs count as just used")
        return None
    return document


def save(path: Path, content: bytes) -> None:
    """Replace `path` durably. Blocks. Raises OSError; the file is then unchanged."""
    atomicfile.write(path, content, temporary=path.with_name(f"{path.name}.new"))
