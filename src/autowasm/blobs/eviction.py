"""Admission to the store and eviction from it, on a volume that may fill up (ADR 16).

DiskQuota determines which blobs must stay and what a namespace may pin. DiskAdmission (`store.Admission`) makes room for a new blob
within the budget. Retention finds the blobs that have expired, and owns the other parts; the Evictor removes blobs. Which owners need a
blob is in `pins.py`, when it was last needed in `lastuse.py`. The free space is checked as
well as the budget, because other programs write to the volume too. Invariants: a published blob is never removed; nothing is removed
before every owner has reported (`Pins.complete`); an unnamed blob is evicted a grace period after an owner last named it, or
earlier if the budget needs its place; a blob in a history is evicted after all blobs that no owner names; among equals the least
recently used comes first; never more blobs are chosen than the size needs, and none if all together are too small; a blob that is
needed at the moment of its removal stays; a commit never takes the stored bytes over the budget; a refusal removes nothing and
affects only the caller; free space excludes what the file system reserves for root.
"""

import asyncio
import contextlib
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import structlog

from autowasm.blobs import lastuse
from autowasm.blobs.lastuse import ClockState, LastUse
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

_log = structlog.get_logger(__name__)

ANY_NAMESPACE: Final = ""
"""No namespace has this name."""


class StoredBlobs(Protocol):
    """The part of a store that the quota uses."""

    def __contains__(self, sha256: object) -> bool:
        """Whether the blob is stored."""

    def size(self, sha256: Sha256Hex) -> int:
        """Bytes."""

    def digests(self) -> frozenset[Sha256Hex]:
        """All digests."""


@dataclass(slots=True, eq=False)
class _Reservation:
    quota: "DiskQuota"
    namespace: str
    owner: str
    sha256: Sha256Hex | None
    size: int

    def hold(self, sha256: Sha256Hex, size: int) -> None:
        self.quota.resize(self, size)
        self.sha256 = sha256
        self.quota.keep(self)


class DiskQuota:
    """Quota of each namespace, computed from the store, the pins, and the reservations.

    `share`: bytes that one namespace may pin. `held`: seconds from being stored to being pinned. Invariants: a module that a
    namespace has published is never refused to it (ADR 7), so only new modules can exceed a quota; namespaces do not affect
    each other's quota.
    """

    def __init__(
        self,
        stored: StoredBlobs,
        pins: Pins,
        *,
        share: int,
        held: float,
        metrics: Metrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stored = stored
        self._pins = pins
        self._share = share
        self._held = held
        self._metrics = metrics
        self._monotonic = monotonic
        self._reservations: set[_Reservation] = set()
        self._reserved: defaultdict[str, int] = defaultdict(int)
        """Bytes of all reservations of a namespace, including those for the same digest."""
        self._holds: defaultdict[Sha256Hex, dict[str, float]] = defaultdict(dict)
        pins.watch(self._published)

    def is_needed(self, sha256: Sha256Hex) -> bool:
        """True for a blob that must not be evicted: published, or about to be."""
        return self._pins.is_published(sha256) or bool(self._holders(sha256))

    def is_named(self, sha256: Sha256Hex) -> bool:
        """True for a blob in use in any way: needed, or in a history."""
        return self.is_needed(sha256) or self._pins.is_kept(sha256)

    def _holders(self, sha256: Sha256Hex) -> list[str]:
        now = self._monotonic()
        return [
            namespace for namespace, until in self._holds.get(sha256, {}).items() if until >= now
        ]

    def _published(self, namespace: str, sha256: Sha256Hex) -> None:
        """Release the holds of a digest that is now published."""
        holds = self._holds.get(sha256)
        if holds is not None:
            holds.pop(namespace, None)
            holds.pop(ANY_NAMESPACE, None)
            if not holds:
                del self._holds[sha256]

    def forget_old_holds(self) -> None:
        """Drop expired holds."""
        for sha256 in [sha256 for sha256 in self._holds if not self._holders(sha256)]:
            del self._holds[sha256]

    def needed(self) -> dict[Sha256Hex, int]:
        """Sizes of the stored blobs that must not be evicted."""
        return {
            sha256: self._stored.size(sha256)
            for sha256 in self._stored.digests()
            if self.is_needed(sha256)
        }

    @contextlib.contextmanager
    def reserve(
        self,
        namespace: str,
        *,
        owner: str = "",
        sha256: Sha256Hex | None = None,
        size: int | None = None,
    ) -> Iterator[_Reservation]:
        """See `Admission.reserve` in `store.py`."""
        reservation = _Reservation(self, namespace, owner, sha256, size or 0)
        self._check_share(reservation)
        self._reservations.add(reservation)
        self._reserved[namespace] += reservation.size
        try:
            yield reservation
        finally:
            self._reservations.discard(reservation)
            self.resize(reservation, 0)
            if not self._reserved[namespace]:
                del self._reserved[namespace]

    def resize(self, reservation: _Reservation, size: int) -> None:
        """Change the reservation's size in bytes."""
        self._reserved[reservation.namespace] += size - reservation.size
        reservation.size = size

    def hold(self, namespace: str, sha256: Sha256Hex, size: int, *, owner: str = "") -> None:
        """Keep the blob for `held` seconds until the namespace publishes it. Raises StorageError (`NamespaceShareExceeded`)."""
        self.keep(_Reservation(self, namespace, owner, sha256, size))

    def keep(self, reservation: _Reservation) -> None:
        """The same for a reservation whose digest and size are now known."""
        self._check_share(reservation)
        sha256, namespace = reservation.sha256, reservation.namespace
        if sha256 is not None and not self._pins.is_published_by(namespace, sha256):
            self._holds[sha256][namespace] = self._monotonic() + self._held

    def hold_for_any(self, sha256: Sha256Hex) -> None:
        """Keep the blob for `held` seconds until a namespace publishes it. No quota is charged."""
        if not self._pins.is_published(sha256):
            self._holds[sha256][ANY_NAMESPACE] = self._monotonic() + self._held

    def _check_share(self, reservation: _Reservation) -> None:
        namespace, sha256 = reservation.namespace, reservation.sha256
        if sha256 is not None and self._pins.is_published_by(namespace, sha256):
            return
        used = self._kept_for(namespace, besides=reservation)
        at_most = sum(used.values()) + self._reserved.get(namespace, 0) + reservation.size
        if at_most < self._share:
            return  # comparing each of a thousand concurrent reservations with all others would hold the loop
        self._add_reservations(used, namespace, besides=reservation)
        size = 0 if sha256 in used else reservation.size
        total = sum(used.values())
        if total + size <= self._share and (reservation.size or total < self._share):
            return
        self._metrics.storage_refusals.labels(Reason.NAMESPACE_SHARE_EXCEEDED).inc()
        wanted = (
            f"this one ({format_size(reservation.size)})" if reservation.size else "another one"
        )
        raise StorageError(
            f"namespace {namespace} has {format_size(total)} of modules published or being fetched, and "
            f"{wanted} would exceed its quota of {format_size(self._share)}: delete AutoWasms of the "
            "namespace that are no longer needed, or raise the quota (--namespace-disk-budget)",
            reason=Reason.NAMESPACE_SHARE_EXCEEDED,
        )

    def _kept_for(self, namespace: str, *, besides: _Reservation) -> dict[object, int]:
        """Sizes by digest of the stored blobs that count in the namespace's quota."""
        held = [sha256 for sha256 in self._holds if namespace in self._holders(sha256)]
        published = set(self._pins.published_by(namespace)) - self._pins.replaceable(besides.owner)
        return {
            sha256: self._stored.size(sha256)
            for sha256 in (*published, *held)
            if sha256 in self._stored
        }

    def _add_reservations(
        self, used: dict[object, int], namespace: str, *, besides: _Reservation
    ) -> None:
        """Add the namespace's other reservations, by digest; a reservation without a digest counts by itself."""
        for reservation in self._reservations:
            if reservation is not besides and reservation.namespace == namespace:
                used.setdefault(reservation.sha256 or reservation, reservation.size)


@dataclass(frozen=True, slots=True)
class EvictionCandidate:
    """A stored blob that is not published. `used`: its last use, in seconds of any clock; `kept`: it is in a history."""

    sha256: Sha256Hex
    size: int
    used: float
    kept: bool


def expired(candidates: Iterable[EvictionCandidate], *, before: float) -> list[EvictionCandidate]:
    """Candidates in no history that were last used before that time."""
    return [each for each in candidates if not each.kept and each.used < before]


def choose(candidates: Iterable[EvictionCandidate], size: int) -> list[EvictionCandidate]:
    """The candidates to evict for `size` bytes of room; empty if all together are smaller. Pure."""
    chosen: list[EvictionCandidate] = []
    for each in sorted(candidates, key=lambda each: (each.kept, each.used, each.sha256)):
        if size <= 0:
            break
        chosen.append(each)
        size -= each.size
    return chosen if size <= 0 else []


class Evictor:
    """Removes blobs of one store."""

    def __init__(
        self,
        store: BlobStore,
        pins: Pins,
        quota: DiskQuota,
        *,
        last_use: LastUse,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._pins = pins
        self._quota = quota
        self._metrics = metrics
        self.last_use = last_use

    def candidates(self) -> list[EvictionCandidate]:
        """All blobs that could be evicted now; none until every owner has reported."""
        if not self._pins.complete:
            return []
        store, needed = self._store, self._quota.needed()
        return [
            EvictionCandidate(
                sha256,
                store.size(sha256),
                max(self.last_use.last(sha256), self.last_use.clock.at(store.served_at(sha256))),
                self._pins.is_kept(sha256),
            )
            for sha256 in store.digests()
            if sha256 not in needed
        ]

    async def remove(self, blobs: Iterable[EvictionCandidate], reason: str) -> None:
        """Remove the blobs that are still not needed. Raises StorageError."""
        for each in blobs:
            if await self._store.discard(each.sha256, unless=self._quota.is_needed):
                self._metrics.blobs_evicted.labels(reason).inc()
                _log.info("blob evicted", digest=each.sha256, size=each.size, reason=reason)


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


_GRACE_PARTS: Final = 20
_MIN_PAUSE: Final = 0.1


class Retention:
    """Evicts blobs of `store`. An async context manager: entering reads the last uses and sets the store's admission.

    `monotonic`, `moment` and `space` are for tests of clocks that jump and of volumes that fill up.
    """

    def __init__(
        self,
        store: BlobStore,
        pins: Pins,
        *,
        settings: Settings,
        pools: Pools,
        metrics: Metrics,
        monotonic: Callable[[], float] = time.monotonic,
        moment: Callable[[], ClockState] = ClockState.now,
        space: Callable[[Path], DiskSpace] = space_of,
    ) -> None:
        self._store = store
        self._pins = pins
        self._settings = settings
        self._limits = settings.store
        self._disk = pools.disk
        self._metrics = metrics
        self._monotonic = monotonic
        self._moment = moment
        self._file = store.directory / "last-use.json"
        self._quota = DiskQuota(
            store,
            pins,
            share=settings.namespace_disk_budget,
            held=self._limits.held,
            metrics=metrics,
            monotonic=monotonic,
        )
        self._last_use = lastuse.unknown(monotonic)
        self._evictor = Evictor(store, pins, self._quota, last_use=self._last_use, metrics=metrics)
        self._disk_admission = DiskAdmission(
            store,
            pins,
            self._quota,
            self._evictor,
            settings=settings,
            pools=pools,
            metrics=metrics,
            space=space,
        )
        self._changed = True
        self._saved = float("-inf")

    async def __aenter__(self) -> Self:
        self._last_use = await self._disk.run(
            lastuse.load, self._file, moment=self._moment, monotonic=self._monotonic
        )
        self._evictor.last_use = self._last_use
        self._metrics.blob_budget_bytes.set(self._settings.blob_budget)
        self._store.admission = self._disk_admission
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.save()

    def synced(self, owners: Iterable[str]) -> None:
        """All objects were read: once each of these owners has reported its pins, blobs may be evicted."""
        self._pins.expect(owners)

    def admit(self, owner: str, namespace: str, sha256: Sha256Hex) -> None:
        """Hold a stored blob until `owner` publishes it in place of its earlier module.

        Raises StorageError (`NamespaceShareExceeded`); never for a module that the namespace has published already, nor before all
        owners have reported: a blob that is in the store at the start was admitted before.
        """
        if sha256 in self._store and self._pins.complete:
            self._quota.hold(namespace, sha256, self._store.size(sha256), owner=owner)

    async def run(self) -> None:
        """Sweep forever."""
        pause = min(self._limits.sweep_every, self._settings.blob_grace / _GRACE_PARTS)
        while True:
            try:
                await self.sweep()
            except StorageError as error:
                _log.error("sweep of the store failed", error=str(error))
            await asyncio.sleep(max(pause, _MIN_PAUSE))

    async def sweep(self) -> None:
        """Remove blobs that have expired or exceed the budget, remove leftovers, save the last uses. Raises StorageError."""
        self._observe()
        self._quota.forget_old_holds()
        async with self._disk_admission.lock:
            before = self._last_use.clock.now() - self._settings.blob_grace
            await self._evictor.remove(expired(self._evictor.candidates(), before=before), "grace")
            excess = self._disk_admission.excess()
            if excess > 0:
                candidates = self._evictor.candidates()
                await self._evictor.remove(choose(candidates, excess) or candidates, "budget")
        await self._disk_admission.recheck()
        await self._store.tidy()
        due = self._limits.save_every if self._changed else self._limits.save_latest
        if self._monotonic() - self._saved >= due:
            await self.save()

    async def save(self) -> None:
        """Write the last uses to disk. A failure is only logged: it makes blobs younger, never older."""
        self._observe()
        self._saved = self._monotonic()
        moment = await self._disk.run(self._moment)
        try:
            await self._disk.run(lastuse.save, self._file, self._last_use.encode(moment))
            self._changed = False
        except OSError as error:
            _log.warning("last-use times not written", error=error.strerror or str(error))

    def _observe(self) -> None:
        stored = self._store.digests()
        for sha256 in stored:
            self._last_use.served(sha256, self._store.served_at(sha256))
        self._changed |= self._last_use.observe(
            stored, self._quota.is_named, complete=self._pins.complete
        )
        needed = self._quota.needed()
        self._metrics.blobs_pinned.set(len(needed))
        self._metrics.blob_pinned_bytes.set(sum(needed.values()))
