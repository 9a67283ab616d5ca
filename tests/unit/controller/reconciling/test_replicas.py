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
from tests.unit.controller.reconciling.cluster import (
    DOWN,
    EARTH,
    KEY,
    OTHER,
    WORLD,
    Process,
    ReconciledCluster,
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


class SharedCluster(ReconciledCluster):
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

    cluster: SharedCluster

    def module_collaborators(self) -> dict[str, Any]:
        replica_waiter = ReplicaWaiter(
            self.cluster.replicas, tasks=self.tasks, on_change=self.queue.add
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
def cluster(tmp_path: Path) -> SharedCluster:
    return SharedCluster(tmp_path)


def started(cluster: SharedCluster, directory: Path) -> AbstractAsyncContextManager[Replica]:
    return running(Replica, cluster, directory)


@pytest.fixture
async def replica(cluster: SharedCluster, tmp_path: Path) -> AsyncIterator[Replica]:
    async with started(cluster, tmp_path / "one") as replica:
        yield replica


@pytest.fixture
async def another(cluster: SharedCluster, tmp_path: Path) -> AsyncIterator[Replica]:
    async with started(cluster, tmp_path / "two") as replica:
        yield replica


async def test_follower_resolves_nothing_and_writes_nothing(
    cluster: SharedCluster, replica: Replica
) -> None:
    cluster.objects.apply(document())
    await replica.settle()
    assert not cluster.registry.steps
    assert not cluster.publisher.writes


async def test_follower_keeps_nothing_of_an_autowasm_that_is_gone(
    cluster: SharedCluster, replica: Replica
) -> None:
    cluster.objects.apply(document())
    await replica.settle()
    del cluster.objects.documents[KEY]
    await replica.settle()
    assert KEY in cluster.publisher.forgotten
    assert not cluster.publisher.writes


async def test_follower_copies_the_module_that_the_leader_published(
    cluster: SharedCluster, replica: Replica, another: Replica
) -> None:
    cluster.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    writes = list(cluster.publisher.writes)
    await another.settle()
    await another.settle()
    assert cluster.live in another.store
    assert cluster.registry.count("resolve") == 1
    assert cluster.publisher.writes == writes


async def test_new_leader_rewrites_no_published_object(
    cluster: SharedCluster, replica: Replica, another: Replica
) -> None:
    cluster.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    cluster.publisher.writes.clear()
    replica.lead(False)
    another.lead()
    await another.settle()
    await replica.settle()
    assert not cluster.publisher.writes
    assert cluster.registry.count("resolve") == 1


async def test_lost_leadership_stops_resolving(cluster: SharedCluster, replica: Replica) -> None:
    cluster.registry.failures["resolve"] = DOWN
    cluster.objects.apply(document())
    replica.lead()
    await replica.until("Failed")
    replica.lead(False)
    await replica.settle()
    requests = cluster.registry.count("resolve")
    await asyncio.sleep(0.1)  # several retry delays
    assert cluster.registry.count("resolve") == requests


async def test_record_is_announced_and_copied_before_envoys_get_it(
    cluster: SharedCluster, replica: Replica, another: Replica
) -> None:
    cluster.replicas.urls = ("http://two",)
    cluster.objects.apply(document())
    replica.lead()
    await replica.until("Fetching")
    digest = sha(WORLD)
    assert cluster.status["module"]["sha256"] == digest
    assert "history" not in cluster.status
    await another.settle()
    assert digest in another.store
    assert another.published.is_known(digest)
    cluster.replicas.stored.add(digest)
    await replica.until("Synced")
    assert cluster.writes() == ["status Fetching", "envoyfilter", "status Synced"]
    assert cluster.registry.count("resolve") == 1


async def test_replica_that_never_has_it_holds_up_no_rollout(
    cluster: SharedCluster, replica: Replica
) -> None:
    cluster.replicas.urls = ("http://two",)
    cluster.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    assert [timeout for _, timeout in cluster.replicas.requests] == [0.5, 5.0]


async def test_fault_of_ours_while_replicas_are_asked_holds_up_no_rollout(
    cluster: SharedCluster, replica: Replica
) -> None:
    cluster.replicas.urls = ("http://two",)
    cluster.replicas.fault = RuntimeError("a bug")
    cluster.objects.apply(document())
    replica.lead()
    with capture_logs() as events:
        await replica.until("Synced")
    assert cluster.live == sha(WORLD)
    faults = [event for event in events if event["event"] == "replication failed unexpectedly"]
    assert [(event["key"], event["digest"]) for event in faults] == [(str(KEY), sha(WORLD))] * 2


async def test_replicas_that_have_it_already_get_no_message(
    cluster: SharedCluster, replica: Replica
) -> None:
    cluster.replicas.urls = ("http://two",)
    cluster.replicas.stored.add(sha(WORLD))
    cluster.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    assert cluster.writes() == ["envoyfilter", "status Synced"]


async def test_leader_that_dies_between_status_and_envoyfilter_is_continued_exactly(
    cluster: SharedCluster, replica: Replica, another: Replica
) -> None:
    cluster.replicas.urls = ("http://two",)
    cluster.objects.apply(document())
    replica.lead()
    await replica.until("Fetching")
    replica.lead(False)
    await replica.settle()
    cluster.registry.add(IMAGE, wat.header_filter(EARTH))  # the tag moves meanwhile
    cluster.replicas.stored.add(sha(WORLD))
    another.lead()
    await another.until("Synced")
    assert cluster.live == sha(WORLD)
    assert cluster.registry.count("resolve") == 1


async def test_always_that_was_reported_and_not_published_is_not_rolled_back(
    cluster: SharedCluster, replica: Replica, another: Replica
) -> None:
    """The spec changed, the moved tag is resolved and in the status; the next leader must not keep the live module."""
    cluster.objects.apply(document(pullPolicy="Always"))
    replica.lead()
    await replica.until("Synced")
    cluster.registry.add(IMAGE, wat.header_filter(EARTH))
    cluster.replicas.urls = ("http://two",)
    cluster.objects.apply(document(pullPolicy="Always", rootID="changed"))
    await replica.until("Fetching")
    replica.lead(False)
    await replica.settle()
    another.lead()
    async with asyncio.timeout(10):
        while cluster.live != sha(EARTH):
            await asyncio.sleep(0.001)


async def test_forged_status_makes_nothing_known_to_a_follower(
    cluster: SharedCluster, replica: Replica, another: Replica
) -> None:
    cluster.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    module = dict(cluster.status["module"])
    forged = {**module, "sha256": "1" * 64, "image": f"evil.example/x@sha256:{'1' * 64}"}
    cluster.objects.documents[KEY]["status"] = {**cluster.status, "module": forged, "history": []}
    cluster.registry.steps.clear()
    digest = sha256_hex("1" * 64)
    await another.settle()
    assert not another.published.is_known(digest)
    assert digest not in another.store
    assert cluster.live in another.store


async def test_published_module_whose_origin_is_down_is_not_called_lost(
    cluster: SharedCluster, replica: Replica, another: Replica
) -> None:
    cluster.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    replica.lead(False)
    cluster.registry.failures["pin"] = DOWN
    another.lead()
    await another.until("Degraded")
    fetched = next(one for one in cluster.status["conditions"] if one["type"] == "Fetched")
    assert fetched["reason"] == "RegistryUnavailable"
    cluster.registry.failures.clear()
    await another.until("Synced")


async def test_record_of_the_history_whose_image_is_gone_resolves_its_source_again(
    cluster: SharedCluster, replica: Replica, another: Replica
) -> None:
    cluster.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    cluster.objects.apply(document(image=OTHER))
    await replica.settle()
    await replica.until("Synced")
    assert cluster.live == sha(EARTH)
    replica.lead(False)
    another.lead()
    await another.settle()
    cluster.registry.failures["pin"] = GONE
    cluster.objects.apply(document(image=IMAGE))  # back, with nothing stored and no manifest left
    await another.settle()
    async with asyncio.timeout(10):
        while cluster.live != sha(WORLD):
            await asyncio.sleep(0.001)
