"""A staged rollout over six hundred Pods: the capacity of one EnvoyFilter, and the cost for the API server, istiod and wasmer.

Two Pods have a real Envoy, started as in a Pod; all others are objects with an address at which nothing listens, so they count as done
after a time (`onUnknown: Continue`). Measured values are not asserted: `-s` prints them, and docs/capacity.md has them.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from autowasm.api.staged import MAX_BYTES
from autowasm.api.status import MAX_STAGED
from tests.bench.measure import cpu_seconds
from tests.parts import ports
from tests.parts.controlplane import ControlPlane
from tests.parts.installation import autowasms
from tests.parts.mesh import composed
from tests.parts.rollouts import (
    PODS,
    SELECTED,
    Document,
    StagedMesh,
    described,
    target_of,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.chaos,
    pytest.mark.timeout(1800),
]

WORKLOADS, EACH = 30, 20
NAMED = 200
CHOSEN, KEPT = "pair-0", "alone-0"
"""The Pods with an Envoy. `pair` has a second Pod that is not ready, so a step takes the first one early. `alone` is the only Pod of its
workload, which a step takes last."""
ROLLOUT = {"onUnknown": "Continue"}
_AT_ONCE = 16
_CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


@dataclass
class Crowd(StagedMesh):
    """`workloads`: the UIDs of the Pods' owners, by name. A ConfigMap owns the Pods of a workload: no controller would run them."""

    workloads: dict[str, str] = field(default_factory=dict)
    pods: list[str] = field(default_factory=list)

    async def add_owner(self, workload: str) -> None:
        """The owner of the Pods of a workload."""
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": workload}}
        created = await self.cluster.request("POST", _CONFIG_MAPS, body=body)
        self.workloads[workload] = created["metadata"]["uid"]

    async def add_owned(self, name: str, *, address: str, ready: bool = True) -> None:
        """A Pod of the workload that its name has before the last `-`."""
        workload = name.rpartition("-")[0]
        owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": workload, "controller": True}
        metadata = {
            "name": name,
            "generateName": f"{workload}-",
            "namespace": "default",
            "labels": {**SELECTED, "pod": name},
            "ownerReferences": [{**owner, "uid": self.workloads[workload]}],
        }
        containers = [{"name": one, "image": "example.com/x:1"} for one in ("main", "istio-proxy")]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {"containers": containers},
        }
        created = await self.cluster.request("POST", PODS, body=pod)
        self.pods.append(name)
        status = {
            "phase": "Running",
            "startTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        }
        body = {**created, "status": status}
        await self.cluster.request("PUT", f"{PODS}/{name}/status", body=body)

    async def settle(self) -> str:
        """All Pods have the filter `echo`. Returns the plugin's name."""
        await self.apply(self.staged(await self.image("echo")))
        begun = await self.wait_rollout("Progressing", "Succeeded")
        if begun["status"]["rollout"]["phase"] == "Progressing":  # otherwise all Pods have kept it
            value = f"promote after {begun['metadata']['resourceVersion']}"
            body = {"metadata": {"annotations": {"wasm.tcm.io/rollout": value}}}
            await self.cluster.request("PATCH", autowasms("default", "test"), body=body)
        plugin = target_of(await self.wait_rollout("Succeeded"))
        await self.only_on(plugin, self.names(), timeout=60)
        return plugin

    async def entered(self, step: int) -> Document:
        """The AutoWasm when the EnvoyFilter of this step is in place."""
        found = await self.wait_rollout("Progressing", step=step, timeout=180)
        async with asyncio.timeout(60):
            while _proxies(await self.envoyfilter()) != _chosen(found):
                await asyncio.sleep(0.1)
                found = await self.get()
        assert found["status"]["rollout"]["step"] == step, described(found)
        return found


def _proxies(document: Document) -> set[str]:
    """The node metadata that the patches match, each as JSON."""
    matches = (one["match"] for one in document["spec"]["configPatches"])
    return {
        json.dumps(one["proxy"]["metadata"], sort_keys=True) for one in matches if "proxy" in one
    }


def _chosen(autowasm: Document) -> set[str]:
    """The same node metadata, from the Pods and workloads in the status."""
    rollout = autowasm["status"]["rollout"]
    pods = [{"NAME": one["name"], "NAMESPACE": one["namespace"]} for one in rollout.get("pods", ())]
    workloads = [
        {"WORKLOAD_NAME": one["name"], "NAMESPACE": one["namespace"]}
        for one in rollout.get("groups", ())
    ]
    return {json.dumps(one, sort_keys=True) for one in [*pods, *workloads]}


def _members(autowasm: Document, pods: list[str]) -> set[str]:
    """The Pods that the step in the status has, by name."""
    rollout = autowasm["status"]["rollout"]
    workloads = {one["name"] for one in rollout.get("groups", ())}
    named = {one["name"] for one in rollout.get("pods", ())}
    return named | {name for name in pods if name.rpartition("-")[0] in workloads}


def _size(document: Document) -> int:
    """Bytes of the patches in etcd."""
    return len(json.dumps(document["spec"]["configPatches"], separators=(",", ":")).encode())


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def crowd(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Crowd]:
    directory = tmp_path_factory.mktemp("names")
    async with composed(directory, plane=control_plane, authority=True) as parts:
        found = Crowd(**parts.parts)
        try:
            for name in ("pair", "alone", *(f"crowd-{number}" for number in range(WORKLOADS))):
                await found.add_owner(name)
            for name in (CHOSEN, KEPT):
                one = await found.add_staged(name, workload=name.rpartition("-")[0], pod=False)
                await found.add_owned(name, address=one.address)
                found.matched.append(one)
            await found.add_owned("pair-1", address=ports.free_address(), ready=False)
            await _fill(found)
            yield found
        finally:
            await _empty(found)


async def _fill(crowd: Crowd) -> None:
    places = asyncio.Semaphore(_AT_ONCE)

    async def add(name: str) -> None:
        async with places:
            await crowd.add_owned(name, address=ports.free_address())

    async with asyncio.TaskGroup() as group:
        for workload in range(WORKLOADS):
            for number in range(EACH):
                group.create_task(add(f"crowd-{workload}-{number}"))


async def _empty(crowd: Crowd) -> None:
    places = asyncio.Semaphore(_AT_ONCE)

    async def remove(name: str) -> None:
        async with places:
            await crowd.remove_pod(name)

    async with asyncio.TaskGroup() as group:
        for name in crowd.pods:
            group.create_task(remove(name))
    for name in crowd.workloads:
        await crowd.cluster.request("DELETE", f"{_CONFIG_MAPS}/{name}")


@asynccontextmanager
async def measured(crowd: Crowd, what: str) -> AsyncIterator[None]:
    """Print the cost of the block for istiod and wasmer."""

    async def read() -> dict[str, float]:
        push, istiod = "pilot_xds_push_time", crowd.istiod
        return {
            "wasmer": cpu_seconds(crowd.wasmer.process.pid),
            "istiod": cpu_seconds(istiod.process.pid),
            "pushes": await istiod.metric(f"{push}_count", type="lds"),
            "seconds": await istiod.metric(f"{push}_sum", type="lds"),
            "contexts": await istiod.metric("pilot_pushcontext_init_seconds_count"),
            "context": await istiod.metric("pilot_pushcontext_init_seconds_sum"),
        }

    before = await read()
    yield
    spent = {name: value - before[name] for name, value in (await read()).items()}
    push = 1000 * spent["seconds"] / max(spent["pushes"], 1)
    context = 1000 * spent["context"] / max(spent["contexts"], 1)
    print(
        f"\n{what}: istiod {context:.1f} ms for the push context, {push:.1f} ms for the listeners of a proxy "
        f"({spent['pushes']:.0f} pushes); processor: wasmer {spent['wasmer']:.2f} s, istiod {spent['istiod']:.2f} s"
    )


async def test_a_step_of_two_hundred_pods_names_each_and_changes_no_other(crowd: Crowd) -> None:
    old = await crowd.settle()
    kept = crowd.sidecar(KEPT)
    version = await kept.listener_version()
    image = await crowd.image("fail-on-request")
    async with measured(crowd, f"step of {NAMED} Pods begins"):
        await crowd.apply(
            crowd.staged(image, steps=(NAMED, 550), pause="2s", deadline="5m", rollout=ROLLOUT)
        )
        found = await crowd.entered(1)
        new = target_of(found)
        await crowd.only_on(new, {CHOSEN}, timeout=60)
    rollout = found["status"]["rollout"]
    assert (len(rollout["pods"]), rollout.get("groups", [])) == (NAMED, [])
    assert rollout.get("by", "Pod") == "Pod"
    document = await crowd.envoyfilter()
    print(f"EnvoyFilter with {NAMED} names: {_size(document)} bytes of patches")
    assert len(_proxies(document)) == NAMED
    assert _size(document) < MAX_BYTES
    assert await crowd.with_plugin(old) == {KEPT}
    assert await kept.listener_version() == version
    # Above five hundred names the step has whole workloads, which the status reports.
    async with measured(crowd, f"step of {NAMED} Pods is watched, step of 550 begins"):
        found = await crowd.entered(2)
        members = _members(found, crowd.pods)
        await crowd.only_on(new, members & crowd.names(), timeout=60)
    rollout = found["status"]["rollout"]
    assert rollout["by"] == "Workload", described(found)
    assert len(_chosen(found)) <= MAX_STAGED
    assert MAX_STAGED < len(members) <= 550
    assert _size(await crowd.envoyfilter()) < MAX_BYTES
    said = "it names workloads, because one EnvoyFilter cannot hold"
    await crowd.wait_event(reason="RolloutStep", text=said)
    async with measured(crowd, "step of 550 Pods is watched, and the last one, to the end"):
        await crowd.wait_rollout("Succeeded", timeout=240)
        await crowd.wait_phase("Synced")
    await crowd.only_on(new, crowd.names(), timeout=60)
    print(f"EnvoyFilter at the end: {_size(await crowd.envoyfilter())} bytes of patches")


async def test_a_large_configuration_leaves_room_for_workloads_only(crowd: Crowd) -> None:
    await crowd.settle()
    configuration = "x" * 60_000
    image = await crowd.image("fail-on-request")
    document = crowd.staged(
        image,
        steps=(NAMED,),
        pause="5m",
        deadline="10m",
        rollout=ROLLOUT,
        pluginConfig=configuration,
    )
    await crowd.apply(document)
    found = await crowd.entered(1)
    rollout = found["status"]["rollout"]
    assert rollout["by"] == "Workload", described(found)
    size = _size(await crowd.envoyfilter())
    print(
        f"EnvoyFilter with {len(_chosen(found))} names and 60 kB of configuration: {size} bytes of patches"
    )
    assert len(_chosen(found)) < 20
    assert size <= MAX_BYTES
    members = _members(found, crowd.pods)
    assert len(members) > len(_chosen(found))
    assert len(members) <= NAMED
    await crowd.only_on(target_of(found), members & crowd.names(), timeout=60)
