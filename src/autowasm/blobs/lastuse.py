"""LastUse: when each blob was last needed, in a small file that a restart reads.

Not a decision about who goes. The file is written rarely (a restart may repeat what the last minutes taught), whole, by
rename. Invariants: what is named at the time of writing is written as such, so that time which nobody watched never counts
against it; a file that is missing, half or nonsense makes every blob young, never old.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from autowasm.blobs.ages import Ages, Moment
from autowasm.blobs.files import sync_directory
from autowasm.digest import Sha256Hex, sha256_hex

_LARGEST: Final = 64 * 1024 * 1024
"""Bytes of the file that are read: half a million blobs."""

_log = structlog.get_logger(__name__)


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    saved: Moment
    age: float
    """`Ages.now()` when it was written."""
    used: dict[str, float | None]
    """None: named by somebody when this was written."""


_DECODER: Final = msgspec.json.Decoder(_Document)


class LastUse:
    """Last uses by digest, on the clock `ages`."""

    def __init__(
        self,
        ages: Ages,
        used: dict[Sha256Hex, float] | None = None,
        named: Iterable[Sha256Hex] = (),
    ) -> None:
        self.ages = ages
        self._used = used or {}
        self._named = set(named)

    def last(self, sha256: Sha256Hex) -> float:
        """When it was last used; now, for one that is named or that we never heard of."""
        if sha256 in self._named:
            return self.ages.now()
        return self._used.get(sha256, self.ages.now())

    def observe(
        self, stored: Iterable[Sha256Hex], named: Callable[[Sha256Hex], bool], *, complete: bool
    ) -> bool:
        """Take down which of the `stored` blobs somebody names now. True if that differs from before.

        `complete` False: not everybody was heard yet, so what was named, or is new to us, still counts as named.
        """
        now = self.ages.now()
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
            self._used[sha256] = max(self._used[sha256], self.ages.at(monotonic))

    def encode(self, moment: Moment) -> bytes:
        """The file's content."""
        used: dict[str, float | None] = {
            sha256: None if sha256 in self._named else round(at, 1)
            for sha256, at in self._used.items()
        }
        document = _Document(version=1, saved=moment, age=round(self.ages.now(), 1), used=used)
        return msgspec.json.encode(document)


def unknown(monotonic: Callable[[], float] = time.monotonic) -> LastUse:
    """One that was told nothing: every blob counts as just used."""
    return LastUse(Ages(0.0, monotonic(), monotonic))


def load(
    path: Path,
    *,
    moment: Callable[[], Moment] = Moment.now,
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
    return LastUse(Ages(age, monotonic(), monotonic), used, named)


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
