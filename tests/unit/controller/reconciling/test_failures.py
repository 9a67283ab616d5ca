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
from tests.unit.controller.reconciling.world import (
    DOWN,
    EARTH,
    KEY,
    OTHER,
    WORLD,
    Process,
    World,
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
async def test_failure_never_touches_what_works(world: World, process: Process, case: str) -> None:
    world.registry.add("registry.example/team/filter:bad", b"not wasm")
    await process.apply()
    before = dict(world.publisher.envoyfilters)
    world.publisher.writes.clear()
    await process.apply(**FAILURES[case])
    assert world.publisher.envoyfilters == before
    assert set(kinds(world)) == {"status"}
    assert world.status["phase"] == "Degraded"
    assert (
        f"the previous module (sha256:{sha(WORLD)[:12]}) is still in place"
        in world.status["message"]
    )
    assert world.status["observedGeneration"] == 2
    assert world.condition("Published") == ("True", "Published")
    assert world.condition("Ready")[0] == "False"
    assert world.recorded_events[-1][:2] == ("Warning", "Degraded")
    assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    await process.apply(image=OTHER)
    assert (world.live, world.status["phase"]) == (sha(EARTH), "Synced")


@pytest.mark.parametrize("case", FAILURES)
async def test_failure_with_nothing_published_publishes_nothing(
    world: World, process: Process, case: str
) -> None:
    world.registry.add("registry.example/team/filter:bad", b"not wasm")
    await process.apply(**FAILURES[case])
    assert not world.publisher.envoyfilters
    assert world.status["phase"] == "Failed"
    assert world.condition("Published") == ("False", "NotPublished")


async def test_registry_that_is_down_is_tried_again_by_itself(
    world: World, process: Process
) -> None:
    world.registry.failures["resolve"] = DOWN
    world.objects.apply(document())
    await process.until("Failed")
    assert world.condition("Fetched") == ("False", "RegistryUnavailable")
    world.registry.failures.clear()
    await process.until("Synced")
    assert world.live == sha(WORLD)


async def test_status_is_not_written_again_while_the_failure_is_the_same(
    world: World, process: Process
) -> None:
    world.registry.failures["resolve"] = DOWN
    world.objects.apply(document())
    await process.until("Failed")
    async with asyncio.timeout(10):
        while world.registry.count("resolve") < 5:
            await asyncio.sleep(0.001)
    assert kinds(world) == ["status"]
    assert len(world.recorded_events) == 1


async def test_fetching_is_shown_after_a_moment_only(world: World, process: Process) -> None:
    gate = world.registry.gates["resolve"] = asyncio.Event()
    world.objects.apply(document())
    begin = asyncio.get_running_loop().time()
    await process.until("Fetching")
    assert asyncio.get_running_loop().time() - begin >= module.FETCHING_SHOWN_AFTER - 0.05
    assert IMAGE in world.status["message"]
    assert world.condition("Fetched") == ("Unknown", "Fetching")
    gate.set()
    await process.until("Synced")
    assert kinds(world) == ["status", "envoyfilter", "status"]


async def test_fetching_of_a_change_replaces_what_failed_before(
    world: World, process: Process
) -> None:
    await process.apply(image="registry.example/team/filter:gone")
    assert world.status["phase"] == "Failed"
    world.registry.gates["resolve"] = asyncio.Event()
    world.objects.apply(document(image=OTHER))
    await process.until("Fetching")
    world.registry.gates["resolve"].set()
    await process.until("Synced")


async def test_retry_that_takes_long_keeps_telling_what_failed(
    world: World, process: Process
) -> None:
    world.registry.failures["resolve"] = DOWN
    world.objects.apply(document())
    await process.until("Failed")
    world.registry.gates["resolve"] = asyncio.Event()
    async with asyncio.timeout(10):
        while not process.jobs.is_running(KEY):
            await asyncio.sleep(0.001)
    await asyncio.sleep(module.FETCHING_SHOWN_AFTER + 0.1)
    assert world.status["phase"] == "Failed"
    assert "refused" in world.status["message"]


async def test_foreign_envoyfilter_is_a_conflict_not_a_failed_fetch(
    world: World, process: Process
) -> None:
    world.publisher.refusal = SpecError(
        "metadata.name", "that one is not ours", reason="EnvoyFilterConflict"
    )
    await process.apply()
    assert world.status["phase"] == "Failed"
    assert world.condition("Fetched")[0] == "True"
    assert world.condition("Published") == ("False", "EnvoyFilterConflict")
    world.publisher.refusal = None
    await process.settle()
    assert world.status["phase"] == "Synced"
    assert world.registry.count("fetch") == 1


@pytest.mark.parametrize("reason", ["EnvoyFilterConflict", "EnvoyFilterTerminating"])
async def test_envoyfilter_that_is_handed_over_is_noticed_without_an_event(
    world: World, process: Process, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNMANAGED_RETRY", 0.05)
    world.publisher.refusal = SpecError("metadata.name", "that one is not ours", reason=reason)
    await process.apply()
    assert world.status["phase"] == "Failed"
    world.publisher.refusal = None
    async with asyncio.timeout(30):
        while world.status["phase"] != "Synced":
            await asyncio.sleep(0.01)


async def test_filter_that_somebody_keeps_rewriting_is_reported(
    world: World, process: Process
) -> None:
    await process.apply()
    world.publisher.refusal = AutoWasmError("something rewrites it", reason="Mutated")
    await process.apply(rootID="changed")
    assert world.status["phase"] == "Degraded"
    assert world.condition("Published") == ("False", "Mutated")


async def test_filter_whose_label_somebody_keeps_taking_off_is_reported(
    world: World, process: Process
) -> None:
    await process.apply()
    world.publisher.unseen[KEY] = world.publisher.envoyfilters.pop(KEY)
    world.publisher.refusal = AutoWasmError("something rewrites it", reason="Mutated")
    await process.settle()
    assert world.condition("Published") == ("False", "Mutated")
    assert not process.queue.num_requeues(KEY)


async def test_disk_that_is_full_is_left_to_the_queue(world: World, process: Process) -> None:
    world.publisher.refusal = StorageError("no space", reason="StorageFull")
    world.objects.apply(document())
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while not process.queue.num_requeues(KEY):
            await asyncio.sleep(0.001)
    assert not world.publisher.writes
    world.publisher.refusal = None
    await process.until("Synced")


async def test_problem_outside_the_object_keeps_the_filter(world: World, process: Process) -> None:
    await process.apply()
    before = dict(world.publisher.envoyfilters)
    world.objects.problems[KEY] = SpecError("metadata.name", "twice", reason="DuplicateObject")
    await process.settle()
    assert world.publisher.envoyfilters == before
    assert world.status["phase"] == "Degraded"
    assert world.condition("Fetched") == ("Unknown", "DuplicateObject")
    world.objects.problems.clear()
    await process.settle()
    assert world.status["phase"] == "Synced"


class Limited(Process):
    """The share of the namespace has no room while `is_full`."""

    is_full = True

    def module_collaborators(self) -> dict[str, Any]:
        return {"admit": self.admit}

    def admit(self, owner: str, namespace: str, sha256: str) -> None:
        if self.is_full:
            raise StorageError(f"the share of namespace {namespace} is full", reason="StorageFull")


async def test_module_without_room_in_the_share_of_its_namespace_is_not_published(
    world: World, tmp_path: Path
) -> None:
    async with running(Limited, world, tmp_path / "limited") as process:
        process.world.objects.apply(document())
        await process.until("Failed")
        assert world.live is None
        assert world.condition("Fetched")[1] == "StorageFull"
        assert "share of namespace default is full" in str(world.status["conditions"])
        process.is_full = False
        await process.until("Synced")
        assert world.live == sha(WORLD)
