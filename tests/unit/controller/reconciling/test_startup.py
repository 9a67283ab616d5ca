"""A reconcile copies missing published modules from other replicas, and opens the start-up gate when they are settled."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from autowasm.controller.reconciler import StartupGate
from autowasm.controller.replication import Prefetcher
from autowasm.digest import Sha256Hex
from autowasm.errors import AutoWasmError, SourceNotFound
from autowasm.kube.controller import TerminalError
from autowasm.limits import FetchLimits
from autowasm.reasons import Reason
from tests.parts import wat
from tests.unit.controller.reconciling.cluster import (
    EARTH,
    IMAGE,
    KEY,
    WORLD,
    Process,
    ReconciledCluster,
    running,
    sha,
)

MODULE = wat.header_filter(WORLD)


class Peers:
    """The other replicas, and whether they have the module."""

    def __init__(self) -> None:
        self.have = False
        self.requested: list[Sha256Hex] = []


class NewReplica(Process):
    """A replica with other replicas, whose gate reports to `ready`."""

    def module_collaborators(self) -> dict[str, Any]:
        self.peers = Peers()
        self.ready: list[tuple[bool, str]] = []
        prefetcher = Prefetcher(
            publisher=self.cluster.publisher,
            store=self.store,
            copy=self.copy,
            limits=FetchLimits(retry_base=0.01),
            tasks=self.tasks,
            on_change=self.queue.add,
        )
        return {"prefetcher": prefetcher}

    def startup_gate(self) -> StartupGate:
        self.gate = StartupGate(lambda ok, why: self.ready.append((ok, why)))
        return self.gate

    async def copy(self, sha256: Sha256Hex) -> bool:
        self.peers.requested.append(sha256)
        if self.peers.have:
            async with self.store.stage() as stage:
                await asyncio.to_thread(stage.path.write_bytes, MODULE)
                await self.store.commit(stage, sha256)
        return self.peers.have


@pytest.fixture
def cluster(tmp_path: Path) -> ReconciledCluster:
    return ReconciledCluster(tmp_path / "first")


@pytest.fixture
async def replica(cluster: ReconciledCluster, tmp_path: Path) -> AsyncIterator[NewReplica]:
    """A new replica with an empty disk; the published module is gone from the registry."""
    async with cluster.process() as process:
        await process.apply()
    cluster.registry.add(IMAGE, wat.header_filter(EARTH))
    cluster.registry.failures["pin"] = SourceNotFound("gone", reason="ImageNotFound")
    async with running(NewReplica, cluster, tmp_path / "second") as replica:
        yield replica
        cluster.publisher.envoyfilters.clear()
        await replica.settle()


async def test_module_that_only_other_replicas_have_is_copied_before_the_replica_is_ready(
    replica: NewReplica,
) -> None:
    replica.peers.have = True
    replica.gate.expect([KEY])
    assert [ok for ok, _ in replica.ready] == [False]
    replica.queue.add(KEY)
    async with asyncio.timeout(10):
        while len(replica.ready) < 2:
            await asyncio.sleep(0.001)
    assert sha(WORLD) in replica.store
    assert replica.ready[-1] == (True, "")


async def test_replica_is_ready_after_one_try_and_the_copy_is_tried_again(
    replica: NewReplica,
) -> None:
    replica.gate.expect([KEY])
    replica.queue.add(KEY)
    async with asyncio.timeout(10):
        while len(replica.ready) < 2:
            await asyncio.sleep(0.001)
        assert replica.peers.requested
        assert sha(WORLD) not in replica.store
        replica.peers.have = True
        while sha(WORLD) not in replica.store:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "error",
    [
        AutoWasmError("a webhook denied it", reason=Reason.ENVOY_FILTER_REFUSED),
        TerminalError("namespace default is being deleted"),
        RuntimeError("a bug"),
    ],
    ids=["refused", "permanent", "unexpected"],
)
async def test_key_that_fails_at_each_reconcile_does_not_keep_the_replica_unready(
    replica: NewReplica, error: Exception
) -> None:
    replica.peers.have = True
    replica.cluster.publisher.refusal = error
    replica.gate.expect([KEY])
    replica.queue.add(KEY)
    async with asyncio.timeout(10):
        while len(replica.ready) < 2:
            await asyncio.sleep(0.001)
    assert replica.ready[-1] == (True, "")
    assert sha(WORLD) in replica.store
    replica.cluster.publisher.refusal = None
