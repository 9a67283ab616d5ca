"""Publications, and when nothing is written."""

import copy

from autowasm.errors import AutoWasmError, SourceDenied
from tests.fakes.modulesource import sha256_of
from tests.parts import wat
from tests.unit.controller.reconciling.cluster import (
    EARTH,
    KEY,
    OTHER,
    WORLD,
    Process,
    ReconciledCluster,
    kinds,
    sha,
)


async def test_publishes_the_fetched_module_before_the_status(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    assert kinds(cluster) == ["envoyfilter", "status"]
    assert cluster.live == sha(WORLD)
    assert cluster.live in process.store
    assert cluster.status["phase"] == "Synced"
    assert cluster.status["module"]["sha256"] == sha(WORLD)
    assert [cluster.condition(kind)[0] for kind in ("Fetched", "Published", "Ready")] == [
        "True"
    ] * 3
    assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    assert cluster.recorded_events == [
        ("Normal", "Synced", f"nothing → sha256:{sha(WORLD)[:12]} ({cluster.status['module']['image']})")
    ]  # fmt: skip
    labels = {"phase": "Synced"}
    assert process.metrics.registry.get_sample_value("autowasm_autowasms", labels) == 1


async def test_a_new_module_is_not_published_where_no_sidecar_could_fetch_it(
    cluster: ReconciledCluster, process: Process
) -> None:
    cluster.service_problem = AutoWasmError("Service a/b does not exist", reason="ServiceNotFound")
    await process.apply()
    assert cluster.live is None
    assert cluster.status["phase"] == "Failed"
    assert cluster.condition("Fetched") == ("True", "Fetched")
    assert cluster.condition("Published") == ("False", "ServiceNotFound")
    assert cluster.condition("Ready") == ("False", "ServiceNotFound")
    cluster.service_problem = None
    await process.settle()
    assert cluster.live == sha(WORLD)
    assert cluster.status["phase"] == "Synced"
    assert kinds(cluster).count("envoyfilter") == 1


async def test_live_envoyfilter_stays_while_the_service_cannot_serve(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    live = copy.deepcopy(cluster.publisher.envoyfilters[KEY])
    cluster.service_problem = AutoWasmError("Service a/b does not exist", reason="ServiceNotFound")
    await process.apply(image=OTHER)
    assert cluster.publisher.envoyfilters[KEY] == live
    assert cluster.status["phase"] == "Degraded"
    assert "is still in place" in cluster.status["message"]
    assert cluster.condition("Published") == ("True", "Published")
    assert cluster.condition("Ready") == ("False", "ServiceNotFound")
    assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    cluster.service_problem = None
    await process.settle()
    assert cluster.live == sha(EARTH)
    assert cluster.status["phase"] == "Synced"


async def test_envoyfilter_recreated_under_a_refused_poll_is_degraded_and_published(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    cluster.polls.refused = SourceDenied("the tag names a module that may not be read")
    await process.settle()
    assert cluster.status["phase"] == "Degraded"
    del cluster.publisher.envoyfilters[KEY]  # by another client
    await process.settle()
    assert cluster.live == sha(WORLD)
    assert cluster.status["phase"] == "Degraded"
    assert cluster.condition("Published") == ("True", "Published")


async def test_a_replaced_module_is_only_kept_for_the_history(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    await process.apply(image=OTHER)
    assert set(process.pins.published_by("default")) == {sha(EARTH)}
    assert process.pins.is_kept(sha(WORLD))
    assert process.published.is_known(sha(EARTH))


async def test_nothing_is_written_when_nothing_changed(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    cluster.publisher.writes.clear()
    cluster.registry.steps.clear()
    for _ in range(3):
        await process.settle()
    await process.apply()
    assert not cluster.publisher.writes
    assert not cluster.registry.steps


async def test_changed_source_rolls_out(cluster: ReconciledCluster, process: Process) -> None:
    await process.apply()
    await process.apply(image=OTHER)
    assert cluster.live == sha(EARTH)
    assert [entry["sha256"] for entry in cluster.status["history"]] == [sha(EARTH), sha(WORLD)]
    assert cluster.recorded_events[-1][2].startswith(
        f"sha256:{sha(WORLD)[:12]} → sha256:{sha(EARTH)[:12]}"
    )


async def test_times_stay_while_the_module_does(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    before = cluster.status
    process.reconciler._now = lambda: "2030-01-01T00:00:00Z"
    await process.apply(rootID="changed")
    assert cluster.status["observedGeneration"] == 2
    assert cluster.status["module"]["fetchedAt"] == before["module"]["fetchedAt"]
    times = [condition["lastTransitionTime"] for condition in cluster.status["conditions"]]
    assert times == ["2026-01-01T00:00:00Z"] * 3
