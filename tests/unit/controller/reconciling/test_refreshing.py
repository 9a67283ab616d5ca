"""When a tag is resolved afresh: the annotation, the pull policy, polls."""

from autowasm.api.v1alpha1 import RegistrySource, Source
from autowasm.artifacts.source import FetchRequest
from autowasm.errors import (
    SourceDenied,
)
from tests.fakes.autowasms import IMAGE, document
from tests.parts import wat
from tests.unit.controller.reconciling.cluster import (
    DOWN,
    EARTH,
    WORLD,
    Process,
    ReconciledCluster,
    kinds,
    sha,
)


async def test_refresh_annotation_resolves_afresh_once(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    cluster.registry.add(IMAGE, wat.header_filter(EARTH))
    await process.apply()
    assert cluster.live == sha(WORLD)
    for _ in range(2):
        await process.apply(metadata={"annotations": {"wasm.tcm.io/refresh": "now"}})
        assert cluster.live == sha(EARTH)
    assert cluster.status["refresh"] == "now"
    assert cluster.registry.count("resolve") == 2


async def test_failed_refresh_is_retried(cluster: ReconciledCluster, process: Process) -> None:
    await process.apply()
    cluster.registry.add(IMAGE, wat.header_filter(EARTH))
    cluster.registry.failures["resolve"] = DOWN
    cluster.objects.apply(document(metadata={"annotations": {"wasm.tcm.io/refresh": "now"}}))
    await process.until("Degraded")
    assert cluster.live == sha(WORLD)
    cluster.registry.failures.clear()
    await process.until("Synced")
    assert cluster.live == sha(EARTH)


async def test_always_resolves_at_a_change_and_not_at_a_restart(cluster: ReconciledCluster) -> None:
    async with cluster.process() as process:
        await process.apply(pullPolicy="Always")
        cluster.registry.add(IMAGE, wat.header_filter(EARTH))
    async with cluster.process() as process:
        await process.settle()
        assert cluster.live == sha(WORLD)
        await process.apply(pullPolicy="Always", rootID="changed")
        assert cluster.live == sha(EARTH)


async def test_always_with_an_invalid_secret_is_degraded(
    cluster: ReconciledCluster, process: Process
) -> None:
    cluster.secrets.login("default", "pull", "a:b", host="registry.example")
    await process.apply(pullPolicy="Always")
    await process.apply(pullPolicy="Always", spec={"secret": "pull"})
    await process.settle()
    assert cluster.status["phase"] == "Degraded"
    assert cluster.condition("Fetched") == ("False", "SecretInvalid")


async def test_polled_record_is_published_like_a_change(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    before = cluster.live
    cluster.registry.add(IMAGE, wat.header_filter(EARTH))
    cluster.polls.record = await process.fetcher.fetch(
        FetchRequest("default", Source(registry=RegistrySource(IMAGE)))
    )
    cluster.publisher.writes.clear()
    await process.settle()
    assert kinds(cluster) == ["envoyfilter", "status"]
    assert cluster.live == sha(EARTH)
    assert cluster.status["phase"] == "Synced"
    assert cluster.status["history"][0]["sha256"] == sha(EARTH)
    assert cluster.polls.told[-1] == cluster.polls.record
    message = cluster.recorded_events[-1][2]
    assert message.startswith(f"sha256:{str(before)[:12]} → sha256:{sha(EARTH)[:12]}")


async def test_polled_record_is_not_used_against_a_pin(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    cluster.registry.add(IMAGE, wat.header_filter(EARTH))
    cluster.polls.record = await process.fetcher.fetch(
        FetchRequest("default", Source(registry=RegistrySource(IMAGE)))
    )
    await process.apply(sha256=sha(WORLD))
    assert cluster.live == sha(WORLD)


async def test_a_refused_poll_degrades_and_keeps_the_published_module(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    cluster.polls.refused = SourceDenied("no more")
    cluster.publisher.writes.clear()
    await process.settle()
    await process.settle()
    assert kinds(cluster) == ["status"], "told once"
    assert cluster.status["phase"] == "Degraded"
    assert "still in place" in cluster.status["message"]
    assert cluster.live == sha(WORLD)
    cluster.polls.refused = None
    await process.settle()
    assert cluster.status["phase"] == "Synced"
