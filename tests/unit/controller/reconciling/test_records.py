"""Restarts, caches and records: the state that a starting reconciler takes from the cluster."""

import asyncio
import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import record as records
from autowasm.errors import (
    SourceNotFound,
    SourceUnavailable,
    SpecError,
    StorageError,
)
from tests.fakes.autowasms import IMAGE, digest, document, record
from tests.fakes.modulesource import sha256_of
from tests.parts import wat
from tests.unit.controller.reconciling.cluster import (
    DOWN,
    EARTH,
    KEY,
    OTHER,
    WORLD,
    Process,
    ReconciledCluster,
    sha,
)

GONE = SourceNotFound("no such manifest")


async def test_restart_resolves_nothing_and_writes_nothing(cluster: ReconciledCluster) -> None:
    async with cluster.process() as process:
        await process.apply()
    cluster.publisher.writes.clear()
    cluster.registry.steps.clear()
    cluster.registry.add(IMAGE, wat.header_filter(EARTH))  # the tag was moved meanwhile
    async with cluster.process() as process:
        await process.settle()
        assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    assert not cluster.publisher.writes
    assert not cluster.registry.steps


async def test_restart_with_an_empty_cache_fetches_exactly_the_record(
    cluster: ReconciledCluster, tmp_path: Path
) -> None:
    async with cluster.process() as process:
        await process.apply()
    cluster.publisher.writes.clear()
    cluster.registry.steps.clear()
    cluster.registry.add(IMAGE, wat.header_filter(EARTH))
    cluster.directory = tmp_path / "another"
    async with cluster.process() as process:
        assert process.reconciler.is_settled(KEY)
        await process.settle()
        assert sha256_of(wat.header_filter(WORLD)) in process.store
    assert cluster.registry.count("resolve") == 0
    assert not cluster.publisher.writes


async def test_restart_without_status_keeps_the_module(cluster: ReconciledCluster) -> None:
    async with cluster.process() as process:
        await process.apply()
    del cluster.objects.documents[KEY]["status"]
    cluster.registry.add(IMAGE, wat.header_filter(EARTH))
    async with cluster.process() as process:
        await process.settle()
    assert cluster.live == sha(WORLD)
    assert cluster.status["phase"] == "Synced"


async def test_going_back_needs_no_registry(cluster: ReconciledCluster, process: Process) -> None:
    await process.apply()
    await process.apply(image=OTHER)
    cluster.registry.failures["resolve"] = cluster.registry.failures["pin"] = DOWN
    await process.apply()
    assert (cluster.live, cluster.status["phase"]) == (sha(WORLD), "Synced")


async def test_going_back_to_a_module_that_is_gone_from_the_cache_fetches_its_record(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    await process.apply(image=OTHER)
    process.store.path(sha256_of(wat.header_filter(WORLD))).unlink()
    assert await process.store.open(sha256_of(wat.header_filter(WORLD))) is None
    cluster.registry.steps.clear()
    await process.apply()
    assert cluster.live == sha(WORLD)
    assert cluster.registry.count("resolve") == 0


async def test_lost_published_module_is_reported_and_changes_nothing(
    cluster: ReconciledCluster, tmp_path: Path
) -> None:
    async with cluster.process() as process:
        await process.apply()
    before = dict(cluster.publisher.envoyfilters)
    cluster.directory = tmp_path / "another"
    cluster.registry.failures["pin"] = GONE
    cluster.registry.add(IMAGE, wat.header_filter(EARTH))
    async with cluster.process() as process:
        await process.until("Degraded")
        assert cluster.condition("Fetched") == ("False", "PublishedModuleLost")
        assert "wasm.tcm.io/refresh" in cluster.status["message"]
        assert cluster.publisher.envoyfilters == before
        assert cluster.registry.count("resolve") == 1
        await process.apply(metadata={"annotations": {"wasm.tcm.io/refresh": "1"}})
        await process.until("Synced")
        assert cluster.live == sha(EARTH)


async def test_published_module_that_was_removed_is_fetched_again(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    before = dict(cluster.publisher.envoyfilters)
    process.store.path(sha256_of(wat.header_filter(WORLD))).unlink()
    assert await process.store.open(sha256_of(wat.header_filter(WORLD))) is None
    await process.settle()
    assert sha256_of(wat.header_filter(WORLD)) in process.store
    assert cluster.publisher.envoyfilters == before


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "evil.example/team/filter@sha256:" + "1" * 64},
        {"source": "registry:evil.example/team/filter:v1"},
        {"sha256": "0" * 64},
    ],
)
async def test_forged_record_reaches_nothing_and_publishes_nothing(
    cluster: ReconciledCluster, fields: dict[str, Any]
) -> None:
    async with cluster.process(retry_base=3600) as process:
        await process.apply()
        genuine = envoyfilters.record_of(cluster.publisher.envoyfilters[KEY])
        assert genuine is not None
        forged = msgspec.structs.replace(genuine, **fields)
        annotations = cluster.publisher.envoyfilters[KEY]["metadata"]["annotations"]
        annotations[records.ANNOTATION] = records.dump(forged)
        cluster.registry.steps.clear()
        await process.settle()
        await process.settle()
        assert not any("evil" in step for step in cluster.registry.steps)
        assert len(cluster.registry.steps) <= 2, "asks without pause"
        assert cluster.live in {sha(WORLD), forged.sha256}


async def test_forged_record_is_no_origin_to_fill_a_blob_from(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    genuine = envoyfilters.record_of(cluster.publisher.envoyfilters[KEY])
    assert genuine is not None
    forged = msgspec.structs.replace(
        genuine, image="evil.example/team/filter@sha256:" + "1" * 64, sha256=digest("e")
    )
    annotations = cluster.publisher.envoyfilters[KEY]["metadata"]["annotations"]
    annotations[records.ANNOTATION] = records.dump(forged)
    cluster.objects.problems[KEY] = SpecError("metadata.name", "twice")
    await process.settle()
    del cluster.objects.problems[KEY]
    cluster.registry.gates["resolve"] = cluster.registry.gates["pin"] = asyncio.Event()
    cluster.objects.apply(document(image="registry.example/team/filter:v9"))
    await process.reconciler.reconcile(KEY)
    assert not process.published.is_known(digest("e")), "its spec names another module"
    assert process.published.is_known(genuine.sha256), "whatever its annotation says"
    assert not any("evil" in step for step in cluster.registry.steps)


async def test_record_of_another_place_is_no_origin_to_fill_a_blob_from(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    genuine = envoyfilters.record_of(cluster.publisher.envoyfilters[KEY])
    assert genuine is not None
    forged = msgspec.structs.replace(genuine, image="evil.example/team/filter@sha256:" + "1" * 64)
    annotations = cluster.publisher.envoyfilters[KEY]["metadata"]["annotations"]
    annotations[records.ANNOTATION] = records.dump(forged)
    cluster.objects.documents[KEY]["status"].pop("module")
    cluster.objects.problems[KEY] = SpecError("metadata.name", "twice")
    await process.settle()
    assert process.published.is_known(genuine.sha256)
    with pytest.raises(SourceUnavailable, match="no source is known for"):
        await asyncio.wait_for(process.published.fill(genuine.sha256), 5)
    assert not any("evil" in step for step in cluster.registry.steps)


async def test_damaged_record_is_restored_from_the_status(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    as_it_was = copy.deepcopy(cluster.publisher.envoyfilters[KEY])
    cluster.registry.steps.clear()
    for damage in ("{", "", records.dump(record(sha256=digest("e")))):
        annotations = cluster.publisher.envoyfilters[KEY]["metadata"]["annotations"]
        annotations[records.ANNOTATION] = damage
        await process.settle()
        assert cluster.publisher.envoyfilters[KEY] == as_it_was
        assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    assert cluster.registry.steps == [], "no registry is needed for it"


async def test_envoyfilter_missing_in_the_informer_is_read_before_it_counts_as_absent(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    cluster.publisher.unseen[KEY] = cluster.publisher.envoyfilters.pop(KEY)
    await process.apply(image="registry.example/team/filter:gone")
    assert cluster.status["phase"] == "Degraded"
    assert "is still in place" in cluster.status["message"]
    assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))


async def test_module_that_went_before_it_was_published_is_fetched_again_first(
    cluster: ReconciledCluster, process: Process
) -> None:
    module_digest = sha256_of(wat.header_filter(WORLD))
    cluster.publisher.refusal = StorageError("no space", reason="StorageFull")
    cluster.objects.apply(document())
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while not process.queue.num_requeues(KEY):
            await asyncio.sleep(0.001)
    process.store.path(module_digest).unlink()
    assert await process.store.open(module_digest) is None
    cluster.publisher.refusal = None
    cluster.registry.gates["fetch"] = asyncio.Event()
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while cluster.registry.count("fetch") < 2:
            await asyncio.sleep(0.001)
    assert not cluster.publisher.writes
    cluster.registry.gates["fetch"].set()
    await process.until("Synced")
    assert module_digest in process.store
