"""The reconciler of one replica among others: as leader, as follower, and the order of its writes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from autowasm.controller.replication import ReplicaWaiter
from autowasm.digest import sha256_hex
from autowasm.errors import SourceNotFound
from autowasm.kube.leaderelection import Leadership, Tenure
from tests.fakes.autowasms import IMAGE, document
from tests.parts import wat
from tests.unit.controller.reconciling.world import (
    DOWN,
    EARTH,
    KEY,
    OTHER,
    WORLD,
    Process,
    World,
    running,
    sha,
)

FOREVER = 1e9
GONE = SourceNotFound("no such manifest")


class FakeReplicas:
    """The others; they have the modules of `stored`."""

    def __init__(self) -> None:
        self.urls: tuple[str, ...] = ()
        self.stored: set[str] = set()
        self.changed = asyncio.Event()
        self.requests: list[tuple[str, float]] = []
        self.fault: Exception | None = None

    def known(self) -> tuple[str, ...]:
        return self.urls

    async def wait_all_have(self, sha256: str, timeout: float) -> bool:
        self.requests.append((sha256, timeout))
        if self.fault is not None:
            raise self.fault
        try:
            async with asyncio.timeout(min(timeout, 0.05)):
                while sha256 not in self.stored:
                    await asyncio.sleep(0.001)
        except TimeoutError:
            return False
        return True


class SharedWorld(World):
    """The cluster that several replicas write to, each with a disk of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.replicas = FakeReplicas()

    def writes(self) -> list[str]:
        """Kinds, with the phase of each status."""
        return [
            f"status {value['phase']}" if kind == "status" else kind
            for kind, value in self.publisher.writes
        ]


class Replica(Process):
    """One process."""

    world: SharedWorld

    def module_collaborators(self) -> dict[str, Any]:
        replica_waiter = ReplicaWaiter(
            self.world.replicas, tasks=self.tasks, on_change=self.queue.add
        )
        return {"replica_waiter": replica_waiter}

    def leadership(self) -> Leadership:
        self.tenure = Tenure(lambda _: None)
        return self.tenure

    def lead(self, leading: bool = True) -> None:
        if leading:
            self.tenure.extend(FOREVER)
        else:
            self.tenure.end()
            self.jobs.drop_resolving()
        self.queue.add(KEY)


@pytest.fixture
def world(tmp_path: Path) -> SharedWorld:
    return SharedWorld(tmp_path)


def started(world: SharedWorld, directory: Path) -> AbstractAsyncContextManager[Replica]:
    return running(Replica, world, directory)


@pytest.fixture
async def replica(world: SharedWorld, tmp_path: Path) -> AsyncIterator[Replica]:
    async with started(world, tmp_path / "one") as replica:
        yield replica


@pytest.fixture
async def another(world: SharedWorld, tmp_path: Path) -> AsyncIterator[Replica]:
    async with started(world, tmp_path / "two") as replica:
        yield replica


async def test_follower_resolves_nothing_and_writes_nothing(
    world: SharedWorld, replica: Replica
) -> None:
    world.objects.apply(document())
    await replica.settle()
    assert not world.registry.steps
    assert not world.publisher.writes


async def test_follower_keeps_nothing_of_an_autowasm_that_is_gone(
    world: SharedWorld, replica: Replica
) -> None:
    world.objects.apply(document())
    await replica.settle()
    del world.objects.documents[KEY]
    await replica.settle()
    assert KEY in world.publisher.forgotten
    assert not world.publisher.writes


async def test_follower_has_what_the_leader_published(
    world: SharedWorld, replica: Replica, another: Replica
) -> None:
    world.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    writes = list(world.publisher.writes)
    await another.settle()
    await another.settle()
    assert world.live in another.store
    assert world.registry.count("resolve") == 1
    assert world.publisher.writes == writes


async def test_new_leader_writes_nothing_that_is_there(
    world: SharedWorld, replica: Replica, another: Replica
) -> None:
    world.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    world.publisher.writes.clear()
    replica.lead(False)
    another.lead()
    await another.settle()
    await replica.settle()
    assert not world.publisher.writes
    assert world.registry.count("resolve") == 1


async def test_lost_leadership_drops_what_was_being_resolved(
    world: SharedWorld, replica: Replica
) -> None:
    world.registry.failures["resolve"] = DOWN
    world.objects.apply(document())
    replica.lead()
    await replica.until("Failed")
    replica.lead(False)
    await replica.settle()
    requests = world.registry.count("resolve")
    await asyncio.sleep(0.1)  # several retry delays
    assert world.registry.count("resolve") == requests


async def test_record_is_announced_and_copied_before_envoys_get_it(
    world: SharedWorld, replica: Replica, another: Replica
) -> None:
    world.replicas.urls = ("http://two",)
    world.objects.apply(document())
    replica.lead()
    await replica.until("Fetching")
    digest = sha(WORLD)
    assert world.status["module"]["sha256"] == digest
    assert "history" not in world.status
    await another.settle()
    assert digest in another.store
    assert another.published.is_known(digest)
    world.replicas.stored.add(digest)
    await replica.until("Synced")
    assert world.writes() == ["status Fetching", "envoyfilter", "status Synced"]
    assert world.registry.count("resolve") == 1


async def test_replica_that_never_has_it_holds_up_no_rollout(
    world: SharedWorld, replica: Replica
) -> None:
    world.replicas.urls = ("http://two",)
    world.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    assert [timeout for _, timeout in world.replicas.requests] == [0.5, 5.0]


async def test_fault_of_ours_while_replicas_are_asked_holds_up_no_rollout(
    world: SharedWorld, replica: Replica
) -> None:
    world.replicas.urls = ("http://two",)
    world.replicas.fault = RuntimeError("a bug")
    world.objects.apply(document())
    replica.lead()
    with capture_logs() as events:
        await replica.until("Synced")
    assert world.live == sha(WORLD)
    faults = [event for event in events if event["event"] == "replication failed unexpectedly"]
    assert [(event["key"], event["digest"]) for event in faults] == [(str(KEY), sha(WORLD))] * 2


async def test_replicas_that_have_it_already_get_no_message(
    world: SharedWorld, replica: Replica
) -> None:
    world.replicas.urls = ("http://two",)
    world.replicas.stored.add(sha(WORLD))
    world.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    assert world.writes() == ["envoyfilter", "status Synced"]


async def test_leader_that_dies_between_status_and_envoyfilter_is_continued_exactly(
    world: SharedWorld, replica: Replica, another: Replica
) -> None:
    world.replicas.urls = ("http://two",)
    world.objects.apply(document())
    replica.lead()
    await replica.until("Fetching")
    replica.lead(False)
    await replica.settle()
    world.registry.add(IMAGE, wat.header_filter(EARTH))  # the tag moves meanwhile
    world.replicas.stored.add(sha(WORLD))
    another.lead()
    await another.until("Synced")
    assert world.live == sha(WORLD)
    assert world.registry.count("resolve") == 1


async def test_always_that_was_reported_and_not_published_is_not_rolled_back(
    world: SharedWorld, replica: Replica, another: Replica
) -> None:
    """The spec changed, the moved tag is resolved and in the status; the next leader must not keep the live module."""
    world.objects.apply(document(pullPolicy="Always"))
    replica.lead()
    await replica.until("Synced")
    world.registry.add(IMAGE, wat.header_filter(EARTH))
    world.replicas.urls = ("http://two",)
    world.objects.apply(document(pullPolicy="Always", rootID="changed"))
    await replica.until("Fetching")
    replica.lead(False)
    await replica.settle()
    another.lead()
    async with asyncio.timeout(10):
        while world.live != sha(EARTH):
            await asyncio.sleep(0.001)


async def test_forged_status_makes_nothing_known_to_a_follower(
    world: SharedWorld, replica: Replica, another: Replica
) -> None:
    world.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    module = dict(world.status["module"])
    forged = {**module, "sha256": "1" * 64, "image": f"evil.example/x@sha256:{'1' * 64}"}
    world.objects.documents[KEY]["status"] = {**world.status, "module": forged, "history": []}
    world.registry.steps.clear()
    digest = sha256_hex("1" * 64)
    await another.settle()
    assert not another.published.is_known(digest)
    assert digest not in another.store
    assert world.live in another.store


async def test_published_module_whose_origin_is_down_is_not_called_lost(
    world: SharedWorld, replica: Replica, another: Replica
) -> None:
    world.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    replica.lead(False)
    world.registry.failures["pin"] = DOWN
    another.lead()
    await another.until("Degraded")
    fetched = next(one for one in world.status["conditions"] if one["type"] == "Fetched")
    assert fetched["reason"] == "RegistryUnavailable"
    world.registry.failures.clear()
    await another.until("Synced")


async def test_remembered_record_that_is_gone_has_its_source_resolved_afresh(
    world: SharedWorld, replica: Replica, another: Replica
) -> None:
    world.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    world.objects.apply(document(image=OTHER))
    await replica.settle()
    await replica.until("Synced")
    assert world.live == sha(EARTH)
    replica.lead(False)
    another.lead()
    await another.settle()
    world.registry.failures["pin"] = GONE
    world.objects.apply(document(image=IMAGE))  # back, with nothing stored and no manifest left
    await another.settle()
    async with asyncio.timeout(10):
        while world.live != sha(WORLD):
            await asyncio.sleep(0.001)
