"""Memory and processor time of the controller: after its start, with 1 000 AutoWasms and 50 000 Pods, after much churn, and idle.

An hour of churn is compressed: as many changes of Pods as in an hour, as fast as the API server accepts them, for at most
three minutes; the figure has their number. No rival: the budgets are absolute. It also measures how long a small blob takes
while the process lists all Pods and fetches eight modules at once.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tests.bench import load, measure, pods
from tests.bench.plan import Plan
from tests.bench.reconcile import fill, installation_for, synced
from tests.bench.servers import Server
from tests.bench.table import Figure, Result, at_most, ratio_at_most
from tests.parts import wat, wire
from tests.parts.installation import Installation, autowasms

_FETCHES = 8
_MB = 1_000_000
_EVENTS_A_SECOND = 50
_CHURN_SECONDS = 180.0
_QUIET_SECONDS = 5.0


async def run(plan: Plan) -> Result:
    """Memory in MiB, processor as a share of a core."""
    async with installation_for(plan.directory) as installation:
        wasmer = installation.wasmer
        started = measure.memory(wasmer.process.pid)
        image = await installation.push("v1", wat.header_filter("x"))
        autowasms_count, pod_count = plan.pick(1000, 20), plan.pick(50_000, 100)
        await fill(installation, image, autowasms_count)
        await synced(installation, autowasms_count)
        with_autowasms = measure.memory(wasmer.process.pid)
        await _all_reported(installation)
        idle = await _share(installation, plan.pick(60.0, 3.0))
        async with asyncio.TaskGroup() as group:
            churning = group.create_task(_churn_steadily(installation, autowasms_count))
            await asyncio.sleep(1)
            with_events = await _share(installation, plan.pick(300.0, 3.0))
            churning.cancel()
        calm = measure.memory(wasmer.process.pid)
        await _create_pods(installation, pod_count)
        with_pods = measure.memory(wasmer.process.pid)
        changes = await _churn(installation, pod_count, plan.pick(_EVENTS_A_SECOND * 3600, 300))
        churned = measure.memory(wasmer.process.pid)
        busy, quiet = await _busy(plan, installation, autowasms_count)
    count = f"{autowasms_count} AutoWasms"
    figures = [
        Figure("memory after the start", "MiB", [started.resident]),
        Figure(f"memory with {count}", "MiB", [with_autowasms.resident]),
        Figure(f"memory with {count}, after 5 minutes of events", "MiB", [calm.resident], budget=at_most(110)),
        Figure(f"memory with {count} and {pod_count} Pods", "MiB", [with_pods.resident]),
        Figure(f"memory after {changes} changes of Pods", "MiB", [churned.resident]),
        Figure("memory at most until then", "MiB", [churned.peak]),
        Figure(f"processor with {count}, no events", "%", [idle], budget=at_most(0.5)),
        Figure(f"processor with {count}, {_EVENTS_A_SECOND} events/s", "%", [with_events], budget=at_most(2)),
        Figure(
            f"small blob while {_FETCHES} fetches and a list of {pod_count} Pods run, p99", "ms", busy,
            "idle", quiet, ratio_at_most(3),
        ),
    ]  # fmt: skip
    return Result(figures)


async def _all_reported(installation: Installation) -> None:
    """Return once no Event was written for a while: at ten a second, those of a thousand new objects take minutes."""
    path, told, since = "/api/v1/namespaces/default/events?limit=1", -1, time.monotonic()
    async with asyncio.timeout(600):
        while time.monotonic() - since < _QUIET_SECONDS:
            found = await installation.cluster.request("GET", path)
            count = len(found["items"]) + found["metadata"].get("remainingItemCount", 0)
            if count != told:
                told, since = count, time.monotonic()
            await asyncio.sleep(0.5)


async def _share(installation: Installation, seconds: float) -> float:
    """Per cent of a core that it used over this many seconds."""
    pid = installation.wasmer.process.pid
    used, begun = measure.cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(seconds)
    return 100 * (measure.cpu_seconds(pid) - used) / (time.monotonic() - begun)


Call = tuple[str, str, Mapping[str, Any] | None]


async def _create_pods(installation: Installation, count: int) -> None:
    cluster = installation.cluster
    for number in range(pods.NAMESPACES):
        await cluster.create_namespace(f"team-{number:03d}")

    def calls() -> Iterator[Call]:
        for number in range(count):
            document = pods.document(number)
            # The controller manager deletes Pods of nodes that do not exist, after a minute.
            document["spec"].pop("nodeName")
            document["spec"].pop("serviceAccountName")
            document["spec"].pop("serviceAccount", None)
            document["spec"]["automountServiceAccountToken"] = False
            yield "POST", f"/api/v1/namespaces/{pods.namespace_of(number)}/pods", document

    await cluster.each(calls())


async def _churn(installation: Installation, pod_count: int, changes: int) -> int:
    """Change labels this many times, over all Pods; fewer if the API server is too slow. Returns the number of changes."""
    made, until = 0, time.monotonic() + _CHURN_SECONDS

    def calls() -> Iterator[Call]:
        nonlocal made
        for number in range(changes):
            if time.monotonic() > until:
                return
            made += 1
            yield _relabelled(number % pod_count, f"c{number // pod_count}")

    await installation.cluster.each(calls())
    await asyncio.sleep(2)
    return made


def _relabelled(number: int, value: str) -> Call:
    return "PATCH", pods.path_of(number), {"metadata": {"labels": {"version": value}}}


async def _churn_steadily(installation: Installation, autowasms_count: int) -> None:
    """50 Pods a second come and go in a namespace with AutoWasms, until cancelled."""
    cluster, begun = installation.cluster, time.monotonic()
    path = "/api/v1/namespaces/default/pods"
    for number in itertools.count():
        name = f"steady-{number // 2}"
        if number % 2:
            await cluster.request("DELETE", f"{path}/{name}?gracePeriodSeconds=0")
        else:
            await cluster.request("POST", path, body=_small_pod(name))
        await asyncio.sleep(max(0.0, begun + number / _EVENTS_A_SECOND - time.monotonic()))


def _small_pod(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "steady"}},
        "spec": {
            "automountServiceAccountToken": False,
            "containers": [{"name": "app", "image": "app"}, {"name": "istio-proxy", "image": "p"}],
        },
    }


async def _busy(
    plan: Plan, installation: Installation, autowasms_count: int
) -> tuple[list[float], list[float]]:
    """p99 of a small blob: after a restart, with eight new images to fetch and all Pods to list; and when all is done."""
    wasmer = installation.wasmer
    size = plan.pick(20, 2) * _MB
    sha256 = (await installation.get("f0"))["status"]["module"]["sha256"]
    server = Server(
        "wasmer",
        wasmer.process.pid,
        int(wasmer.host.rpartition(":")[2]),
        wasmer.process.log,
        wasmer.admin,
    )
    quiet = [await _p99(server, sha256, plan) for _ in range(plan.repeats)]
    busy = []
    for turn in range(plan.repeats):
        await wasmer.process.stop()
        for number in range(_FETCHES):
            module = wat.padded(wat.header_filter(f"busy {turn} {number}"), size=size)
            image = await installation.push(f"busy-{turn}-{number}", module)
            document = installation.autowasm(image, name=f"busy-{turn}-{number}")
            await installation.cluster.request("POST", autowasms(), body=document)

        async def serves() -> bool:  # long before wasmer is ready
            url = f"http://{wasmer.host}/wasm/{sha256}"
            return (await wire.request("HEAD", url, timeout=5)).status == 200

        await wasmer.process.start(ready=serves, timeout=120)
        server = Server("wasmer", wasmer.process.pid, server.port, server.log, server.admin)
        busy.append(await _p99(server, sha256, plan))
        await synced(installation, autowasms_count + _FETCHES * (turn + 1))
    return busy, quiet


async def _p99(server: Server, sha256: str, plan: Plan) -> float:
    seconds = plan.pick(3.0, 1.0)
    found = await load.keep_alive(server, f"/wasm/{sha256}", connections=1, seconds=seconds)
    return found.p99
