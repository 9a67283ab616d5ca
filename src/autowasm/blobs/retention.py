"""Retention: which blobs stay and which are evicted (ADR 16).

Which owners need a blob is in `pins.py`, room for new blobs in `admission.py`. Invariants: a published blob is never removed;
nothing is removed before every owner has reported (`Pins.complete`); an unnamed blob is evicted a grace period
after an owner last named it, or earlier if the budget needs its place.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from autowasm.blobs import lastuse
from autowasm.blobs.admission import DiskAdmission, DiskSpace, space_of
from autowasm.blobs.eviction import DiskQuota, Evictor, choose, expired
from autowasm.blobs.lastuse import ClockState
from autowasm.blobs.pins import Pins
from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.errors import StorageError
from autowasm.net.pools import Pools
from autowasm.settings import Settings
from autowasm.telemetry.metrics import Metrics

_GRACE_PARTS: Final = 20
_MIN_PAUSE: Final = 0.1

_log = structlog.get_logger(__name__)


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
