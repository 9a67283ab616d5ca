"""Objects that are deleted."""

import asyncio

import pytest

from tests.fakes.autowasms import document
from tests.fakes.modulesource import sha256_of
from tests.parts import wat
from tests.unit.controller.reconciling.cluster import (
    KEY,
    OTHER,
    WORLD,
    Process,
    ReconciledCluster,
    sha,
)


async def test_deleted_object_takes_its_filter_along(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    del cluster.objects.documents[KEY]
    await process.settle()
    assert not cluster.publisher.envoyfilters
    assert not process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    labels = {"phase": "Synced"}
    assert process.metrics.registry.get_sample_value("autowasm_autowasms", labels) == 0


async def test_deletion_ends_the_fetch(cluster: ReconciledCluster, process: Process) -> None:
    cluster.registry.gates["resolve"] = asyncio.Event()
    cluster.objects.apply(document())
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while not cluster.registry.running:
            await asyncio.sleep(0.001)
        del cluster.objects.documents[KEY]
        process.queue.add(KEY)
        while cluster.registry.running:
            await asyncio.sleep(0.001)
    assert not cluster.publisher.writes


DELETING = {"deletionTimestamp": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize("change", [{"image": OTHER}, {"applyPorts": [0]}])
async def test_nothing_is_written_for_an_object_that_is_being_deleted(
    cluster: ReconciledCluster, process: Process, change: dict[str, object]
) -> None:
    await process.apply()
    cluster.publisher.writes.clear()
    await process.apply(**change, metadata=DELETING)
    assert not cluster.publisher.writes
    assert process.published.is_known(sha(WORLD)), "sidecars may still fetch it"


async def test_lost_label_of_the_filter_of_an_object_that_is_being_deleted_is_not_restored(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    cluster.publisher.unseen[KEY] = cluster.publisher.envoyfilters.pop(KEY)
    await process.apply(metadata=DELETING)
    assert KEY in cluster.publisher.unseen
