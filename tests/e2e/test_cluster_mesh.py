"""A filter in a mesh with mutual TLS: permissive and strict, with certificates that istiod signed."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.parts import ports, wat, wire
from tests.parts.agent import Agent, agent
from tests.parts.envoy import Envoy
from tests.parts.installation import Document, Installation, installed
from tests.parts.istio import Istiod, istiod, sidecar
from tests.parts.kubernetes import kubernetes
from tests.parts.upstream import upstream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1800)]

BLOBS = "127.0.0.3"
PERMISSIVE, STRICT, CLIENT = "127.0.0.5", "127.0.0.6", "127.0.0.7"


@dataclass
class Mesh(Installation):
    """An installation, an istiod that signs certificates, a workload that only calls others, and a service behind sidecars."""

    istiod: Istiod
    client: Agent
    service: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    directory = tmp_path_factory.mktemp("mtls")
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        cluster = await enter(kubernetes(directory / "kubernetes"))
        control = await enter(istiod(cluster, directory / "istiod", authority=True))
        blobs = f"{BLOBS}:{ports.free_port(address=BLOBS)}"
        installation = await enter(
            installed(cluster, control.kubectl, directory / "installation", host=blobs)
        )
        service = await enter(upstream())
        await control.add_blob_service(blobs)
        client = await enter(agent(control, directory / "client", name="client", address=CLIENT))
        parts = {name: getattr(installation, name) for name in Installation.__dataclass_fields__}
        yield Mesh(**parts, istiod=control, client=client, service=service.host)


@dataclass(frozen=True)
class Workload:
    """One workload with an agent and a sidecar of its own, and an AutoWasm on its port."""

    mesh: Mesh
    name: str
    host: str
    envoy: Envoy
    tls: ssl.SSLContext
    """As the client's sidecar would call it."""

    async def ask(self, *, tls: bool) -> str | None:
        """The filter's header in an answer. Raises OSError without an answer."""
        scheme = "https" if tls else "http"
        url = f"{scheme}://{self.host}/"
        answer = await wire.request("GET", url, tls=self.tls if tls else None)
        assert answer.status == 200, answer
        assert answer.headers["server"] == "istio-envoy"
        return answer.headers.get("hello")

    async def wait_for(self, value: str | None, *, tls: bool) -> None:
        """Until answers have this header."""
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
        """Those of the sidecar's inbound listener, as Envoy has it."""
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
        """Apply the AutoWasm with a filter that sets the header to `value`, the first such module anywhere."""
        image = await self.mesh.push(
            f"{self.name}-{value}", wat.header_filter(f"{self.name}-{value}")
        )
        port = int(self.host.rpartition(":")[2])
        document = self.mesh.autowasm(image, name=self.name, applyPorts=[port])
        document["spec"]["selector"]["matchLabels"] = {"app": self.name}
        await self.mesh.apply(document)
        return f"{self.name}-{value}"

    async def fetched(self) -> float:
        """How many blobs wasmer has sent so far."""
        return await self.mesh.wasmer.metric("autowasm_blob_responses_total")


async def _workload(
    stack: AsyncExitStack, mesh: Mesh, name: str, *, address: str, mode: str
) -> Workload:
    port = ports.free_port(address=address)
    labels = {"app": name}
    authentication: dict[str, Any] = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": labels}, "mtls": {"mode": mode}},
    }
    await mesh.istiod.apply(authentication)
    await mesh.istiod.add_workload(
        name, labels=labels, address=address, port=port, service=mesh.service
    )
    directory: Path = mesh.directory / name
    own = await stack.enter_async_context(agent(mesh.istiod, directory, name=name, address=address))
    envoy = await stack.enter_async_context(
        sidecar(
            mesh.istiod, own.directory, name=name, labels=labels, address=address, certificates=True
        )
    )
    tls = await asyncio.to_thread(mesh.client.client)
    return Workload(mesh, name, f"{address}:{port}", envoy, tls)


def _with_tls(chains: list[Document]) -> list[bool]:
    return sorted("transport_socket" in chain for chain in chains)


async def test_permissive_mtls_runs_the_filter_on_both_filter_chains(mesh: Mesh) -> None:
    async with AsyncExitStack() as stack:
        it = await _workload(stack, mesh, "permissive", address=PERMISSIVE, mode="PERMISSIVE")
        for tls in (False, True):
            await it.wait_for(None, tls=tls)
        assert _with_tls(await it.filter_chains()) == [False, True]

        for value in ("one", "two"):
            before = await it.fetched()
            header = await it.apply(value)
            for tls in (False, True):
                await it.wait_for(header, tls=tls)
            assert await it.fetched() - before == 2, "each chain fetches for itself"


async def test_strict_mtls_runs_the_filter_and_refuses_plain_text(mesh: Mesh) -> None:
    async with AsyncExitStack() as stack:
        it = await _workload(stack, mesh, "strict", address=STRICT, mode="STRICT")
        await it.wait_for(None, tls=True)
        assert _with_tls(await it.filter_chains()) == [True]

        before = await it.fetched()
        header = await it.apply("one")
        await it.wait_for(header, tls=True)
        assert await it.fetched() - before == 1
        with pytest.raises(OSError, match=r"closed|reset"):
            await it.ask(tls=False)
