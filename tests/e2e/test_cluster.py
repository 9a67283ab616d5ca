"""The acceptance check on the real control plane: `kubectl apply`, and the sidecar answers `hello: world`."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.parts import ports, wat, wire
from tests.parts.controlplane import ControlPlane, clean
from tests.parts.installation import Document, envoyfilters
from tests.parts.istio import sidecar
from tests.parts.load import Load
from tests.parts.mesh import Mesh, Sidecar, composed

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

GATEWAY = "127.0.0.4"
LABELS = {"app": "details"}
LEASE = ("--lease-duration=6s", "--renew-deadline=4s", "--retry-period=500ms")


@dataclass
class OneSidecar(Mesh):
    """A mesh with one sidecar; every AutoWasm of a test is on its port."""

    sidecar: Sidecar

    @property
    def load(self) -> Load:
        """A load on the sidecar; answers without the header are failures."""
        return Load(self.sidecar.host, header="hello")

    async def push_header(self, value: str, *, name: str = "hello") -> str:
        """Push a filter that adds the header; returns the reference."""
        return await self.push(f"{name}-{value}", wat.header_filter(value, name=name))

    def autowasm(
        self, image: str, *, name: str = "test", namespace: str = "default", **fields: Any
    ) -> Document:
        fields = {"applyPorts": [self.sidecar.port], **fields}
        return super().autowasm(image, name=name, namespace=namespace, **fields)

    async def clean(self) -> None:
        """Restore the initial state: everything runs, no AutoWasm, no EnvoyFilter, no filter in the sidecar."""
        for process, start in (
            (self.registry.process, self.registry.start),
            (self.wasmer.process, self.wasmer.start),
        ):
            if not process.alive:
                await start()
        await clean(self.cluster, "default")
        await self.load.wait_for(None)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running_mesh(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[OneSidecar]:
    async with composed(
        # A killed wasmer leaves its Lease, and the next one waits until that expires.
        tmp_path_factory.mktemp("mesh"),
        plane=control_plane,
        arguments=LEASE,
    ) as found:
        yield OneSidecar(**found.parts, sidecar=await found.add_sidecar("details-v1", LABELS))


@pytest_asyncio.fixture(loop_scope="session")
async def mesh(running_mesh: OneSidecar) -> AsyncIterator[OneSidecar]:
    """The mesh without leftovers of another test."""
    yield running_mesh
    await running_mesh.clean()


async def test_applied_autowasm_adds_the_header_changes_under_load_and_goes_when_deleted(
    mesh: OneSidecar,
) -> None:
    world = await mesh.push_header("world")
    await mesh.apply(mesh.autowasm(world))
    await mesh.load.wait_for("world")
    answer = await wire.get(f"http://{mesh.sidecar.host}/")
    assert answer.headers["server"] == "istio-envoy"
    document = await mesh.wait_phase("Synced")
    filter_ = await mesh.envoyfilter()
    assert filter_["metadata"]["ownerReferences"][0]["uid"] == document["metadata"]["uid"]

    earth = await mesh.push_header("earth")
    async with mesh.load.steady() as report:
        await report.until("world", 20)
        await mesh.apply(mesh.autowasm(earth))
        await mesh.load.wait_for("earth")
        await report.until("earth", 20)
    assert report.failed == 0, str(report)
    document = await mesh.wait_phase("Synced")
    assert [entry["source"] for entry in document["status"]["history"]] == [
        f"registry:{earth}",
        f"registry:{world}",
    ]

    await mesh.kubectl.run("delete", "aw", "test", "--cascade=foreground", timeout=300)
    await mesh.wait_gone(envoyfilters(name="test"))
    await mesh.load.wait_for(None)


async def test_autowasm_deleted_while_the_controller_is_down_takes_its_envoyfilter_along(
    mesh: OneSidecar,
) -> None:
    await mesh.apply(mesh.autowasm(await mesh.push_header("world")))
    await mesh.load.wait_for("world")

    await mesh.wasmer.process.kill()
    await mesh.kubectl.run("delete", "aw", "test", timeout=60)

    await mesh.wait_gone(envoyfilters(name="test"))
    await mesh.load.wait_for(None)


async def test_restart_without_the_registry_writes_nothing_and_keeps_the_filter(
    mesh: OneSidecar,
) -> None:
    await mesh.apply(mesh.autowasm(await mesh.push_header("world")))
    await mesh.load.wait_for("world")
    since = await mesh.logged(await mesh.wait_phase("Synced"))
    await mesh.registry.stop()

    async with mesh.load.steady() as report:
        await mesh.wasmer.process.kill()
        await mesh.wasmer.start()
        # The reconcile of another, later object shows that the first one was reconciled.
        await mesh.apply(mesh.autowasm("127.0.0.1:1/none:v1", name="zzz"))
        await mesh.logged(await mesh.wait_phase("Failed", name="zzz"))

    assert report.failed == 0, str(report)
    written = [entry for entry in await mesh.writes(since) if entry.resource != "events"]
    assert {entry.name for entry in written} == {"zzz"}, written


async def test_edited_or_deleted_envoyfilter_is_reverted(mesh: OneSidecar) -> None:
    await mesh.apply(mesh.autowasm(await mesh.push_header("world")))
    await mesh.load.wait_for("world")
    await mesh.wait_phase("Synced")

    patch = {"metadata": {"labels": {"team": "a"}}, "spec": {"configPatches": []}}
    await mesh.kubectl.run("patch", "envoyfilter", "test", "--type=merge", "-p", json.dumps(patch))
    live = await mesh.wait_envoyfilter(
        lambda found: bool(found["spec"]["configPatches"] and found["metadata"]["labels"]["team"])
    )
    await mesh.load.wait_for("world")

    await mesh.kubectl.run("delete", "envoyfilter", "test")
    created = await mesh.wait_envoyfilter()
    assert created["spec"] == live["spec"]
    await mesh.load.wait_for("world")


async def test_same_vm_id_and_different_modules_both_run(mesh: OneSidecar) -> None:
    one = await mesh.push_header("1", name="one")
    two = await mesh.push_header("2", name="two")
    await mesh.apply(
        mesh.autowasm(one, name="one", vmID="same"), mesh.autowasm(two, name="two", vmID="same")
    )
    await Load(mesh.sidecar.host, header="one").wait_for("1")
    await Load(mesh.sidecar.host, header="two").wait_for("2")
    answer = await wire.get(f"http://{mesh.sidecar.host}/")
    assert (answer.headers["one"], answer.headers["two"]) == ("1", "2")

    three = await mesh.push_header("3", name="one")
    await mesh.apply(mesh.autowasm(three, name="one", vmID="same"))
    await Load(mesh.sidecar.host, header="one").wait_for("3")
    await Load(mesh.sidecar.host, header="two").wait_for("2")


async def test_gateway_proxy_runs_a_filter_of_the_gateway_context(mesh: OneSidecar) -> None:
    labels = {"istio": "gateway"}
    port = ports.free_port(address=GATEWAY)
    await mesh.istiod.add_gateway(
        "edge", labels=labels, address=GATEWAY, port=port, service=mesh.service
    )
    load = Load(f"{GATEWAY}:{port}", header="hello")
    async with sidecar(
        mesh.istiod,
        mesh.directory / "gateway",
        name="edge",
        labels=labels,
        address=GATEWAY,
        role="router",
    ):
        await load.wait_for(None)
        image = await mesh.push_header("edge")
        document = mesh.autowasm(image, context="GATEWAY", applyPorts=[port])
        document["spec"]["selector"]["matchLabels"] = labels
        await mesh.apply(document)
        await load.wait_for("edge")
        await mesh.load.wait_for(None)
