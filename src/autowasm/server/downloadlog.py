"""DownloadLog: which addresses downloaded which module from this replica, and which got an error.

It records the last answer to an address for a digest, for a resend (ADR 17) and for the load report (ADR 23). Invariants: memory
is bounded, and made-up digests from clients cannot displace published ones; a download within the time that a document covers is
in the document; no document reveals a digest: a client must know the digest to ask for it.
"""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Protocol

import msgspec

from autowasm.digest import Sha256Hex
from autowasm.limits import DownloadLogLimits

_MAPPED: Final = "::ffff:"

# For one address: (monotonic time of the last complete download or -1, of the last error or -1, status of that error).
_LastRequests = tuple[float, float, int]
_NEVER: Final = -1.0
_NOTHING: Final[_LastRequests] = (_NEVER, _NEVER, 0)
_SLICE: Final = 500
"""Addresses of a document in one iteration of the loop: about half a millisecond."""
_SPARE: Final = 64
"""Addresses over the limit are dropped in batches of this size: finding the oldest in a dict walks over dropped entries."""


@dataclass(slots=True)
class _OfDigest:
    since: float
    """Every request since then is in `addresses`."""
    addresses: dict[str, _LastRequests] = field(default_factory=dict)
    """The longest unseen first. A plain dict, because copying it takes a hundredth of the time of an OrderedDict."""


class DownloadLog:
    """Downloads and errors of this replica. Times are seconds of the process's monotonic clock."""

    def __init__(self, limits: DownloadLogLimits, *, instance: str) -> None:
        self._limits = limits
        self._instance = instance
        # Not caches: an eviction ends the time for which the log is complete.
        self._published: OrderedDict[Sha256Hex, _OfDigest] = OrderedDict()
        self._unknown: OrderedDict[Sha256Hex, _OfDigest] = OrderedDict()
        self._errors = 0
        self._downloads = 0
        self.since = time.monotonic()
        """Start of the log."""
        self._complete_since = self.since
        """No published digest was dropped since then."""

    def served(self, sha256: Sha256Hex, address: str | None) -> None:
        """All bytes of the module were sent to `address`."""
        self._downloads += 1
        self._note(sha256, address, known=True, ok=True)

    def failed(self, sha256: Sha256Hex, address: str | None, status: int, *, known: bool) -> None:
        """`address` got an error. `known`: whether this replica knows the digest as published."""
        self._errors += 1
        self._note(sha256, address, known=known, ok=False, status=status)

    def summary(self) -> bytes:
        """JSON: `instance`, `up`, and the counts `errors` and `downloads`, which show whether there is anything new."""
        up = round(time.monotonic() - self.since, 3)
        document = {
            "instance": self._instance,
            "up": up,
            "errors": self._errors,
            "downloads": self._downloads,
        }
        return msgspec.json.encode(document)

    async def document(self, sha256: Sha256Hex) -> bytes:
        """JSON: `instance`, `up` (seconds that the log covers), and by address the ages in seconds of `ok` and `error`.

        It has ages, because the clocks of replicas differ. It is made in slices: a large mesh has tens of thousands of addresses.
        """
        now, since = time.monotonic(), self._complete_since
        tables: list[dict[str, _LastRequests]] = []
        for table in (self._unknown, self._published):  # rarely in both; `_published` counts
            if (found := table.get(sha256)) is not None:
                # A copy, so that addresses that are dropped between slices are still in it.
                tables.insert(0, found.addresses.copy())
                since = found.since
        start = {"instance": self._instance, "up": round(now - since, 3), "seen": {}}
        parts = [msgspec.json.encode(start).removesuffix(b"}}")]
        for number, requests in enumerate(tables):
            addresses = iter(requests.items())
            while piece := list(islice(addresses, _SLICE)):
                new = (one for one in piece if not number or one[0] not in tables[0])
                if ages := {address: _ages(one, now) for address, one in new}:
                    parts += (b",", msgspec.json.encode(ages)[1:-1])
                await asyncio.sleep(0)
        del parts[1:2]  # the comma before the first
        return b"".join((*parts, b"}}"))

    def _note(
        self, sha256: Sha256Hex, address: str | None, *, known: bool, ok: bool, status: int = 0
    ) -> None:
        if not address:
            return
        table = self._published if known else self._unknown
        now = time.monotonic()
        found = table.get(sha256)
        if found is None:
            found = self._unknown.pop(sha256, None) or _OfDigest(self._complete_since)
            table[sha256] = found
            if len(table) > self._limits.digests:
                table.popitem(last=False)
                if known:
                    self._complete_since = now
        table.move_to_end(sha256)
        requests, address = found.addresses, address.removeprefix(_MAPPED)
        downloaded, refused, last = requests.pop(address, _NOTHING)
        requests[address] = (now, refused, last) if ok else (downloaded, now, status)
        if len(requests) > self._limits.addresses:
            spare = min(_SPARE, self._limits.addresses // 100)
            for oldest in list(islice(requests, len(requests) - self._limits.addresses + spare)):
                found.since = max(found.since, *requests.pop(oldest)[:2])


class PeerDownloads(Protocol):
    """The other replicas (`artifacts/peers.py`)."""

    async def query(self, path: str) -> list[bytes]:
        """A small document from each replica that has it."""

    def known(self) -> tuple[str, ...]:
        """Base URLs of the replicas."""


class AllReplicas:
    """The documents of all replicas, including ours."""

    def __init__(self, ours: DownloadLog, others: PeerDownloads | None) -> None:
        self._ours = ours
        self._others = others

    def count(self) -> int:
        """How many replicas should answer."""
        return 1 + (len(self._others.known()) if self._others is not None else 0)

    async def query(self, path: str) -> list[bytes]:
        """`/seen` or `/seen/<sha256>` of each replica, as on the blob port."""
        digest = path.removeprefix("/seen").removeprefix("/")
        own = await self._ours.document(Sha256Hex(digest)) if digest else self._ours.summary()
        return [own, *(await self._others.query(path) if self._others is not None else ())]


def _ages(requests: _LastRequests, now: float) -> dict[str, float | int]:
    downloaded, refused, status = requests
    ages: dict[str, float | int] = {}
    if downloaded != _NEVER:
        ages["ok"] = round(now - downloaded, 3)
    if refused != _NEVER:
        ages["error"] = round(now - refused, 3)
        ages["status"] = status
    return ages
