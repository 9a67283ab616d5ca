"""The fetcher with disk admission: the quota of a namespace, and that one tenant's full quota does not affect another."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from autowasm.blobs.eviction import Retention
from autowasm.blobs.pins import Pins
from autowasm.errors import StorageError
from autowasm.net.pools import Pools
from autowasm.settings import Settings
from autowasm.telemetry.metrics import Metrics
from tests.fakes.autowasms import IMAGE
from tests.fakes.modulesource import sha256_of
from tests.unit.artifacts.conftest import FetchingReplica, fetching_replica

Modules = Callable[[str], bytes]
OTHER = "registry.example/team/filter:v2"


@pytest.fixture
def pins() -> Pins:
    return Pins()


@pytest.fixture
async def replica(
    tmp_path: Path, metrics: Metrics, modules: Modules, pins: Pins
) -> AsyncIterator[FetchingReplica]:
    """Room for one module and a half, for each namespace."""
    share = len(modules("world")) * 3 // 2
    settings = Settings(cache_dir=tmp_path, namespace_disk_budget=share)
    with Pools() as pools:
        async with (
            fetching_replica(tmp_path, metrics) as replica,
            Retention(
                replica.store, pins, settings=settings, pools=pools, metrics=metrics
            ) as admission,
        ):
            admission.synced([])
            yield replica


async def test_module_over_the_quota_is_refused_unless_published(
    replica: FetchingReplica, modules: Modules, pins: Pins
) -> None:
    replica.registry.add(IMAGE, modules("world"))
    replica.registry.add(OTHER, modules("earth"))
    record = await replica.fetcher.fetch(replica.request())
    pins.set("default/1", namespace="default", published=[record.sha256])
    with pytest.raises(StorageError) as caught:
        await replica.fetcher.fetch(replica.request(OTHER))
    assert caught.value.reason == "NamespaceShareExceeded"
    assert await replica.fetcher.fetch(replica.request(record=record)) == record
    # A new version of the same AutoWasm takes the place of the old.
    assert (await replica.fetcher.fetch(replica.request(OTHER, owner="default/1"))).sha256


async def test_full_quota_of_one_namespace_does_not_fail_a_shared_download(
    replica: FetchingReplica, modules: Modules, pins: Pins
) -> None:
    for image, value in ((IMAGE, "world"), (OTHER, "earth")):
        replica.registry.add(image, modules(value))
    await replica.fetcher.fetch(replica.request())
    pins.set("default/1", namespace="default", published=[sha256_of(modules("world"))])
    results = await asyncio.gather(
        *(
            replica.fetcher.fetch(replica.request(OTHER, namespace=n))
            for n in ("default", "x", "y")
        ),
        return_exceptions=True,
    )
    assert [isinstance(result, StorageError) for result in results] == [True, False, False]
    assert replica.registry.count("fetch") == 2


async def test_size_that_the_manifest_tells_is_refused_before_the_download(
    replica: FetchingReplica, modules: Modules, pins: Pins
) -> None:
    replica.registry.layer_is_module = True
    for image, value in ((IMAGE, "world"), (OTHER, "earth")):
        replica.registry.add(image, modules(value))
    await replica.fetcher.fetch(replica.request())
    pins.set("default/1", namespace="default", published=[sha256_of(modules("world"))])
    with pytest.raises(StorageError):
        await replica.fetcher.fetch(replica.request(OTHER))
    assert replica.registry.count("fetch") == 1
