"""BlobStore: verified module bytes on disk, one file for each sha256.

    <directory>/blobs/<sha256>   what is served
    <directory>/staging/         work in progress; emptied at start
    <directory>/damaged/         files whose bytes changed outside the store, for inspection
    <directory>/lock
    <directory>/last-use.json    `lastuse.py`

VerifiedReader opens and hashes stored blobs before their bytes are served. Admission and eviction are separate (`eviction.py`).
Invariants: a file in `blobs/` has its digest (hashed, fsynced, then renamed), so a crash at any point leaves nothing to repair;
every blob enters the store through `Admission.committing`; bytes are served only from a Blob whose file was hashed since the start
and is unchanged since; a digest's file is changed or checked by one task at a time; one process uses a cache directory; nothing here
touches the disk on the loop except fstat.
"""

import asyncio
import contextlib
import fcntl
import functools
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar
from weakref import WeakValueDictionary

import structlog
from cachetools import LRUCache

from autowasm import atomicfile
from autowasm.blobs import files
from autowasm.blobs.files import (
    Blob,
    Stage,
    Staging,
    SyncedFile,
    finish,
    is_storage_failure,
    storage_errors,
)
from autowasm.digest import HashedFile, Sha256Hex, Signature
from autowasm.errors import StorageError
from autowasm.limits import StoreLimits
from autowasm.net.pools import Closer, Pool, Pools
from autowasm.reasons import Reason
from autowasm.telemetry.metrics import Metrics

T = TypeVar("T")

_log = structlog.get_logger(__name__)


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


class Reservation(Protocol):
    """Room in a namespace's quota for a blob that it is about to pin."""

    def hold(self, sha256: Sha256Hex, size: int) -> None:
        """Keep the stored blob until it is pinned, for a minute at most.

        Raises StorageError (`NamespaceShareExceeded`).
        """


class Admission(Protocol):
    """Admission of new blobs: finds room for them or refuses them. All methods raise StorageError."""

    def reserve(
        self,
        namespace: str,
        *,
        owner: str = "",
        sha256: Sha256Hex | None = None,
        size: int | None = None,
    ) -> AbstractAsyncContextManager[Reservation]:
        """Room in the namespace's quota for a blob, as far as digest and size are known (`NamespaceShareExceeded`).

        Modules that `owner` alone has published do not count: the blob will replace them. Shortly after a start it waits until
        the modules that the namespace has published are known.
        """

    def reserve_space(self, size: int | None) -> AbstractAsyncContextManager[None]:
        """Room on the volume for fetching a module of `size` bytes; None: not known yet (`StorageFull`)."""

    def committing(self, sha256: Sha256Hex, size: int) -> AbstractAsyncContextManager[None]:
        """Room in the budget while the blob is stored inside the context (`StorageFull`)."""


class _NoReservation:
    def hold(self, sha256: Sha256Hex, size: int) -> None:
        pass


class AdmitAll:
    """No budget and no eviction: for `wasmc`, and for tests of other parts."""

    @contextlib.asynccontextmanager
    async def reserve(
        self,
        namespace: str,
        *,
        owner: str = "",
        sha256: Sha256Hex | None = None,
        size: int | None = None,
    ) -> AsyncIterator[Reservation]:
        """Always admits."""
        yield _NoReservation()

    @contextlib.asynccontextmanager
    async def reserve_space(self, size: int | None) -> AsyncIterator[None]:
        """Always admits."""
        yield

    @contextlib.asynccontextmanager
    async def committing(self, sha256: Sha256Hex, size: int) -> AsyncIterator[None]:
        """Always admits."""
        yield


_PID_WIDTH: Final = 15
"""Characters for the process id: a fixed width, so that a full disk need not allocate a new block for it."""


class DirectoryLock:
    """One process for each cache directory, by flock on `path`. Blocking calls: run them in a thread.

    Invariant: the kernel releases the lock whenever the process ends, so a crash leaves no stale lock. The file stays, because
    removing it would let two processes lock two different files.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int

    def acquire(self) -> None:
        """Raises StorageError (`CacheDirectoryInUse`) naming the holder's process id."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                raise StorageError(
                    f"the cache directory {self._path.parent} is in use by another process (pid {holder}): "
                    "stop that process, or use another directory with --cache-dir",
                    reason=Reason.CACHE_DIRECTORY_IN_USE,
                ) from error
            with contextlib.suppress(OSError):  # disk full: the pid is informative
                os.pwrite(fd, f"{os.getpid():<{_PID_WIDTH}}\n".encode(), 0)
                os.ftruncate(fd, _PID_WIDTH + 1)
            stack.pop_all()
        self._fd = fd

    def release(self) -> None:
        """Release the directory. Call once, after `acquire`."""
        os.close(self._fd)


class BlobStore:
    """The store in `directory`, which is created if missing. An async context manager.

    Entering raises StorageError: `CacheDirectoryInUse` if another process holds the directory, `StorageUnavailable` if it
    cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        *,
        pools: Pools,
        metrics: Metrics,
        limits: StoreLimits | None = None,
    ) -> None:
        self.admission: Admission = AdmitAll()  # set once, before the first commit
        self.directory = directory
        self._blobs = directory / "blobs"
        self._disk = pools.disk
        limits = limits or StoreLimits()
        self._staging = Staging(
            directory / "staging", directory / "damaged", disk=pools.disk, limits=limits
        )
        self._lock = DirectoryLock(directory / "lock")
        self._index = BlobIndex(metrics)
        self._locks = KeyedLock()
        self._reads = VerifiedReader(
            self._blobs,
            index=self._index,
            locks=self._locks,
            staging=self._staging,
            disk=pools.disk,
            closer=pools.closer,
            limits=limits,
            metrics=metrics,
        )

    async def __aenter__(self) -> Self:
        with storage_errors(self.directory, "opening it"):
            found, foreign = await self._disk.run(self._prepare)
        for sha256, size in found.items():
            self._index.add(BlobEntry(sha256, size))
        if foreign:
            _log.warning("unexpected names in the blob directory", names=foreign[:10])
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._reads.close()
        self._lock.release()

    def _prepare(self) -> tuple[dict[Sha256Hex, int], list[str]]:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            for folder in (self._blobs, self._staging.directory, self._staging.damaged):
                folder.mkdir(exist_ok=True)
            files.clear(self._staging.directory)
            atomicfile.sync_directory(self.directory)
            return files.scan(self._blobs)
        except BaseException:
            self._lock.release()
            raise

    def __contains__(self, sha256: object) -> bool:
        return sha256 in self._index

    def size(self, sha256: Sha256Hex) -> int:
        """Bytes of a stored blob. Raises KeyError."""
        return self._index.size(sha256)

    def digests(self) -> frozenset[Sha256Hex]:
        """All stored digests."""
        return self._index.digests()

    @property
    def total(self) -> int:
        """Bytes of all stored blobs."""
        return self._index.total

    def served_at(self, sha256: Sha256Hex) -> float:
        """When the blob was last served, on the monotonic clock; minus infinity: not since the start."""
        entry = self._index.get(sha256)
        return entry.served if entry else float("-inf")

    def path(self, sha256: Sha256Hex) -> Path:
        """Where the blob is, or would be. To serve it use `open`, because the file may have changed."""
        return self._blobs / sha256

    async def wait_for(self, sha256: Sha256Hex) -> None:
        """Return once the blob is stored."""
        await self._index.wait_for(sha256)

    @contextlib.asynccontextmanager
    async def stage(self) -> AsyncIterator[Stage]:
        """A private folder for the file that `commit` takes. The folder is removed at exit.

        Raises StorageError; errors of the disk in the block become StorageErrors too.
        """
        with storage_errors(self.directory, "staging a blob"):
            folder = await self._staging.make()
        try:
            with storage_errors(self.directory, "writing a blob", among=is_storage_failure):
                yield Stage(folder / "module")
        finally:
            await self._staging.remove(folder)

    def settle(
        self, stage: Stage, expected: Sha256Hex | None, *, hashed: HashedFile | None = None
    ) -> asyncio.Future[SyncedFile]:
        """Hash and sync `stage.path` in the background: most of the work of `commit`.

        `expected`: None if no digest is promised; the result has the digest. `hashed`: the hash of the file if its bytes were hashed while they were
        written; an unchanged file is then only synced. Raises ContentRejected (`DigestMismatch`)
        and OSErrors.
        """
        job = functools.partial(files.settle, stage.path, expected, hashed=hashed)
        return asyncio.wrap_future(self._disk.submit(job))

    async def commit(
        self, stage: Stage, sha256: Sha256Hex, *, settled: SyncedFile | None = None
    ) -> int:
        """Store `stage.path` under `sha256`, durably; returns its size in bytes.

        `settled`: what `settle` returned. Raises ContentRejected (`DigestMismatch`) and StorageError (`StorageFull`, `StorageUnavailable`).
        """

        def stored(signature: Signature) -> None:
            self._reads.drop(sha256)
            self._index.add(BlobEntry(sha256, signature.size, signature))

        job = functools.partial(files.commit, stage.path, self.path(sha256), settled=settled)
        with storage_errors(self.directory, "committing a blob"):
            size = await self._disk.run(os.path.getsize, stage.path)
        # Admission comes first: eviction takes the locks of other digests, and must not hold one meanwhile.
        async with self.admission.committing(sha256, size), self._locks.of(sha256):
            with storage_errors(self.directory, "committing a blob"):
                signature = await finish(self._disk, job, abandoned=stored)
            stored(signature)
        return signature.size

    def ready(self, sha256: Sha256Hex) -> Blob | None:
        """The same as `open` if the answer needs no disk access; None: unknown. Raises StorageError."""
        return self._reads.ready(sha256)

    async def open(self, sha256: Sha256Hex) -> Blob | None:
        """The verified blob, normally with its pages in memory; None if it is not stored (any more).

        A damaged file is moved to `damaged/`: the result is None, and `commit` can store a good one. Raises StorageError.
        """
        return await self._reads.open(sha256)

    async def verify_all(self) -> None:
        """Hash every blob that was not hashed since the start, one at a time, with pauses. Errors are only logged."""
        await self._reads.verify_all()

    async def discard(
        self, sha256: Sha256Hex, *, unless: Callable[[Sha256Hex], bool] = lambda _: False
    ) -> int:
        """Remove the blob if it is stored and `unless` is false at that moment. Sends in progress continue.

        Returns the bytes removed. Raises StorageError; the blob is then still stored.
        """
        async with self._locks.of(sha256):
            entry = self._index.get(sha256)
            if entry is None or unless(sha256):
                return 0
            self._reads.drop(sha256)
            self._index.remove(entry)
            try:
                with storage_errors(self.directory, "removing a blob"):
                    await self._disk.run(files.remove, self.path(sha256))
            except StorageError:
                self._index.add(entry)
                raise
            return entry.size

    async def tidy(self, *, pressed: bool = False) -> None:
        """Remove leftovers: see `Staging.tidy`. Raises StorageError."""
        with storage_errors(self.directory, "removing leftovers"):
            await self._staging.tidy(pressed=pressed)
