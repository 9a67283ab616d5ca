"""BlobStore: verified module bytes on disk, one file for each sha256.

    <directory>/blobs/<sha256>   what is served
    <directory>/staging/         work in progress; emptied at start
    <directory>/damaged/         files whose bytes changed under us, for people
    <directory>/lock
    <directory>/last-use.json    `lastuse.py`

Not a cache with a policy: who is kept and who goes is decided elsewhere. Invariants: a file in `blobs/` has its digest
(hashed, fsynced, then renamed), so a crash at any point leaves nothing to repair; bytes are handed out only by a Blob
whose file was hashed since the start and has not changed since; nothing here touches the disk on the loop but fstat.
"""

import asyncio
import contextlib
import functools
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from weakref import WeakValueDictionary

import structlog

from autowasm.blobs import files
from autowasm.blobs.blob import Blob, Signature
from autowasm.blobs.failures import is_storage_failure, storage_failure
from autowasm.blobs.index import Entry, Index
from autowasm.blobs.jobs import finish
from autowasm.blobs.keeper import KeepAll, Keeper
from autowasm.blobs.lock import DirectoryLock
from autowasm.blobs.staging import Stage, Staging
from autowasm.digest import Sha256Hex
from autowasm.errors import StorageError
from autowasm.limits import StoreLimits
from autowasm.net.pools import Pools
from autowasm.telemetry.metrics import Metrics

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class BlobStore:
    """The store in `directory`, which is made if it is not there. An async context manager.

    Entering raises StorageError: `CacheDirectoryInUse` when another process has it, `StorageUnavailable` when it cannot
    be used.
    """

    def __init__(
        self,
        directory: Path,
        *,
        pools: Pools,
        metrics: Metrics,
        limits: StoreLimits | None = None,
    ) -> None:
        self.keeper: Keeper = KeepAll()  # set once, before the first commit
        self.directory = directory
        self._blobs = directory / "blobs"
        self._disk = pools.disk
        self._metrics = metrics
        self._limits = limits or StoreLimits()
        self._staging = Staging(
            directory / "staging", directory / "damaged", disk=pools.disk, limits=self._limits
        )
        self._lock = DirectoryLock(directory / "lock")
        self._index = Index(metrics)
        self._open: OrderedDict[Sha256Hex, Blob] = OrderedDict()  # the longest unused first
        self._turns: WeakValueDictionary[Sha256Hex, asyncio.Lock] = WeakValueDictionary()

    async def __aenter__(self) -> Self:
        with self._failures("opening it"):
            found, foreign = await self._disk.run(self._prepare)
        for sha256, size in found.items():
            self._index.add(Entry(sha256, size))
        if foreign:
            _log.warning("names in the blob directory that are no blobs", names=foreign[:10])
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.clear()
        self._lock.release()

    def _prepare(self) -> tuple[dict[Sha256Hex, int], list[str]]:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            for folder in (self._blobs, self._staging.directory, self._staging.damaged):
                folder.mkdir(exist_ok=True)
            files.clear(self._staging.directory)
            files.sync_directory(self.directory)
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
        """All that is stored now."""
        return self._index.digests()

    @property
    def total(self) -> int:
        """Bytes of all stored blobs."""
        return self._index.total

    def served_at(self, sha256: Sha256Hex) -> float:
        """When it was last handed out, on the monotonic clock; minus infinity: not since the start."""
        entry = self._index.get(sha256)
        return entry.served if entry else float("-inf")

    def path(self, sha256: Sha256Hex) -> Path:
        """Where the blob is, or would be. To serve it, use `open`: the file may have changed."""
        return self._blobs / sha256

    async def wait_for(self, sha256: Sha256Hex) -> None:
        """Return once the blob is stored."""
        await self._index.wait_for(sha256)

    @contextlib.asynccontextmanager
    async def stage(self) -> AsyncIterator[Stage]:
        """A place to write what `commit` is to take. All in its folder is removed at exit.

        Raises StorageError; errors of the disk that come up in the block become StorageErrors too.
        """
        with self._failures("staging a blob"):
            folder = await self._staging.make()
        try:
            with self._failures("writing a blob", among=is_storage_failure):
                yield Stage(folder / "module")
        finally:
            await self._staging.remove(folder)

    async def commit(self, stage: Stage, sha256: Sha256Hex) -> int:
        """Store `stage.path` under `sha256`, durably; returns its size in bytes.

        Raises ContentRejected (`DigestMismatch`) and StorageError (`StorageFull`, `StorageUnavailable`).
        """

        def stored(signature: Signature) -> None:
            self._open.pop(sha256, None)
            self._index.add(Entry(sha256, signature.size, signature))

        job = functools.partial(files.commit, stage.path, self.path(sha256))
        with self._failures("committing a blob"):
            size = await self._disk.run(os.path.getsize, stage.path)
        # Room first: who evicts others takes their turns, and must not have one of its own.
        async with self.keeper.committing(sha256, size), self._turn(sha256):
            with self._failures("committing a blob"):
                signature = await finish(self._disk, job, abandoned=stored)
            stored(signature)
        return signature.size

    def ready(self, sha256: Sha256Hex) -> Blob | None:
        """What `open` would return, if it can be told without the disk; None says nothing. Raises StorageError."""
        entry = self._index.get(sha256)
        return None if entry is None else self._ready(entry)

    async def open(self, sha256: Sha256Hex) -> Blob | None:
        """The verified blob, its pages in memory as far as we can tell; None if it is not there (any more).

        A file found damaged is set aside: the answer is None, and `commit` can bring a good one. Raises StorageError.
        """
        entry = self._index.get(sha256)
        if entry is None:
            return None
        return self._ready(entry) or await self._reopen(sha256)

    def _ready(self, entry: Entry) -> Blob | None:
        """The open blob, unless its file changed, or was out of use for so long that its pages may be gone."""
        blob = self._open.get(entry.sha256)
        if blob is None:
            return None
        now = time.monotonic()
        if now - entry.served > self._limits.cold_after or not blob.is_unchanged():
            return None
        entry.served = now
        self._open.move_to_end(entry.sha256)
        return blob

    async def _reopen(self, sha256: Sha256Hex) -> Blob | None:
        async with self._turn(sha256):
            entry = self._index.get(sha256)
            if entry is None:
                return None
            blob = self._ready(entry)  # somebody was before us
            if blob is None:
                blob = await self._load(entry)
            if blob is not None:
                entry.served = time.monotonic()
                self._open[sha256] = blob
                if len(self._open) > self._limits.open_files:
                    self._open.popitem(last=False)
            return blob

    async def _load(self, entry: Entry) -> Blob | None:
        self._open.pop(entry.sha256, None)

        def adopt(opened: tuple[int, Signature]) -> Blob:
            return Blob.adopt(entry.sha256, *opened, pool=self._disk)

        path = self.path(entry.sha256)
        job = functools.partial(files.open_verified, path, entry.sha256, known=entry.signature)
        opened = await self._read(entry, job, abandoned=adopt)  # adopted and dropped: closed
        if opened is None:
            return None
        entry.signature = opened[1]
        return adopt(opened)

    async def verify_all(self) -> None:
        """Hash every blob that was not yet since the start, one at a time, with pauses. Errors are logged only."""
        for sha256 in sorted(self._index.digests()):
            try:
                await self._verify(sha256)
            except StorageError as error:
                _log.warning("blob not verified", digest=sha256, reason=str(error))
            await asyncio.sleep(self._limits.verify_pause)

    async def _verify(self, sha256: Sha256Hex) -> None:
        async with self._turn(sha256):
            entry = self._index.get(sha256)
            if entry is not None and entry.signature is None:
                job = functools.partial(files.verify, self.path(sha256), sha256)
                entry.signature = await self._read(entry, job, abandoned=lambda _: None)

    async def _read(
        self, entry: Entry, job: Callable[[], T], *, abandoned: Callable[[T], object]
    ) -> T | None:
        """Run `job` on the entry's file. None, and the entry forgotten, if that is gone or damaged."""
        with self._failures("reading a blob"):
            try:
                return await finish(self._disk, job, abandoned=abandoned)
            except FileNotFoundError:
                self._index.remove(entry)
                _log.warning("blob removed by somebody else", digest=entry.sha256)
            except files.Damaged as error:
                self._index.remove(entry)
                self._metrics.blobs_damaged.inc()
                _log.error("blob damaged, set aside", digest=entry.sha256, found=str(error))
                await self._staging.set_aside(self.path(entry.sha256))
        return None

    async def discard(
        self, sha256: Sha256Hex, *, unless: Callable[[Sha256Hex], bool] = lambda _: False
    ) -> int:
        """Remove the blob, if it is there and not `unless`, asked at the last moment. Sends in flight go on.

        Returns the bytes removed. Raises StorageError; the blob is then still there.
        """
        async with self._turn(sha256):
            entry = self._index.get(sha256)
            if entry is None or unless(sha256):
                return 0
            self._open.pop(sha256, None)
            self._index.remove(entry)
            try:
                with self._failures("removing a blob"):
                    await self._disk.run(files.remove, self.path(sha256))
            except StorageError:
                self._index.add(entry)
                raise
            return entry.size

    async def tidy(self, *, pressed: bool = False) -> None:
        """Remove what is left over: see `Staging.tidy`. Raises StorageError."""
        with self._failures("tidying up"):
            await self._staging.tidy(pressed=pressed)

    def _turn(self, sha256: Sha256Hex) -> asyncio.Lock:
        """One at a time changes or checks the file of one digest."""
        lock = self._turns.get(sha256)
        if lock is None:
            lock = self._turns[sha256] = asyncio.Lock()
        return lock

    @contextlib.contextmanager
    def _failures(
        self, doing: str, *, among: Callable[[OSError], bool] = lambda _: True
    ) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if among(error):
                raise storage_failure(error, self.directory, doing) from error
            raise
