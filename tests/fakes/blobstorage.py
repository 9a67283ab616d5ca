"""A real blob store with its pins and its retention, on clocks and a volume that a test controls."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autowasm.blobs.eviction import DiskSpace, Retention
from autowasm.blobs.pins import Pins
from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.limits import Limits, StoreLimits
from autowasm.net.pools import Pools
from autowasm.settings import PreflightMode, Settings
from autowasm.telemetry.metrics import Metrics
from tests.fakes.clocks import FakeClocks
from tests.fakes.modulesource import sha256_of

GRACE = 24 * 3600.0


@dataclass
class FakeVolume:
    """`free` bytes of `total`; a real store on a real disk does not change them."""

    free: int = 10**12
    total: int = 10**12

    def space(self, directory: Path) -> DiskSpace:
        """A replacement of `space_of`."""
        return DiskSpace(self.free, self.total)


@dataclass
class BlobStorage:
    """One run of a process: its objects on the side of the store."""

    store: BlobStore
    pins: Pins
    retention: Retention
    clocks: FakeClocks
    volume: FakeVolume
    metrics: Metrics

    async def put(self, data: bytes) -> Sha256Hex:
        """Stage and commit, as a fetch does."""
        async with self.store.admission.reserve_space(len(data)), self.store.stage() as stage:
            stage.path.write_bytes(data)
            await self.store.commit(stage, sha256_of(data))
        return sha256_of(data)

    def publish(self, owner: str, *digests: Sha256Hex, kept: tuple[Sha256Hex, ...] = ()) -> None:
        """`owner` is `namespace/name`."""
        self.pins.set(owner, namespace=owner.partition("/")[0], published=digests, kept=kept)

    def let_go(self) -> None:
        """Enough time that no module is retained any longer for a future EnvoyFilter."""
        self.clocks.advance(61)

    def value(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 if it has no such series yet."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def blob_storage(
    directory: Path,
    *,
    budget: int,
    share: int = 10**9,
    clocks: FakeClocks | None = None,
    volume: FakeVolume | None = None,
    synced: bool = True,
    grace: float = GRACE,
    **limits: Any,
) -> AsyncIterator[BlobStorage]:
    """From start to end of a process; `limits` are the store's. A volume reserves 100 bytes."""
    clocks, volume, metrics = clocks or FakeClocks(), volume or FakeVolume(), Metrics()
    settings = Settings(
        cache_dir=directory,
        disk_budget=budget,
        preflight=PreflightMode.OFF,
        namespace_disk_budget=share,
        blob_grace=grace,
        store=StoreLimits(free_reserve=100, verify_pause=0, **limits),
        limits=Limits(module_bytes=1_000, layer_bytes=2_000),
    )
    pins = Pins()
    with Pools() as pools:
        async with BlobStore(
            directory, pools=pools, metrics=metrics, limits=settings.store
        ) as store:
            retention = Retention(
                store,
                pins,
                settings=settings,
                pools=pools,
                metrics=metrics,
                monotonic=clocks.monotonic,
                moment=clocks.moment,
                space=volume.space,
            )
            async with retention:
                if synced:
                    retention.synced([])
                yield BlobStorage(store, pins, retention, clocks, volume, metrics)
