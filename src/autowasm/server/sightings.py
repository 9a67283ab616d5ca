"""Sightings: who downloaded which module from this replica, and whom it had to answer with an error.

Not a log and not a metric: it is asked "what did this address get for this digest, last?" by healing (design D16) and by proof
of load. Invariants: memory is bounded, and digests that clients invent cannot push out those that are published; nobody
learns of a digest here: one has to know it to ask.
"""

import json
import time
from collections import OrderedDict
from typing import Final, Protocol

from autowasm.digest import Sha256Hex
from autowasm.limits import SightingLimits

_MAPPED: Final = "::ffff:"

# Of one address: (monotonic time of the last whole download or -1, of the last error or -1, status of that error).
_Seen = tuple[float, float, int]
_NEVER: Final = -1.0
_NOTHING: Final[_Seen] = (_NEVER, _NEVER, 0)


class Sightings:
    """What this replica saw. Times are seconds of the process's monotonic clock."""

    def __init__(self, limits: SightingLimits, *, instance: str) -> None:
        self._limits = limits
        self._instance = instance
        self._published: OrderedDict[Sha256Hex, OrderedDict[str, _Seen]] = OrderedDict()
        self._unknown: OrderedDict[Sha256Hex, OrderedDict[str, _Seen]] = OrderedDict()
        self._errors = 0
        self._downloads = 0
        self.since = time.monotonic()
        """From when on we could be asked."""

    def served(self, sha256: Sha256Hex, address: str | None) -> None:
        """All bytes of the module were sent there."""
        self._downloads += 1
        self._note(sha256, address, known=True, ok=True)

    def failed(self, sha256: Sha256Hex, address: str | None, status: int, *, known: bool) -> None:
        """It was answered with an error. `known`: whether the digest is published as far as we know."""
        self._errors += 1
        self._note(sha256, address, known=known, ok=False, status=status)

    def summary(self) -> bytes:
        """JSON: `instance`, `up`, `errors` and `downloads`, how many there were: whether it is worth to ask for more."""
        up = round(time.monotonic() - self.since, 3)
        document = {
            "instance": self._instance,
            "up": up,
            "errors": self._errors,
            "downloads": self._downloads,
        }
        return json.dumps(document).encode()

    def document(self, sha256: Sha256Hex) -> bytes:
        """JSON: `instance`, `up` (seconds that we can be asked), and by address the ages in seconds of `ok` and `error`.

        Ages, because the clocks of replicas differ.
        """
        now = time.monotonic()
        seen = {
            address: _ages(one, now)
            for table in (self._unknown, self._published)
            for address, one in table.get(sha256, {}).items()
        }
        return json.dumps(
            {"instance": self._instance, "up": round(now - self.since, 3), "seen": seen}
        ).encode()

    def _note(
        self, sha256: Sha256Hex, address: str | None, *, known: bool, ok: bool, status: int = 0
    ) -> None:
        if not address:
            return
        table = self._published if known else self._unknown
        seen = table.get(sha256)
        if seen is None:
            seen = table[sha256] = self._unknown.pop(sha256, OrderedDict())
            if len(table) > self._limits.digests:
                table.popitem(last=False)
        table.move_to_end(sha256)
        address = address.removeprefix(_MAPPED)
        now = time.monotonic()
        downloaded, refused, last = seen.pop(address, _NOTHING)
        seen[address] = (now, refused, last) if ok else (downloaded, now, status)
        if len(seen) > self._limits.addresses:
            seen.popitem(last=False)


class Others(Protocol):
    """The other replicas (`artifacts.peers`)."""

    async def ask(self, path: str) -> list[bytes]:
        """A small document from each that has one."""

    def known(self) -> tuple[str, ...]:
        """Where they are."""


class AllReplicas:
    """What all replicas saw: our own documents, and those of the others."""

    def __init__(self, ours: Sightings, others: Others | None) -> None:
        self._ours = ours
        self._others = others

    def count(self) -> int:
        """How many should answer."""
        return 1 + (len(self._others.known()) if self._others is not None else 0)

    async def ask(self, path: str) -> list[bytes]:
        """`/seen` or `/seen/<sha256>`, as the blob port answers it."""
        digest = path.removeprefix("/seen").removeprefix("/")
        own = self._ours.document(Sha256Hex(digest)) if digest else self._ours.summary()
        return [own, *(await self._others.ask(path) if self._others is not None else ())]


def _ages(seen: _Seen, now: float) -> dict[str, float | int]:
    downloaded, refused, status = seen
    ages: dict[str, float | int] = {}
    if downloaded != _NEVER:
        ages["ok"] = round(now - downloaded, 3)
    if refused != _NEVER:
        ages["error"] = round(now - refused, 3)
        ages["status"] = status
    return ages
