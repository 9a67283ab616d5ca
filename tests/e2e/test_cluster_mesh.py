"""A filter in a mesh with mutual TLS: permissive and strict, with certificates that istiod signed."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.parts import wat, wire
from tests.parts.agent import Agent
from tests.parts.controlplane import ControlPlane
from tests.parts.envoy import Envoy
from tests.parts.installation import Document
from tests.parts.mesh import Mesh, composed

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]


@dataclass
class SignedMesh(Mesh):
    """A mesh with an istiod that signs certificates, and a workload that only calls others."""

    client: Agent


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def mesh(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignedMesh]:
    async with composed(
        tmp_path_factory.mktemp("mtls"), plane=control_plane, authority=True
    ) as found:
        yield SignedMesh(**found.parts, client=await found.add_client())


@dataclass(frozen=True)
class Workload:
    """One workload with an agent and a sidecar of its own, and an AutoWasm on its port."""

    mesh: SignedMesh
    name: str
    host: str
    envoy: Envoy
    tls: ssl.SSLContext
    """The TLS context of the client's sidecar."""

    async def ask(self, *, tls: bool) -> str | None:
        """The filter's header in an answer. Raises OSError without an answer."""
        scheme = "https" if tls else "http"
        url = f"{scheme}://{self.host}/"
        answer = await wire.request("GET", url, tls=self.tls if tls else None)
        assert answer.status == 200, answer
        assert answer.headers["server"] == "istio-envoy"
        return answer.headers.get("hello")

    async def wait_for(self, value: str | None, *, tls: bool) -> None:
        """Wait until answers have this header."""
        last: object = None
        try:
            async with asyncio.timeout(40):
                while True:
                    try:
                        if (last := await self.ask(tls=tls)) == value:
                            return
                    except (OSError, AssertionError) as error:
                        last = error
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise TimeoutError(f"not {value} but {last!r}; tls: {tls}") from error

    async def filter_chains(self) -> list[Document]:
        """The filter chains of the sidecar's inbound listener, from Envoy's configuration."""
        port = int(self.host.rpartition(":")[2])
        for part in (await self.envoy.config_dump())["configs"]:
            for listener in part.get("dynamic_listeners", ()):
                live = listener.get("active_state", {}).get("listener", {})
                address = live.get("address", {}).get("socket_address", {})
                if address.get("port_value") == port:
                    chains: list[Document] = live["filter_chains"]
                    return chains
        raise AssertionError(f"no listener on {self.host}")

    async def apply(self, value: str) -> str:
        """Apply the AutoWasm with a new module, which sets the header to `value`."""
        image = await self.mesh.push(
            f"{self.name}-{value}", wat.header_filter(f"{self.name}-{value}")
        )
        port = int(self.host.rpartition(":")[2])
        document = self.mesh.autowasm(image, name=self.name, applyPorts=[port])
        document["spec"]["selector"]["matchLabels"] = {"app": self.name}
        await self.mesh.apply(document)
        return f"{self.name}-{value}"

    async def fetched(self) -> float:
        """The number of blobs that wasmer has sent so far."""
        return await self.mesh.wasmer.metric("autowasm_blob_responses_total")


async def _workload(mesh: SignedMesh, name: str, *, mode: str) -> Workload:
    labels = {"app": name}
    authentication: dict[str, Any] = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": labels}, "mtls": {"mode": mode}},
    }
    await mesh.istiod.apply(authentication)
    sidecar = await mesh.add_sidecar(name, labels, certificates=True)
    tls = await asyncio.to_thread(mesh.client.client)
    return Workload(mesh, name, sidecar.host, sidecar.envoy, tls)


def _with_tls(chains: list[Document]) -> list[bool]:
    return sorted("transport_socket" in chain for chain in chains)


async def test_permissive_mtls_runs_the_filter_on_both_filter_chains(mesh: SignedMesh) -> None:
    it = await _workload(mesh, "permissive", mode="PERMISSIVE")
    for tls in (False, True):
        await it.wait_for(None, tls=tls)
    assert _with_tls(await it.filter_chains()) == [False, True]

    for value in ("one", "two"):
        before = await it.fetched()
        header = await it.apply(value)
        for tls in (False, True):
            await it.wait_for(header, tls=tls)
        assert await it.fetched() - before == 2, "each chain fetches for itself"


async def test_strict_mtls_runs_the_filter_and_refuses_plain_text(mesh: SignedMesh) -> None:
    it = await _workload(mesh, "strict", mode="STRICT")
    await it.wait_for(None, tls=True)
    assert _with_tls(await it.filter_chains()) == [True]

    before = await it.fetched()
    header = await it.apply("one")
    await it.wait_for(header, tls=True)
    assert await it.fetched() - before == 1
    with pytest.raises(OSError, match=r"closed|reset"):
        await it.ask(tls=False)
