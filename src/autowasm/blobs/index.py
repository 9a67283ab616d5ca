"""Index: which blobs the store has, and who waits for one.

Not the files: it never touches the disk. Invariant: the gauges show what it holds.
"""

import asyncio
from collections import defaultdict
from dataclasses import dataclass

from autowasm.blobs.blob import Signature
from autowasm.digest import Sha256Hex
from autowasm.telemetry.metrics import Metrics


@dataclass(slots=True, eq=False)
class Entry:
    """One stored blob of `size` bytes. `signature` is None until its bytes were hashed since the start."""

    sha256: Sha256Hex
    size: int
    signature: Signature | None = None
    served: float = float("-inf")
    """When it was last handed out, on the monotonic clock."""


class Index:
    """Entries by digest."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._entries: dict[Sha256Hex, Entry] = {}
        self._bytes = 0
        self._waiters: defaultdict[Sha256Hex, set[asyncio.Future[None]]] = defaultdict(set)

    def __contains__(self, sha256: object) -> bool:
        return sha256 in self._entries

    def get(self, sha256: Sha256Hex) -> Entry | None:
        """The entry, if there is one."""
        return self._entries.get(sha256)

    def size(self, sha256: Sha256Hex) -> int:
        """Bytes. Raises KeyError."""
        return self._entries[sha256].size

    @property
    def total(self) -> int:
        """Bytes of all."""
        return self._bytes

    def digests(self) -> frozenset[Sha256Hex]:
        """All digests."""
        return frozenset(self._entries)

    def add(self, entry: Entry) -> None:
        """Add or replace; wakes those who wait for it."""
        previous = self._entries.get(entry.sha256)
        self._entries[entry.sha256] = entry
        self._count(entry.size - (previous.size if previous else 0))
        for waiter in self._waiters.get(entry.sha256, ()):
            if not waiter.done():
                waiter.set_result(None)

    def remove(self, entry: Entry) -> None:
        """Remove it, unless another has taken its place."""
        if self._entries.get(entry.sha256) is entry:
            del self._entries[entry.sha256]
            self._count(-entry.size)

    def _count(self, difference: int) -> None:
        self._bytes += difference
        self._metrics.blobs.set(len(self._entries))
        self._metrics.blob_bytes.set(self._bytes)

    async def wait_for(self, sha256: Sha256Hex) -> None:
        """Return once there is an entry."""
        while sha256 not in self._entries:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiters = self._waiters[sha256]
            waiters.add(waiter)
            try:
                await waiter
            finally:
                waiters.discard(waiter)
                if not waiters:
                    self._waiters.pop(sha256, None)
