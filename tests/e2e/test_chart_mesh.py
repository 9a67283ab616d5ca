"""A mesh with strict mutual TLS everywhere, and wasmer without a sidecar: fetches of sidecars, and the chart's DestinationRule."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
import yaml

from tests.manifests import charts
from tests.parts import wat, wire
from tests.parts.controlplane import ControlPlane
from tests.parts.envoy import Envoy
from tests.parts.installation import Document
from tests.parts.istio import ROOT_NAMESPACE
from tests.parts.mesh import Mesh, composed

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

CLUSTER = "outbound|8081||wasmer.istio-system.svc.cluster.local"


@dataclass
class StrictMesh(Mesh):
    """One workload with an agent and a sidecar, in a mesh that accepts only mutual TLS."""

    host: str
    envoy: Envoy
    tls: ssl.SSLContext

    async def header(self) -> str | None:
        """The header that the filter adds; "" if there is no answer."""
        try:
            answer = await wire.request("GET", f"https://{self.host}/", tls=self.tls)
        except OSError:
            return ""
        return answer.headers.get("hello") if answer.status == 200 else ""

    async def publish(self, value: str) -> str:
        """The AutoWasm with a new module, once it is Synced."""
        image = await self.push(value, wat.header_filter(value))
        port = int(self.host.rpartition(":")[2])
        document = self.autowasm(image, name="strict", applyPorts=[port])
        document["spec"]["selector"]["matchLabels"] = {"app": "strict"}
        await self.apply(document)
        await self.wait_phase("Synced", name="strict")
        return value

    async def way(self) -> Document:
        """The cluster that leads to wasmer, as Envoy has it."""
        for part in (await self.envoy.config_dump())["configs"]:
            for entry in part.get("dynamic_active_clusters", ()):
                if entry["cluster"]["name"] == CLUSTER:
                    cluster: Document = entry["cluster"]
                    return cluster
        raise AssertionError(f"no {CLUSTER}")

    async def failures(self) -> int:
        """Failed connections to wasmer, including TLS handshakes without an answer."""
        text = (await wire.get(f"http://{self.envoy.admin}/clusters")).body.decode()
        lines = (line.split("::") for line in text.splitlines() if line.startswith(f"{CLUSTER}::"))
        return sum(int(line[-1]) for line in lines if line[-2] == "cx_connect_fail")


async def _until(condition: Callable[[], Awaitable[bool]], *, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.1)


def _settings(**more: Any) -> Document:
    """Istio's default MeshConfig (mutual TLS if both sides support it), with `more`."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "istio", "namespace": ROOT_NAMESPACE},
        "data": {"mesh": yaml.safe_dump({"enableAutoMtls": True, **more})},
    }


def _istio(group: str, kind: str, spec: Document) -> Document:
    return {
        "apiVersion": f"{group}.istio.io/v1",
        "kind": kind,
        "metadata": {"name": "default", "namespace": ROOT_NAMESPACE},
        "spec": spec,
    }


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def mesh(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[StrictMesh]:
    directory = tmp_path_factory.mktemp("strict")
    async with composed(directory, plane=control_plane, authority=True) as found:
        strict = _istio("security", "PeerAuthentication", {"mtls": {"mode": "STRICT"}})
        await found.apply(_settings(), strict)
        client = await found.add_client()
        sidecar = await found.add_sidecar("strict", {"app": "strict"}, certificates=True)
        tls = await asyncio.to_thread(client.client)
        yield StrictMesh(**found.parts, host=sidecar.host, envoy=sidecar.envoy, tls=tls)


def _is_tls(socket: Document) -> bool:
    return str(socket.get("name", "")).endswith(".tls")


def _speaks_http2(cluster: Document) -> bool:
    return "http2_protocol_options" in str(cluster.get("typed_extension_protocol_options"))


async def test_strict_mtls_works_unchanged_and_the_destination_rule_repairs_forced_mtls(
    mesh: StrictMesh,
) -> None:
    async def shows(header: str | None) -> None:
        await _until(lambda: _equal(mesh, header), seconds=90)

    await shows(None)
    with pytest.raises(OSError, match=r"closed|reset"):
        await wire.get(f"http://{mesh.host}/")
    await shows(await mesh.publish("one"))
    way = await mesh.way()
    assert not _is_tls(way.get("transport_socket", {})), "not for every endpoint"
    found = [one for one in way.get("transport_socket_matches", ()) if _is_tls(one)]
    wanted = [one["match"] for one in found]
    assert all(match == {"tlsMode": "istio"} for match in wanted), "only those with a sidecar"

    # As in older meshes.
    forced = {"host": "*.local", "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}}
    await mesh.apply(
        _istio("networking", "DestinationRule", forced), _settings(h2UpgradePolicy="UPGRADE")
    )

    async def forced_on() -> bool:
        way = await mesh.way()
        return _is_tls(way.get("transport_socket", {})) and _speaks_http2(way)

    await _until(forced_on)
    two = await mesh.publish("two")

    async def failed() -> bool:
        return await mesh.failures() > 0

    await _until(failed)
    assert await mesh.header() == "one", "the old module runs as long as the new one is waited for"

    objects = await asyncio.to_thread(charts.render, destinationRule={"enabled": True})
    await mesh.apply(objects["DestinationRule", "wasmer"])
    await shows(two)
    way = await mesh.way()
    assert "transport_socket" not in way
    assert not _speaks_http2(way)


async def _equal(mesh: StrictMesh, header: str | None) -> bool:
    return await mesh.header() == header
