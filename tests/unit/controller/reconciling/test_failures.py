"""Failures: the message, the next try, and that a published filter stays."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from autowasm.controller import reconciler as module
from autowasm.errors import (
    AutoWasmError,
    SpecError,
    StorageError,
)
from tests.fakes.autowasms import IMAGE, digest, document
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
    kinds,
    running,
    sha,
)

FAILURES: dict[str, dict[str, Any]] = {
    "missing image": {"image": "registry.example/team/filter:gone"},
    "not wasm": {"image": "registry.example/team/filter:bad"},
    "another digest": {"sha256": digest("0")},
    "missing secret": {"image": OTHER, "spec": {"secret": "gone"}},
    "invalid spec": {"applyPorts": [0]},
    "unknown field": {"port": 80},
}


@pytest.mark.parametrize("case", FAILURES)
async def test_failed_change_keeps_the_published_module(
    cluster: ReconciledCluster, process: Process, case: str
) -> None:
    cluster.registry.add("registry.example/team/filter:bad", b"not wasm")
    await process.apply()
    before = dict(cluster.publisher.envoyfilters)
    cluster.publisher.writes.clear()
    await process.apply(**FAILURES[case])
    assert cluster.publisher.envoyfilters == before
    assert set(kinds(cluster)) == {"status"}
    assert cluster.status["phase"] == "Degraded"
    assert (
        f"the previous module (sha256:{sha(WORLD)[:12]}) is still in place"
        in cluster.status["message"]
    )
    assert cluster.status["observedGeneration"] == 2
    assert cluster.condition("Published") == ("True", "Published")
    assert cluster.condition("Ready")[0] == "False"
    assert cluster.recorded_events[-1][:2] == ("Warning", "Degraded")
    assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    await process.apply(image=OTHER)
    assert (cluster.live, cluster.status["phase"]) == (sha(EARTH), "Synced")


@pytest.mark.parametrize("case", FAILURES)
async def test_failure_with_nothing_published_publishes_nothing(
    cluster: ReconciledCluster, process: Process, case: str
) -> None:
    cluster.registry.add("registry.example/team/filter:bad", b"not wasm")
    await process.apply(**FAILURES[case])
    assert not cluster.publisher.envoyfilters
    assert cluster.status["phase"] == "Failed"
    assert cluster.condition("Published") == ("False", "NotPublished")


async def test_registry_that_is_down_is_tried_again_by_itself(
    cluster: ReconciledCluster, process: Process
) -> None:
    cluster.registry.failures["resolve"] = DOWN
    cluster.objects.apply(document())
    await process.until("Failed")
    assert cluster.condition("Fetched") == ("False", "RegistryUnavailable")
    cluster.registry.failures.clear()
    await process.until("Synced")
    assert cluster.live == sha(WORLD)


async def test_status_is_not_written_again_while_the_failure_is_the_same(
    cluster: ReconciledCluster, process: Process
) -> None:
    cluster.registry.failures["resolve"] = DOWN
    cluster.objects.apply(document())
    await process.until("Failed")
    async with asyncio.timeout(10):
        while cluster.registry.count("resolve") < 5:
            await asyncio.sleep(0.001)
    assert kinds(cluster) == ["status"]
    assert len(cluster.recorded_events) == 1


async def test_fetching_is_shown_after_a_moment_only(
    cluster: ReconciledCluster, process: Process
) -> None:
    gate = cluster.registry.gates["resolve"] = asyncio.Event()
    cluster.objects.apply(document())
    begin = asyncio.get_running_loop().time()
    await process.until("Fetching")
    assert asyncio.get_running_loop().time() - begin >= module.FETCHING_SHOWN_AFTER - 0.05
    assert IMAGE in cluster.status["message"]
    assert cluster.condition("Fetched") == ("Unknown", "Fetching")
    gate.set()
    await process.until("Synced")
    assert kinds(cluster) == ["status", "envoyfilter", "status"]


async def test_fetch_of_a_change_replaces_the_previous_failure(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply(image="registry.example/team/filter:gone")
    assert cluster.status["phase"] == "Failed"
    cluster.registry.gates["resolve"] = asyncio.Event()
    cluster.objects.apply(document(image=OTHER))
    await process.until("Fetching")
    cluster.registry.gates["resolve"].set()
    await process.until("Synced")


async def test_long_retry_keeps_the_message_of_the_failure(
    cluster: ReconciledCluster, process: Process
) -> None:
    cluster.registry.failures["resolve"] = DOWN
    cluster.objects.apply(document())
    await process.until("Failed")
    cluster.registry.gates["resolve"] = asyncio.Event()
    async with asyncio.timeout(10):
        while not process.jobs.is_running(KEY):
            await asyncio.sleep(0.001)
    await asyncio.sleep(module.FETCHING_SHOWN_AFTER + 0.1)
    assert cluster.status["phase"] == "Failed"
    assert "refused" in cluster.status["message"]


async def test_foreign_envoyfilter_is_a_conflict_not_a_failed_fetch(
    cluster: ReconciledCluster, process: Process
) -> None:
    cluster.publisher.refusal = SpecError(
        "metadata.name", "that one is not ours", reason="EnvoyFilterConflict"
    )
    await process.apply()
    assert cluster.status["phase"] == "Failed"
    assert cluster.condition("Fetched")[0] == "True"
    assert cluster.condition("Published") == ("False", "EnvoyFilterConflict")
    cluster.publisher.refusal = None
    await process.settle()
    assert cluster.status["phase"] == "Synced"
    assert cluster.registry.count("fetch") == 1


@pytest.mark.parametrize("reason", ["EnvoyFilterConflict", "EnvoyFilterTerminating"])
async def test_envoyfilter_that_is_handed_over_is_noticed_without_an_event(
    cluster: ReconciledCluster, process: Process, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNMANAGED_RETRY", 0.05)
    cluster.publisher.refusal = SpecError("metadata.name", "that one is not ours", reason=reason)
    await process.apply()
    assert cluster.status["phase"] == "Failed"
    cluster.publisher.refusal = None
    async with asyncio.timeout(30):
        while cluster.status["phase"] != "Synced":
            await asyncio.sleep(0.01)


async def test_repeatedly_rewritten_envoyfilter_is_reported(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    cluster.publisher.refusal = AutoWasmError("something rewrites it", reason="Mutated")
    await process.apply(rootID="changed")
    assert cluster.status["phase"] == "Degraded"
    assert cluster.condition("Published") == ("False", "Mutated")


async def test_envoyfilter_whose_label_is_repeatedly_removed_is_reported(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    cluster.publisher.unseen[KEY] = cluster.publisher.envoyfilters.pop(KEY)
    cluster.publisher.refusal = AutoWasmError("something rewrites it", reason="Mutated")
    await process.settle()
    assert cluster.condition("Published") == ("False", "Mutated")
    assert not process.queue.num_requeues(KEY)


async def test_disk_that_is_full_is_left_to_the_queue(
    cluster: ReconciledCluster, process: Process
) -> None:
    cluster.publisher.refusal = StorageError("no space", reason="StorageFull")
    cluster.objects.apply(document())
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while not process.queue.num_requeues(KEY):
            await asyncio.sleep(0.001)
    assert not cluster.publisher.writes
    cluster.publisher.refusal = None
    await process.until("Synced")


async def test_problem_outside_the_object_keeps_the_filter(
    cluster: ReconciledCluster, process: Process
) -> None:
    await process.apply()
    before = dict(cluster.publisher.envoyfilters)
    cluster.objects.problems[KEY] = SpecError("metadata.name", "twice", reason="DuplicateObject")
    await process.settle()
    assert cluster.publisher.envoyfilters == before
    assert cluster.status["phase"] == "Degraded"
    assert cluster.condition("Fetched") == ("Unknown", "DuplicateObject")
    cluster.objects.problems.clear()
    await process.settle()
    assert cluster.status["phase"] == "Synced"


class Limited(Process):
    """The share of the namespace has no room while `is_full`."""

    is_full = True

    def module_collaborators(self) -> dict[str, Any]:
        return {"admit": self.admit}

    def admit(self, owner: str, namespace: str, sha256: str) -> None:
        if self.is_full:
            raise StorageError(f"the share of namespace {namespace} is full", reason="StorageFull")


async def test_module_without_room_in_the_share_of_its_namespace_is_not_published(
    cluster: ReconciledCluster, tmp_path: Path
) -> None:
    async with running(Limited, cluster, tmp_path / "limited") as process:
        process.cluster.objects.apply(document())
        await process.until("Failed")
        assert cluster.live is None
        assert cluster.condition("Fetched")[1] == "StorageFull"
        assert "share of namespace default is full" in str(cluster.status["conditions"])
        process.is_full = False
        await process.until("Synced")
        assert cluster.live == sha(WORLD)
