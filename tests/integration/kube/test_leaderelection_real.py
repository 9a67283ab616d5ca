"""Two electors on a real API server, one of them behind a proxy that fails it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
import yaml

from autowasm.kube.client import KubeClient
from autowasm.kube.leaderelection import LeaderElector, Lease, LeaseTimings, NotLeading
from autowasm.kube.resources import ObjectKey
from autowasm.limits import KubeLimits
from autowasm.net.pools import Pools
from tests.parts.controlplane import ControlPlane
from tests.parts.faults.proxy import FaultProxy, Hang, Pass
from tests.parts.kubernetes import Cluster

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

TIMINGS = LeaseTimings(lease_duration=9, renew_deadline=6.0, retry_period=0.3)
"""On a busy machine a renewal takes a second or two."""


@pytest_asyncio.fixture(loop_scope="session")
async def key(control_plane: ControlPlane) -> ObjectKey:
    """Of a Lease in a namespace of its own."""
    return ObjectKey(await control_plane.add_namespace("elected"), "elected")


@dataclass
class Candidate:
    elector: LeaderElector
    proxy: FaultProxy
    task: asyncio.Task[None]

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@pytest_asyncio.fixture(loop_scope="session")
async def pair(cluster: Cluster, key: ObjectKey, tmp_path: Path) -> AsyncIterator[list[Candidate]]:
    url = urlsplit(cluster.url)
    async with AsyncExitStack() as stack:
        pools = stack.enter_context(Pools())
        candidates: list[Candidate] = []
        for name in ("one", "two"):
            proxy = await stack.enter_async_context(
                FaultProxy(str(url.hostname), int(url.port or 0))
            )
            config = yaml.safe_load(cluster.kubeconfig.read_text())
            for server in config["clusters"]:
                server["cluster"]["server"] = f"https://127.0.0.1:{proxy.port}"
            kubeconfig = tmp_path / name
            kubeconfig.write_text(yaml.safe_dump(config))
            client = await stack.enter_async_context(
                KubeClient(
                    kubeconfig=kubeconfig, pools=pools, user_agent="test", limits=KubeLimits()
                )
            )
            elector = LeaderElector(Lease(client, key), lease=key, identity=name, timings=TIMINGS)
            task = asyncio.get_running_loop().create_task(elector.run(), name=name)
            candidates.append(Candidate(elector, proxy, task))
            async with asyncio.timeout(30):
                await candidates[0].elector.acquired()
        yield candidates
        for candidate in candidates:
            candidate.proxy.mode = Pass()
            await candidate.stop()


async def test_hanging_connection_ends_leading_before_the_next_leader_begins(
    cluster: Cluster, key: ObjectKey, pair: list[Candidate]
) -> None:
    one, two = pair
    loop = asyncio.get_running_loop()
    path = f"/apis/coordination.k8s.io/v1/namespaces/{key.namespace}/leases/{key.name}"
    lease = (await cluster.request("GET", path))["spec"]
    assert lease["holderIdentity"] == "one"
    assert lease["acquireTime"].endswith("Z")
    one.proxy.mode = Hang()
    with pytest.raises(NotLeading):
        async with one.elector.scope():
            await asyncio.sleep(30)
    ended = loop.time()
    assert not two.elector.is_leading
    async with asyncio.timeout(60):
        await two.elector.acquired()
    assert loop.time() > ended
    assert one.proxy.counters is not None
    await two.stop()
    released = (await cluster.request("GET", path))["spec"]
    assert (released["holderIdentity"], released["leaseDurationSeconds"]) == ("", 1)
    one.proxy.mode = Pass()
    async with asyncio.timeout(60):
        await one.elector.acquired()
    after = (await cluster.request("GET", path))["spec"]
    assert after["leaseTransitions"] == lease["leaseTransitions"] + 2
