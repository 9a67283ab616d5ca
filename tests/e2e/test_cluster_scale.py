"""1 000 AutoWasms of one image and 5 000 Pods: it settles, then it is quiet, and a restart writes nothing."""

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.parts import provision, wat, wire
from tests.parts.audit import Entry
from tests.parts.installation import Document, Installation, autowasms, installed_without_istiod
from tests.parts.kubernetes import kubernetes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1800)]

AUTOWASMS, PODS, NAMESPACES = 1_000, 5_000, 10
QUIET_SECONDS = 60
MODULE_BYTES = 1_000_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    for group in ("kubernetes", "registry"):
        for part in provision.GROUPS[group]:
            await asyncio.to_thread(part)
    directory = tmp_path_factory.mktemp("scale")
    async with (
        kubernetes(directory / "kubernetes") as cluster,
        installed_without_istiod(cluster, directory) as installation,
    ):
        yield installation


def _namespace(number: int) -> str:
    return f"team-{number % NAMESPACES}"


def _autowasm(installation: Installation, image: str, number: int) -> Document:
    document = installation.autowasm(image, name=f"f{number}", namespace=_namespace(number))
    document["spec"]["selector"]["matchLabels"] = {"app": f"a{number}"}
    return document


def _pod(number: int) -> Document:
    """Five for each AutoWasm, of these four with a sidecar."""
    names = ("main", "istio-proxy") if number // AUTOWASMS else ("main",)
    labels = {"app": f"a{number % AUTOWASMS}", "pod-template-hash": "7d4b8c6f5"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"p{number}", "namespace": _namespace(number), "labels": labels},
        "spec": {
            "containers": [{"name": name, "image": f"example.com/{name}:1"} for name in names]
        },
    }


async def _fill(installation: Installation, image: str) -> None:
    for number in range(NAMESPACES):
        await installation.add_namespace(_namespace(number))
    pods = (_pod(number) for number in range(PODS))
    objects = (_autowasm(installation, image, number) for number in range(AUTOWASMS))
    await installation.cluster.each(
        ("POST", f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods", pod) for pod in pods
    )
    await installation.cluster.each(
        ("POST", autowasms(document["metadata"]["namespace"]), document) for document in objects
    )


async def _all_synced(installation: Installation, *, timeout: float) -> None:
    """By wasmer's own account: listing a thousand objects again and again would be in its way."""

    async def synced() -> Document | None:
        text = (await wire.get(f"http://{installation.wasmer.admin}/metrics")).body.decode()
        await asyncio.sleep(0.5)  # a scrape costs wasmer 10 ms
        return {} if f'autowasm_autowasms{{phase="Synced"}} {float(AUTOWASMS)}' in text else None

    await installation.wait_until(synced, timeout=timeout)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


async def _witness(installation: Installation, number: int) -> None:
    """An object that goes the whole way, counts of Pods included, after all that was to do before it."""
    name = f"witness-{number}"
    document = installation.autowasm("127.0.0.1:1/none:v1", name=name)
    document["spec"]["selector"]["matchLabels"] = {"app": name}
    await installation.apply(document)
    await installation.wait_phase("Failed", name=name)
    pod = _pod(0)
    pod["metadata"] = {"name": name, "namespace": "default", "labels": {"app": name}}
    await installation.cluster.request("POST", "/api/v1/namespaces/default/pods", body=pod)

    async def counted() -> Document | None:
        found = await installation.get(name)
        return found if found["status"].get("pods") == {"matched": 1, "injected": 0} else None

    await installation.wait_until(counted)


async def test_a_thousand_autowasms_settle_with_one_download_and_stay_quiet(
    installation: Installation,
) -> None:
    image = await installation.push("v1", wat.padded(wat.header_filter("x"), size=MODULE_BYTES))
    await installation.wasmer.process.stop()
    await _fill(installation, image)
    since = await installation.audit.position()

    began = time.time()
    await installation.wasmer.start(timeout=120)
    await _all_synced(installation, timeout=240)
    writes = await installation.writes(since)
    pid = installation.wasmer.process.pid
    took = max(one.answered for one in writes if one.resource == "autowasms/status") - began
    print(f"\nall synced {took:.2f} s after the start; {_cpu_seconds(pid):.2f} s CPU")
    print(f"RSS {_resident_mib(pid):.1f} MiB; {_count(writes)}")
    assert await _downloads(installation) == 1
    await _check_objects(installation)

    await _witness(installation, 1)
    await _told(installation)
    since, cpu = await installation.audit.position(), _cpu_seconds(pid)
    await asyncio.sleep(QUIET_SECONDS)
    assert await _writes(installation, since) == []
    used = (_cpu_seconds(pid) - cpu) / QUIET_SECONDS
    print(f"idle: {used:.2%} of a core, RSS {_resident_mib(pid):.1f} MiB")
    assert used < 0.25, "it turns in circles"  # how little it is, `make bench ONLY=memory` tells

    since = await installation.audit.position()
    await installation.wasmer.process.stop()
    began = time.time()
    await installation.wasmer.start(timeout=120)
    await _all_synced(installation, timeout=120)
    print(f"after a restart {time.time() - began:.2f} s until all were looked at")
    await _witness(installation, 2)
    assert await _writes(installation, since) == []
    print(f"RSS {_resident_mib(installation.wasmer.process.pid):.1f} MiB")


async def _writes(installation: Installation, since: int) -> list[str]:
    """All but those of the witnesses, whose source is down: they are tried again."""
    entries = await installation.writes(since)
    return [str(entry) for entry in entries if entry.namespace != "default"]


async def _told(installation: Installation) -> None:
    """Until the Events of the start are written: they wait while there is work."""

    async def silent() -> bool:
        since = await installation.audit.position()
        await asyncio.sleep(3)
        return not await _writes(installation, since)

    await installation.wait_until(silent, timeout=90)


async def _downloads(installation: Installation) -> int:
    """Of blobs, as the registry tells; a manifest of this kind of image is no blob, its configuration is."""
    log = installation.directory / "registry/registry.log"
    text = await asyncio.to_thread(log.read_text)
    return len(re.findall(r'"GET /v2/xxx/hello/blobs/\S+ HTTP/1.1" 200 1000000 ', text))


def _count(entries: list[Entry]) -> Counter[tuple[str, str, int]]:
    return Counter((one.verb, one.resource, one.code) for one in entries)


async def _check_objects(installation: Installation) -> None:
    path = "/apis/wasm.tcm.io/v1alpha1/autowasms"
    items = (await installation.cluster.request("GET", path))["items"]
    assert Counter(one["status"]["phase"] for one in items) == {"Synced": AUTOWASMS}
    counts = [one["status"]["pods"] for one in items]
    assert {(one["matched"], one["injected"]) for one in counts} == {(5, 4)}
    path = "/apis/networking.istio.io/v1alpha3/envoyfilters"
    assert len((await installation.cluster.request("GET", path))["items"]) == AUTOWASMS
