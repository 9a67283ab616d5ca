"""VerifiedReader: opens and hashes stored blobs before their bytes are served. Also the index and the lock of each digest.

Storing and removing are in `store.py`. Invariants: bytes are served only from a Blob whose file was hashed since the start
and is unchanged since; a digest's file is changed or checked by one task at a time; nothing here touches the disk on the
loop except fstat.
"""

import asyncio
import functools
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

import structlog
from cachetools import LRUCache

from autowasm.blobs import files
from autowasm.blobs.blob import Blob
from autowasm.blobs.files import Staging, finish, storage_errors
from autowasm.digest import Sha256Hex, Signature
from autowasm.errors import StorageError
from autowasm.limits import StoreLimits
from autowasm.net.pools import Closer, Pool
from autowasm.telemetry.metrics import Metrics


class KeyedLock:
    """One lock for each digest in use. Invariant: a lock exists as long as a task holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Sha256Hex, asyncio.Lock] = WeakValueDictionary()

    def of(self, sha256: Sha256Hex) -> asyncio.Lock:
        """The lock of `sha256`. Enter it at once: a lock without holder is dropped."""
        lock = self._locks.get(sha256)
        if lock is None:
            lock = self._locks[sha256] = asyncio.Lock()
        return lock


@dataclass(slots=True, eq=False)
class BlobEntry:
    """One stored blob of `size` bytes. `signature` is None until its bytes are hashed after the start."""

    sha256: Sha256Hex
    size: int
    signature: Signature | None = None
    served: float = float("-inf")
    """When it was last served, on the monotonic clock."""


class BlobIndex:
    """The stored blobs by digest, and the tasks that wait for one. Invariants: it never touches the disk; the gauges show its content."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._entries: dict[Sha256Hex, BlobEntry] = {}
        self._bytes = 0
        self._waiters: defaultdict[Sha256Hex, set[asyncio.Future[None]]] = defaultdict(set)

    def __contains__(self, sha256: object) -> bool:
        return sha256 in self._entries

    def get(self, sha256: Sha256Hex) -> BlobEntry | None:
        """The entry, if there is one."""
        return self._entries.get(sha256)

    def size(self, sha256: Sha256Hex) -> int:
        """Bytes. Raises KeyError."""
        return self._entries[sha256].size

    @property
    def total(self) -> int:
        """Bytes of all entries."""
        return self._bytes

    def digests(self) -> frozenset[Sha256Hex]:
        """All digests."""
        return frozenset(self._entries)

    def add(self, entry: BlobEntry) -> None:
        """Add or replace an entry, and wake the tasks that wait for it."""
        previous = self._entries.get(entry.sha256)
        self._entries[entry.sha256] = entry
        self._count(entry.size - (previous.size if previous else 0))
        for waiter in self._waiters.get(entry.sha256, ()):
            if not waiter.done():
                waiter.set_result(None)

    def remove(self, entry: BlobEntry) -> None:
        """Remove the entry, unless another has replaced it."""
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


T = TypeVar("T")

_log = structlog.get_logger(__name__)


class VerifiedReader:
    """Reads the files in `folder`, one for each entry of `index`."""

    def __init__(
        self,
        folder: Path,
        *,
        index: BlobIndex,
        locks: KeyedLock,
        staging: Staging,
        disk: Pool,
        closer: Closer,
        limits: StoreLimits,
        metrics: Metrics,
    ) -> None:
        self._folder = folder
        self._index = index
        self._locks = locks
        self._staging = staging
        self._disk = disk
        self._closer = closer
        self._limits = limits
        self._metrics = metrics
        self._open: LRUCache[Sha256Hex, Blob] = LRUCache(limits.open_files)

    def close(self) -> None:
        """Close every file. Sends in progress continue."""
        self._open.clear()

    def drop(self, sha256: Sha256Hex) -> None:
        """Close the blob's file: it is about to be replaced or removed."""
        self._open.pop(sha256, None)

    def ready(self, sha256: Sha256Hex) -> Blob | None:
        """See `BlobStore.ready`."""
        entry = self._index.get(sha256)
        return None if entry is None else self._ready(entry)

    async def open(self, sha256: Sha256Hex) -> Blob | None:
        """See `BlobStore.open`."""
        entry = self._index.get(sha256)
        if entry is None:
            return None
        return self._ready(entry) or await self._reopen(sha256)

    def _ready(self, entry: BlobEntry) -> Blob | None:
        """The open blob, unless its file changed or it was unused for so long that its pages may be evicted."""
        blob = self._open.get(entry.sha256)
        if blob is None:
            return None
        now = time.monotonic()
        if now - entry.served > self._limits.cold_after or not blob.is_unchanged():
            return None
        entry.served = now
        return blob

    async def _reopen(self, sha256: Sha256Hex) -> Blob | None:
        async with self._locks.of(sha256):
            entry = self._index.get(sha256)
            if entry is None:
                return None
            blob = self._ready(entry)  # another task may have opened it
            if blob is None:
                blob = await self._load(entry)
            if blob is not None:
                entry.served = time.monotonic()
                self._open[sha256] = blob
            return blob

    async def _load(self, entry: BlobEntry) -> Blob | None:
        self._open.pop(entry.sha256, None)

        def adopt(opened: tuple[int, Signature]) -> Blob:
            return Blob.adopt(entry.sha256, *opened, closer=self._closer)

        path = self._folder / entry.sha256
        job = functools.partial(files.open_verified, path, entry.sha256, known=entry.signature)
        opened = await self._read(entry, job, abandoned=adopt)  # adopted and dropped: closed
        if opened is None:
            return None
        entry.signature = opened[1]
        return adopt(opened)

    async def verify_all(self) -> None:
        """See `BlobStore.verify_all`."""
        for sha256 in sorted(self._index.digests()):
            try:
                await self._verify(sha256)
            except StorageError as error:
                _log.warning("blob not verified", digest=sha256, error=str(error))
            await asyncio.sleep(self._limits.verify_pause)

    async def _verify(self, sha256: Sha256Hex) -> None:
        async with self._locks.of(sha256):
            entry = self._index.get(sha256)
            if entry is not None and entry.signature is None:
                job = functools.partial(files.verify, self._folder / sha256, sha256)
                entry.signature = await self._read(entry, job, abandoned=lambda _: None)

    async def _read(
        self, entry: BlobEntry, job: Callable[[], T], *, abandoned: Callable[[T], object]
    ) -> T | None:
        """Run `job` on the entry's file. If the file is gone or damaged, remove the entry and return None."""
        with storage_errors(self._folder.parent, "reading a blob"):
            try:
                return await finish(self._disk, job, abandoned=abandoned)
            except FileNotFoundError:
                self._index.remove(entry)
                _log.warning("blob file removed by another process", digest=entry.sha256)
            except files.DamagedBlob as error:
                self._index.remove(entry)
                self._metrics.blobs_damaged.inc()
                _log.error("damaged blob quarantined", digest=entry.sha256, found=str(error))
                await self._staging.quarantine(self._folder / entry.sha256)
        return None
