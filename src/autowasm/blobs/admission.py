"""DiskAdmission: admission to a store with a budget, on a volume that may fill up (`store.Admission`, ADR 16).

`retention.py` removes unneeded blobs. The free space is checked as well as the budget, because other programs write
to the volume too. Invariants: a commit never takes the stored bytes over the budget; a refusal removes nothing and affects
only the caller; free space excludes what the file system reserves for root.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from autowasm.blobs.eviction import DiskQuota, Evictor, choose
from autowasm.blobs.pins import Pins
from autowasm.blobs.store import BlobStore, Reservation
from autowasm.digest import Sha256Hex
from autowasm.errors import StorageError
from autowasm.limits import StoreLimits
from autowasm.net.pools import Pools
from autowasm.reasons import Reason
from autowasm.settings import Settings
from autowasm.telemetry.metrics import Metrics
from autowasm.units import format_size


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Free and total bytes of a volume."""

    free: int
    total: int

    def reserve(self, limits: StoreLimits) -> int:
        """Bytes that no fetch may use."""
        return min(limits.free_reserve, int(self.total * limits.free_reserve_share))


def space_of(directory: Path) -> DiskSpace:
    """Blocks for a statvfs or two. Raises OSError.

    If the directory was removed from outside, its parent is measured: the next blob that is stored creates it again.
    """
    try:
        found = os.statvfs(directory)
    except FileNotFoundError:
        found = os.statvfs(next(parent for parent in directory.parents if parent.exists()))
    return DiskSpace(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


_log = structlog.get_logger(__name__)


class _Refused(StorageError):  # by our own accounting, not by the disk
    pass


class DiskAdmission:
    """Admission for one store. `lock` is held while blobs are removed to make room."""

    def __init__(
        self,
        store: BlobStore,
        pins: Pins,
        quota: DiskQuota,
        evictor: Evictor,
        *,
        settings: Settings,
        pools: Pools,
        metrics: Metrics,
        space: Callable[[Path], DiskSpace],
    ) -> None:
        self._store = store
        self._pins = pins
        self._quota = quota
        self._evictor = evictor
        self._settings = settings
        self._disk = pools.disk
        self._metrics = metrics
        self._space = space
        self.lock = asyncio.Lock()
        self._committing = 0
        self._fetching: list[int] = []
        self._full_for = 0  # bytes that were refused last; 0: not full

    @contextlib.asynccontextmanager
    async def reserve(
        self,
        namespace: str,
        *,
        owner: str = "",
        sha256: Sha256Hex | None = None,
        size: int | None = None,
    ) -> AsyncIterator[Reservation]:
        """See `store.Admission`."""
        if sha256 is None or not self._pins.is_published_by(namespace, sha256):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.store.pins_timeout):
                    await self._pins.wait_complete()
        with self._quota.reserve(namespace, owner=owner, sha256=sha256, size=size) as reservation:
            yield reservation

    @contextlib.asynccontextmanager
    async def reserve_space(self, size: int | None) -> AsyncIterator[None]:
        """See `store.Admission`. An unknown size counts as the largest that the limits allow."""
        limits = self._settings.limits
        need = limits.module_bytes + limits.layer_bytes if size is None else size
        async with self.lock:
            self._check_budget(size or 1)
            await self._find_space(need, known=size is not None)
            self._fetching.append(need)
        try:
            yield
        except StorageError as error:
            if error.reason == Reason.STORAGE_FULL and not isinstance(error, _Refused):
                await self._relieve(size or 1)
            raise
        finally:
            self._fetching.remove(need)

    @contextlib.asynccontextmanager
    async def committing(self, sha256: Sha256Hex, size: int) -> AsyncIterator[None]:
        """See `store.Admission`."""
        more = 0 if sha256 in self._store else size
        async with self.lock:
            self._check_budget(more)
            while (excess := self.excess(more)) > 0:
                await self._evictor.remove(choose(self._evictor.candidates(), excess), "budget")
                self._check_budget(more)  # a candidate may have become needed meanwhile
            self._committing += more
        try:
            yield
        finally:
            self._committing -= more
        self._quota.hold_for_any(sha256)
        self._set_full_for(0)

    def excess(self, more: int = 0) -> int:
        """Bytes by which the store would exceed its budget with `more`; negative: bytes left."""
        return self._store.total + self._committing + more - self._settings.blob_budget

    def _fits(self, size: int) -> bool:
        """Whether the budget has room for `size` bytes, after an eviction if necessary."""
        if self.excess(size) <= 0:
            return True
        needed = sum(self._quota.needed().values())
        return (
            self._pins.complete and needed + self._committing + size <= self._settings.blob_budget
        )

    def _check_budget(self, size: int) -> None:
        if self._fits(size):
            return
        budget = format_size(self._settings.blob_budget)
        if not self._pins.complete:
            raise self._refusal(
                f"the cache has no room for a module of {format_size(size)} within its budget of {budget} until it is "
                "known which stored modules are still needed; retried soon",
                size,
            )
        needed = format_size(sum(self._quota.needed().values()))
        raise self._refusal(
            f"the cache has no room for a module of {format_size(size)}: published modules take {needed} "
            f"of its budget of {budget}; raise --disk-budget (and the size of the volume), or delete AutoWasms that are no "
            "longer needed",
            size,
        )

    async def _find_space(self, need: int, *, known: bool) -> None:
        """Make sure that the volume has room for `need` bytes besides other fetches. Raises StorageError (`StorageFull`)."""
        space = await self.measure()
        if self._missing(space, need) > 0:
            await self._store.tidy(pressed=True)
            space = await self.measure()
        if (missing := self._missing(space, need)) > 0:
            await self._evictor.remove(choose(self._evictor.candidates(), missing), "disk")
            space = await self.measure()
        if self._missing(space, need) <= 0:
            return
        if not known and not self._fetching and space.free > space.reserve(self._settings.store):
            return  # it may be small, and no other fetch is affected if it is not
        raise self._refusal(
            f"no space left in the cache directory {self._store.directory}: {format_size(space.free)} of "
            f"{format_size(space.total)} are free, and fetching this module needs up to {format_size(need)} "
            "in addition to the fetches in progress; free space on that volume, or use a larger one with "
            "--cache-dir",
            need if known else 1,
        )

    def _missing(self, space: DiskSpace, need: int) -> int:
        return need + sum(self._fetching) + space.reserve(self._settings.store) - space.free

    async def _relieve(self, need: int) -> None:
        """Make room: the disk reports that it is full, against our own count (a quota of the file system)."""
        self._set_full_for(need)
        self._metrics.storage_refusals.labels(Reason.STORAGE_FULL).inc()
        async with self.lock:
            with contextlib.suppress(StorageError):  # the first error is raised
                await self._store.tidy(pressed=True)
                await self._evictor.remove(choose(self._evictor.candidates(), need), "disk")

    async def measure(self) -> DiskSpace:
        """Measure the volume. Raises StorageError."""
        try:
            space = await self._disk.run(self._space, self._store.directory)
        except OSError as error:
            raise StorageError(
                f"cannot determine the free space of the cache directory {self._store.directory}: "
                f"{error.strerror or error}; check the volume"
            ) from error
        self._metrics.storage_free_bytes.set(space.free)
        return space

    async def recheck(self) -> None:
        """Clear the state "full" if the size that was refused last has room now. Raises StorageError."""
        space = await self.measure()
        if self._fits(self._full_for) and self._missing(space, self._full_for) <= 0:
            self._set_full_for(0)

    def _refusal(self, message: str, size: int) -> StorageError:
        self._metrics.storage_refusals.labels(Reason.STORAGE_FULL).inc()
        self._set_full_for(size)
        return _Refused(message, reason=Reason.STORAGE_FULL)

    def _set_full_for(self, size: int) -> None:
        """Set the metric and log, once for each change."""
        before, self._full_for = self._full_for, size
        if bool(before) is bool(size):
            return
        self._metrics.storage_full.set(bool(size))
        log = _log.warning if size else _log.info
        log("cache full" if size else "cache has room again", stored=self._store.total)
