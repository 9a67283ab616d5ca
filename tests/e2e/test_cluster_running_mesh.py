"""Proof of run, as kubectl shows it: real API server, istiod, and sidecars that pilot-agent starts with Istio's bootstrap.

wasmer writes a status about Pods once a minute. So the applications of all tests go through their changes at the same time, from the
start of the module: each test awaits the result of its own.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.parts import filters, ports, wat, wire
from tests.parts.agent import injected
from tests.parts.controlplane import ControlPlane
from tests.parts.installation import autowasms
from tests.parts.mesh import Mesh, composed

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

ASSETS = Path(__file__).parents[1] / "assets" / "wat"
PODS = "/api/v1/namespaces/default/pods"
DEADLINE = 240
"""Seconds."""


@dataclass
class RunningMesh(Mesh):
    """A mesh with a sidecar and its Pod for each of `hosts` (address:port of the inbound listener), by the label `app`."""

    hosts: dict[str, str] = field(kw_only=True)

    async def add_app(self, app: str) -> None:
        """A Pod with a sidecar."""
        labels, address = {"app": app}, ports.free_address()
        self.hosts[app] = await self.add_workload(app, labels, address=address)
        sidecar = injected(
            self.istiod, self.directory / app, name=app, labels=labels, address=address
        )
        await self.stack.enter_async_context(sidecar)
        await self.add_pod(app, app=app, address=address)

    async def add_pod(self, name: str, *, app: str, address: str) -> None:
        """Create a Pod with the status that the kubelet would report."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": app}},
            "spec": {
                "containers": [
                    {"name": each, "image": "example.com/x:1"} for each in ("main", "istio-proxy")
                ]
            },
        }
        found = await self.cluster.request("POST", PODS, body=pod)
        status = {
            "phase": "Running",
            "startTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "podIP": address,
            "podIPs": [{"ip": address}],
        }
        body = {**found, "status": {**found.get("status", {}), **status}}
        await self.cluster.request("PUT", f"{PODS}/{name}/status", body=body)

    async def filtered(self, app: str, module: bytes, *, tag: str, **fields: Any) -> None:
        """Apply an AutoWasm of this name for these Pods."""
        image = await self.push(tag, module, force=True)
        port = int(self.hosts[app].rpartition(":")[2])
        document = self.autowasm(image, name=app, applyPorts=[port], **fields)
        document["spec"]["selector"]["matchLabels"] = {"app": app}
        await self.apply(document)

    async def until_running(
        self, app: str, status: str, reason: str, *, running: int | None = None
    ) -> dict[str, Any]:
        """The status, once the condition `Running` of its generation has this status and reason.

        One sidecar decides the reason, and others may start after it: `running` waits for their number as well.
        """

        def reached(found: dict[str, Any] | None) -> bool:
            if found is None:
                return False
            now = found.get("status") or {}
            conditions = now.get("conditions") or ()
            if running is not None and (now.get("pods") or {}).get("running") != running:
                return False
            return any(
                (one["type"], one["status"], one["reason"]) == ("Running", status, reason)
                and one["observedGeneration"] == found["metadata"]["generation"]
                for one in conditions
            )

        found = await self.wait_object(
            autowasms(name=app), reached, what=f"{app} Running={status} {reason}", timeout=DEADLINE
        )
        result: dict[str, Any] = found["status"]
        return result

    async def message(self, app: str) -> str:
        """The message of the condition `Running`, as kubectl prints it."""
        path = '{.status.conditions[?(@.type=="Running")].message}'
        return (await self.kubectl.run("get", "aw", app, "-o", f"jsonpath={path}")).stdout

    async def columns(self, app: str) -> dict[str, str]:
        """The columns of `kubectl get -o wide` that have one word."""
        printed = (await self.kubectl.run("get", "aw", app, "-o", "wide")).stdout
        header, row = printed.splitlines()
        begins = {name: header.index(name) for name in ("PHASE", "SIDECARS", "RUNNING")}
        return {name: row[begin:].split()[0] for name, begin in begins.items()}

    async def pods_of(self, app: str) -> dict[str, Any]:
        """`status.pods`, as kubectl prints it."""
        printed = await self.kubectl.run("get", "aw", app, "-o", "jsonpath={.status.pods}")
        found: dict[str, Any] = json.loads(printed.stdout)
        return found


async def _filter(name: str) -> bytes:
    path = await asyncio.to_thread(filters.build, name)
    return await asyncio.to_thread(path.read_bytes)


async def _hello(tag: str) -> bytes:
    """A module that starts; another one for each tag."""
    content = await asyncio.to_thread(wat.compile_file, ASSETS / "hello.wat")
    return wat.padded(content, size=len(content) + 20 + len(tag))


async def _good(mesh: RunningMesh) -> None:
    await mesh.add_app("good")
    labels = {"app": "good"}
    closed = await mesh.add_sidecar("closed", labels)  # has no port 15090
    await mesh.add_pod("closed", app="good", address=closed.host.rpartition(":")[0])
    await mesh.filtered("good", await _hello("one"), tag="one")

    status = await mesh.until_running("good", "Unknown", "StatsUnreachable", running=1)
    assert status["phase"] == "Synced", "the proof of run changes no phase"
    pods = await mesh.pods_of("good")
    assert (pods["injected"], pods["running"]) == (2, 1)
    (unknown,) = pods["notRunning"]
    assert (unknown["name"], unknown["reason"]) == ("closed", "StatsUnreachable")
    assert await mesh.columns("good") == {"PHASE": "Synced", "SIDECARS": "2", "RUNNING": "1"}
    message = await mesh.message("good")
    assert message.startswith("1 of 2 sidecars are known to run the module: default/closed did not")

    await mesh.cluster.request("DELETE", f"{PODS}/closed?gracePeriodSeconds=0")
    await mesh.until_running("good", "True", "Running")
    assert "notRunning" not in await mesh.pods_of("good")


async def _replaced(mesh: RunningMesh) -> None:
    await mesh.add_app("replaced")
    await mesh.filtered("replaced", await _hello("first"), tag="first")
    await mesh.until_running("replaced", "True", "Running")
    await mesh.filtered("replaced", await _hello("two"), tag="two")
    await mesh.until_running("replaced", "True", "Running")
    assert (await mesh.pods_of("replaced"))["running"] == 1


async def _spoiled(mesh: RunningMesh) -> None:
    await mesh.add_app("spoiled")
    await mesh.filtered("spoiled", await _hello("unspoiled"), tag="unspoiled")
    await mesh.until_running("spoiled", "True", "Running")
    assert (await mesh.pods_of("spoiled"))["running"] == 1
    module = await _filter("refuse-config")
    await mesh.filtered("spoiled", module, tag="spoiled", pluginConfig="refuse")
    await mesh.until_running("spoiled", "False", "ConfigurationRefused")
    assert (await mesh.pods_of("spoiled"))["running"] == 0


async def _refusing(mesh: RunningMesh) -> None:
    await mesh.add_app("refusing")
    module = await _filter("refuse-config")
    await mesh.filtered("refusing", module, tag="refusing", pluginConfig="refuse")
    await mesh.until_running("refusing", "False", "ConfigurationRefused")
    assert "default/refusing has the configuration but runs no VM" in await mesh.message("refusing")
    assert (await mesh.columns("refusing"))["RUNNING"] == "0"

    found = await mesh.wait_event(reason="ConfigurationRefused", about="refusing")
    assert (found["type"], found["message"].split()[:2]) == ("Warning", ["Pod", "default/refusing"])


async def _crashing(mesh: RunningMesh) -> None:
    await mesh.add_app("crashing")
    module = await _filter("fail-on-request")
    await mesh.filtered("crashing", module, tag="crashing", failStrategy="FAIL_RELOAD")
    crashing = asyncio.create_task(_crash(mesh))
    try:
        await mesh.until_running("crashing", "False", "Crashing")
    finally:
        crashing.cancel()
    assert "default/crashing has a crashing module (" in await mesh.message("crashing")


async def _crash(mesh: RunningMesh) -> None:
    while True:
        with suppress(OSError):
            await wire.get(f"http://{mesh.hosts['crashing']}/", headers={"x-fail": "request"})
        await asyncio.sleep(0.2)


COURSES: Mapping[str, Callable[[RunningMesh], Coroutine[None, None, None]]] = {
    "good": _good,
    "replaced": _replaced,
    "spoiled": _spoiled,
    "refusing": _refusing,
    "crashing": _crashing,
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def courses(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Mapping[str, asyncio.Task[None]]]:
    """By app: the running task with its changes and their expected results."""
    async with composed(
        tmp_path_factory.mktemp("running"),
        plane=control_plane,
        authority=True,
        arguments=["--preflight=off"],
    ) as found:
        mesh = RunningMesh(**found.parts, hosts={})
        tasks = {app: asyncio.create_task(course(mesh)) for app, course in COURSES.items()}
        try:
            yield tasks
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.wait(tasks.values())


async def test_running_sidecars_are_counted_and_one_that_cannot_be_read_is_named(
    courses: Mapping[str, asyncio.Task[None]],
) -> None:
    await courses["good"]


async def test_module_of_the_same_name_counts_when_the_previous_one_has_drained(
    courses: Mapping[str, asyncio.Task[None]],
) -> None:
    await courses["replaced"]


async def test_module_that_refuses_its_configuration_does_not_count_as_the_running_one_that_it_replaces(
    courses: Mapping[str, asyncio.Task[None]],
) -> None:
    await courses["spoiled"]


async def test_refused_configuration_is_reported_with_the_pod_and_an_event(
    courses: Mapping[str, asyncio.Task[None]],
) -> None:
    await courses["refusing"]


async def test_crashes_are_counted(courses: Mapping[str, asyncio.Task[None]]) -> None:
    await courses["crashing"]
