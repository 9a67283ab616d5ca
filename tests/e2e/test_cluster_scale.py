"""Hundreds of AutoWasms of one image and their Pods: wasmer settles, then writes nothing more, also after a restart."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.bench.measure import cpu_seconds, memory
from tests.clusterfixtures import PrivateInstallation
from tests.parts import wat, wire
from tests.parts.audit import Entry
from tests.parts.controlplane import ControlPlane
from tests.parts.faults.virtualtime import VirtualTime
from tests.parts.installation import Document, Installation, autowasms

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

AUTOWASMS, PODS, NAMESPACES = 150, 750, 10
"""More AutoWasms than queue workers, concurrent fetches and concurrent Events; Pods on several pages of a list."""
IDLE_SECONDS = 5
QUIET_SECONDS = 700
"""Longer than the interval between two full deliveries (`resync`), and than a watch lasts."""
MODULE_BYTES = 1_000_000


@dataclass(frozen=True)
class LargeCluster:
    """The running parts, on a clock that the test moves. wasmer leads without a Lease, which would expire."""

    installation: Installation
    time: VirtualTime
    namespaces: list[str]

    def namespace(self, number: int) -> str:
        """The namespace of the object or the Pod with this number."""
        return self.namespaces[number % NAMESPACES]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def large_cluster(
    control_plane: ControlPlane,
    private_installation: PrivateInstallation,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[LargeCluster]:
    directory = tmp_path_factory.mktemp("scale")
    time = VirtualTime(directory / "time")
    namespaces = [await control_plane.add_namespace("scale") for _ in range(NAMESPACES)]
    async with private_installation(
        directory, arguments=["--no-leader-elect"], env=time.environment
    ) as installation:
        for namespace in namespaces:
            await installation.add_pull_secret(namespace)
        yield LargeCluster(installation, time, namespaces)
        for namespace in namespaces:
            path = f"/api/v1/namespaces/{namespace}/pods?gracePeriodSeconds=0"
            await control_plane.cluster.request("DELETE", path)


def _autowasm(large_cluster: LargeCluster, image: str, number: int) -> Document:
    namespace = large_cluster.namespace(number)
    document = large_cluster.installation.autowasm(image, name=f"f{number}", namespace=namespace)
    document["spec"]["selector"]["matchLabels"] = {"app": f"a{number}"}
    return document


def _pod(number: int, namespace: str) -> Document:
    """Five Pods for each AutoWasm, four of them with a sidecar."""
    names = ("main", "istio-proxy") if number // AUTOWASMS else ("main",)
    labels = {"app": f"a{number % AUTOWASMS}", "pod-template-hash": "7d4b8c6f5"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"p{number}", "namespace": namespace, "labels": labels},
        "spec": {
            "containers": [{"name": name, "image": f"example.com/{name}:1"} for name in names]
        },
    }


async def _fill(large_cluster: LargeCluster, image: str) -> None:
    client = large_cluster.installation.cluster.client
    pods = (_pod(number, large_cluster.namespace(number)) for number in range(PODS))
    objects = (_autowasm(large_cluster, image, number) for number in range(AUTOWASMS))
    await client.each(
        ("POST", f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods", pod) for pod in pods
    )
    await client.each(
        ("POST", autowasms(document["metadata"]["namespace"]), document) for document in objects
    )


async def _all_synced(installation: Installation, *, timeout: float) -> None:
    """From wasmer's own metrics: listing all objects repeatedly would slow it down."""

    async def synced() -> Document | None:
        text = (await wire.get(f"http://{installation.wasmer.admin}/metrics")).body.decode()
        await asyncio.sleep(0.5)  # a scrape takes wasmer 10 ms
        return {} if f'autowasm_autowasms{{phase="Synced"}} {float(AUTOWASMS)}' in text else None

    await installation.wait_until(synced, timeout=timeout)


async def _witness(large_cluster: LargeCluster, number: int) -> None:
    """Create an object and wait until it is completely processed, including its Pod counts, after all earlier work."""
    installation, name = large_cluster.installation, f"witness-{number}"
    document = installation.autowasm("127.0.0.1:1/none:v1", name=name)
    document["spec"]["selector"]["matchLabels"] = {"app": name}
    await installation.apply(document)
    await installation.wait_phase("Failed", name=name)
    pod = _pod(0, "default")
    pod["metadata"] = {"name": name, "namespace": "default", "labels": {"app": name}}
    await installation.cluster.request("POST", "/api/v1/namespaces/default/pods", body=pod)

    def counted(found: Document | None) -> bool:
        return found is not None and found["status"].get("pods") == {"matched": 1, "injected": 0}

    await large_cluster.time.pass_(61, [installation.wasmer])  # counts are written once a minute
    await installation.wait_object(autowasms(name=name), counted)
    await installation.cluster.client.delete(
        f"/api/v1/namespaces/default/pods/{name}?gracePeriodSeconds=0"
    )
    await installation.cluster.client.delete(autowasms(name=name))


async def test_hundreds_of_autowasms_settle_with_one_download_and_stay_quiet(
    large_cluster: LargeCluster,
) -> None:
    installation = large_cluster.installation
    image = await installation.push("v1", wat.padded(wat.header_filter("x"), size=MODULE_BYTES))
    await installation.wasmer.process.stop()
    await _fill(large_cluster, image)
    since = await installation.audit.position()

    await installation.wasmer.start(timeout=120)
    await _all_synced(installation, timeout=240)
    pid = installation.wasmer.process.pid
    print(f"\n{cpu_seconds(pid):.2f} s CPU, RSS {memory(pid).resident:.1f} MiB")
    print(_count(await installation.writes(since)))
    assert await _downloads(installation) == 1
    await _check_objects(large_cluster)

    await _witness(large_cluster, 1)
    await _all_reported(large_cluster)
    since, cpu = await installation.audit.position(), cpu_seconds(pid)
    await asyncio.sleep(IDLE_SECONDS)
    used = (cpu_seconds(pid) - cpu) / IDLE_SECONDS
    assert used < 0.25, "it turns in circles"  # `make bench ONLY=memory` measures it
    await large_cluster.time.pass_(QUIET_SECONDS, [installation.wasmer])
    await _witness(large_cluster, 2)
    assert await _writes(installation, since) == []

    since = await installation.audit.position()
    await installation.wasmer.process.stop()
    await installation.wasmer.start(timeout=120)
    await _all_synced(installation, timeout=120)
    await _witness(large_cluster, 3)
    assert await _writes(installation, since) == []
    print(f"RSS {memory(installation.wasmer.process.pid).resident:.1f} MiB")


async def _writes(installation: Installation, since: int) -> list[str]:
    """All writes except those of the witnesses: their source is down, so they are retried."""
    entries = await installation.writes(since)
    return [str(entry) for entry in entries if entry.namespace != "default"]


async def _all_reported(large_cluster: LargeCluster) -> None:
    """Wait until the Events of the start are written: they wait while there is work, and ten are written per second."""
    installation = large_cluster.installation

    async def silent() -> Document | None:
        since = await installation.audit.position()
        await large_cluster.time.pass_(3, [installation.wasmer])
        await asyncio.sleep(0.3)
        has_all = len(await _reported(large_cluster)) == AUTOWASMS
        return {} if has_all and not await _writes(installation, since) else None

    await installation.wait_until(silent, timeout=120)


async def _reported(large_cluster: LargeCluster) -> set[str]:
    """The AutoWasms with an Event about their first module."""
    path = "/api/v1/events?fieldSelector=reason%3DSynced"
    events = (await large_cluster.installation.cluster.request("GET", path))["items"]
    about = [one["involvedObject"] for one in events]
    return {one["name"] for one in about if one["namespace"] in large_cluster.namespaces}


async def _downloads(installation: Installation) -> int:
    """Requests for blobs, from the registry's log; an image's manifest is not a blob, but its configuration is."""
    log = installation.directory / "registry/registry.log"
    text = await asyncio.to_thread(log.read_text)
    return len(re.findall(r'"GET /v2/xxx/hello/blobs/\S+ HTTP/1.1" 200 1000000 ', text))


def _count(entries: list[Entry]) -> Counter[tuple[str, str, int]]:
    return Counter((one.verb, one.resource, one.code) for one in entries)


async def _check_objects(large_cluster: LargeCluster) -> None:
    path = "/apis/wasm.tcm.io/v1alpha1/autowasms"
    items = (await large_cluster.installation.cluster.request("GET", path))["items"]
    assert Counter(one["status"]["phase"] for one in items) == {"Synced": AUTOWASMS}
    counts = [one["status"]["pods"] for one in items]
    assert {(one["matched"], one["injected"]) for one in counts} == {(5, 4)}
    path = "/apis/networking.istio.io/v1alpha3/envoyfilters"
    assert (
        len((await large_cluster.installation.cluster.request("GET", path))["items"]) == AUTOWASMS
    )
