"""The acceptance check on the real control plane: `kubectl apply`, and the sidecar answers `hello: world`."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.parts import ports, provision, registry, wasmer, wat, wire
from tests.parts.envoy import Envoy
from tests.parts.istio import Istiod, istiod, sidecar
from tests.parts.kubernetes import ApiError, Cluster, kubernetes
from tests.parts.load import Load
from tests.parts.registry import RegistryServer
from tests.parts.upstream import upstream
from tests.parts.wasmer import Wasmer

# Building the control planes takes minutes where they are not in the cache yet.
pytestmark = pytest.mark.timeout(1800)

MANIFESTS = Path(__file__).parents[2] / "manifests"
SIDECAR = "127.0.0.2"
BLOBS = "127.0.0.3"
LABELS = {"app": "details"}
USER, PASSWORD = "alice", "s3cret"
_AUTOWASMS = "/apis/wasm.tcm.io/v1alpha1/namespaces/default/autowasms"
_ENVOYFILTERS = "/apis/networking.istio.io/v1alpha3/namespaces/default/envoyfilters"


@pytest.fixture(scope="session", autouse=True)
def _parts() -> None:
    for group in ("kubernetes", "istio"):
        for part in provision.GROUPS[group]:
            part()


@dataclass
class Mesh:
    """One cluster with Istio, one sidecar, one registry with a password, one wasmer with the shipped RBAC."""

    directory: Path
    cluster: Cluster
    istiod: Istiod
    registry: RegistryServer
    wasmer: Wasmer
    envoy: Envoy
    port: int

    @property
    def load(self) -> Load:
        """A load on the sidecar; answers without the header are failures."""
        return Load(f"{SIDECAR}:{self.port}", header="hello")

    async def push(self, tag: str, module: bytes) -> str:
        """Push with `wasmc`; the reference."""
        file = self.directory / f"{tag}.wasm"
        file.write_bytes(module)
        image = f"{self.registry.host}/xxx/wasm-add-header:{tag}"
        arguments = ("push", image, "-f", str(file), "--username", USER, "--password-stdin")
        await wasmer.wasmc(self.directory).run(*arguments, stdin=PASSWORD.encode())
        return image

    def autowasm(self, image: str, *, name: str = "test", **fields: Any) -> dict[str, Any]:
        """The sample object, on the sidecar's port."""
        sample = Path(__file__).parents[1] / "assets/samples/autowasm-registry.yaml"
        document: dict[str, Any] = yaml.safe_load(sample.read_text())
        document["metadata"]["name"] = name
        document["spec"]["filter"]["applyPorts"] = [self.port]
        document["spec"]["filter"]["source"] = {"registry": {"image": image}}
        document["spec"]["filter"].update(fields)
        return document

    async def apply(self, *documents: dict[str, Any]) -> None:
        """`kubectl apply`, as a user does."""
        text = yaml.safe_dump_all(documents, sort_keys=False)
        await self.istiod.kubectl.run("apply", "-f", "-", stdin=text.encode())

    async def get(self, name: str = "test") -> dict[str, Any]:
        """The AutoWasm."""
        return await self.cluster.request("GET", f"{_AUTOWASMS}/{name}")

    async def wait_phase(self, phase: str, *, name: str = "test") -> dict[str, Any]:
        """The AutoWasm once it has this phase for its generation."""
        document: dict[str, Any] = {}
        try:
            async with asyncio.timeout(40):
                while True:
                    await self.wasmer.process.check()
                    document = await self.get(name)
                    status = document.get("status") or {}
                    current = status.get("observedGeneration") == document["metadata"]["generation"]
                    if current and status.get("phase") == phase:
                        return document
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise TimeoutError(f"{document}\n{await self.wasmer.process.tail()}") from error

    async def wait_gone(self, path: str) -> None:
        """Until the object is not found."""
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.cluster.request("GET", path)
                except ApiError as error:
                    if error.status == 404:
                        return
                    raise
                await asyncio.sleep(0.05)


def _manifests() -> list[dict[str, Any]]:
    crd = yaml.safe_load((MANIFESTS / "crd.yaml").read_text())
    install = yaml.safe_load_all((MANIFESTS / "install.yaml").read_text())
    kinds = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
    return [crd, *(document for document in install if document["kind"] in kinds)]


def _pull_secret(host: str) -> dict[str, Any]:
    config = {"auths": {host: {"username": USER, "password": PASSWORD}}}
    data = base64.b64encode(json.dumps(config).encode()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": "test", "namespace": "default"},
        "data": {".dockerconfigjson": data},
    }


async def _service_account_kubeconfig(cluster: Cluster, target: Path) -> Path:
    """A kubeconfig with a token of the shipped ServiceAccount: RBAC is enforced on everything that wasmer does."""
    answer = await cluster.request(
        "POST",
        "/api/v1/namespaces/istio-system/serviceaccounts/wasmer/token",
        body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    )
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    for user in config["users"]:
        user["user"] = {"token": answer["status"]["token"]}
    target.write_text(yaml.safe_dump(config))
    return target


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        cluster = await enter(kubernetes(tmp_path / "kubernetes"))
        control = await enter(istiod(cluster, tmp_path / "istiod"))
        await control.apply(*_manifests())
        await control.kubectl.run(
            "wait", "--for=condition=Established", "crd/autowasms.wasm.tcm.io", "--timeout=30s"
        )
        store = await enter(registry.distribution(tmp_path / "registry", users={USER: PASSWORD}))
        await control.apply(_pull_secret(store.host))
        service = await enter(upstream())
        port = ports.free_port(address=SIDECAR)
        blobs = f"{BLOBS}:{ports.free_port(address=BLOBS)}"
        await control.add_workload(
            "details-v1", labels=LABELS, address=SIDECAR, port=port, service=service.host
        )
        await control.add_blob_service(blobs)
        kubeconfig = await _service_account_kubeconfig(cluster, tmp_path / "wasmer.kubeconfig")
        server = await enter(
            wasmer.controller(
                tmp_path / "wasmer", kubeconfig=kubeconfig, host=blobs, plain_http=[store.host]
            )
        )
        proxy = await enter(
            sidecar(
                control, tmp_path / "sidecar", name="details-v1", labels=LABELS, address=SIDECAR
            )
        )
        yield Mesh(tmp_path, cluster, control, store, server, proxy, port)


async def test_applied_autowasm_adds_the_header_changes_under_load_and_goes_when_deleted(
    mesh: Mesh,
) -> None:
    world = await mesh.push("v0.3", wat.header_filter("world"))
    await mesh.apply(mesh.autowasm(world))
    await mesh.load.wait_for("world")
    answer = await wire.get(f"http://{SIDECAR}:{mesh.port}/")
    assert answer.headers["server"] == "istio-envoy"
    document = await mesh.wait_phase("Synced")
    filter_ = await mesh.cluster.request("GET", f"{_ENVOYFILTERS}/test")
    assert filter_["metadata"]["ownerReferences"][0]["uid"] == document["metadata"]["uid"]

    earth = await mesh.push("v0.4", wat.header_filter("earth"))
    async with mesh.load.steady() as report:
        await asyncio.sleep(0.3)  # a load before the change
        await mesh.apply(mesh.autowasm(earth))
        await mesh.load.wait_for("earth")
        await asyncio.sleep(0.5)  # and after it
    assert report.failed == 0, str(report)
    document = await mesh.wait_phase("Synced")
    assert [entry["source"] for entry in document["status"]["history"]] == [
        f"registry:{earth}",
        f"registry:{world}",
    ]

    await mesh.istiod.kubectl.run("delete", "aw", "test", "--cascade=foreground", timeout=60)
    await mesh.wait_gone(f"{_ENVOYFILTERS}/test")
    await mesh.load.wait_for(None)


async def test_autowasm_deleted_while_the_controller_is_down_takes_its_envoyfilter_along(
    mesh: Mesh,
) -> None:
    await mesh.apply(mesh.autowasm(await mesh.push("v0.3", wat.header_filter("world"))))
    await mesh.load.wait_for("world")

    await mesh.wasmer.process.kill()
    await mesh.istiod.kubectl.run("delete", "aw", "test", timeout=60)

    await mesh.wait_gone(f"{_ENVOYFILTERS}/test")
    await mesh.load.wait_for(None)


async def test_restart_writes_nothing(mesh: Mesh) -> None:
    await mesh.apply(mesh.autowasm(await mesh.push("v0.3", wat.header_filter("world"))))
    await mesh.load.wait_for("world")
    await mesh.wait_phase("Synced")
    before = await mesh.get(), await mesh.cluster.request("GET", f"{_ENVOYFILTERS}/test")
    await mesh.registry.stop()

    await mesh.wasmer.process.kill()
    await mesh.wasmer.start()

    # Another object that is reconciled after the first shows that the first was looked at.
    await mesh.apply(mesh.autowasm("127.0.0.1:1/none:v1", name="zzz"))
    await mesh.wait_phase("Failed", name="zzz")
    after = await mesh.get(), await mesh.cluster.request("GET", f"{_ENVOYFILTERS}/test")
    assert [one["metadata"]["resourceVersion"] for one in after] == [
        one["metadata"]["resourceVersion"] for one in before
    ]


async def test_foreign_envoyfilter_is_left_alone_until_it_is_handed_over(mesh: Mesh) -> None:
    await mesh.istiod.apply(
        {
            "apiVersion": "networking.istio.io/v1alpha3",
            "kind": "EnvoyFilter",
            "metadata": {"name": "test", "namespace": "default"},
            "spec": {"workloadSelector": {"labels": {"app": "none"}}, "configPatches": []},
        }
    )
    image = await mesh.push("v0.3", wat.header_filter("world"))
    await mesh.apply(mesh.autowasm(image))
    document = await mesh.wait_phase("Failed")
    assert "adopt" in document["status"]["message"]
    assert (await mesh.cluster.request("GET", f"{_ENVOYFILTERS}/test"))["spec"][
        "configPatches"
    ] == []

    await mesh.istiod.kubectl.run(
        "annotate", "envoyfilter", "test", "wasm.tcm.io/adopt=true", "--overwrite"
    )
    await mesh.istiod.kubectl.run("annotate", "aw", "test", "example.com/touched=1")

    await mesh.load.wait_for("world")


async def test_edited_envoyfilter_is_put_back_and_foreign_labels_stay(mesh: Mesh) -> None:
    await mesh.apply(mesh.autowasm(await mesh.push("v0.3", wat.header_filter("world"))))
    await mesh.load.wait_for("world")
    await mesh.wait_phase("Synced")

    patch = {"metadata": {"labels": {"team": "a"}}, "spec": {"configPatches": []}}
    await mesh.istiod.kubectl.run(
        "patch", "envoyfilter", "test", "--type=merge", "-p", json.dumps(patch)
    )

    async with asyncio.timeout(20):
        while True:
            live = await mesh.cluster.request("GET", f"{_ENVOYFILTERS}/test")
            if live["spec"]["configPatches"]:
                break
            await asyncio.sleep(0.05)
    assert live["metadata"]["labels"]["team"] == "a"
    await mesh.load.wait_for("world")
