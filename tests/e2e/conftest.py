"""What the tests of `wasmer standalone` share: registry → `wasmer standalone` → Envoy → a service."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.parts import envoy as envoys
from tests.parts import ports, pypi, registry, wasmer, wat
from tests.parts.envoy import Envoy
from tests.parts.faults.proxy import FaultProxy
from tests.parts.load import Load
from tests.parts.registry import RegistryServer
from tests.parts.upstream import upstream
from tests.parts.wasmer import Wasmer


@dataclass
class Standalone:
    """The running parts. `proxy` is between Envoy and the blob port."""

    directory: Path
    stack: AsyncExitStack
    registry: RegistryServer
    wasmer: Wasmer
    envoy: Envoy
    proxy: FaultProxy
    port: int
    clusters: Mapping[str, str]

    @property
    def load(self) -> Load:
        """A load on Envoy; only answers with the filter's header are good."""
        return Load(f"{ports.LOOPBACK}:{self.port}", header="hello")

    @property
    def plain_load(self) -> Load:
        """A load on Envoy; every 200 is good."""
        return Load(f"{ports.LOOPBACK}:{self.port}")

    def image(self, tag: str, *, repository: str = "filters/hello") -> str:
        """A reference in the standalone's registry."""
        return f"{self.registry.host}/{repository}:{tag}"

    async def push(self, tag: str, module: bytes, *arguments: str) -> str:
        """Push with `wasmc`; returns the reference."""
        client = wasmer.wasmc(self.directory)
        file = self.directory / f"{tag}.wasm"
        file.write_bytes(module)
        await client.run("push", self.image(tag), "-f", str(file), *arguments)
        return self.image(tag)

    async def push_header(self, value: str, *, name: str = "hello") -> str:
        """Push a filter that adds the header; the tag is the value."""
        return await self.push(value, wat.header_filter(value, name=name))

    def autowasm(self, image: str, *, name: str = "test", **fields: Any) -> dict[str, Any]:
        """An AutoWasm on the standalone's port; `fields` go into `spec.filter`."""
        filter_ = {"applyPorts": [self.port], "source": {"registry": {"image": image}}, **fields}
        return {
            "apiVersion": "wasm.tcm.io/v1alpha1",
            "kind": "AutoWasm",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"filter": filter_, "selector": {"matchLabels": {"app": "details"}}},
        }

    async def another_envoy(self, name: str, *, version: str = pypi.ENVOY_VERSIONS[0]) -> Envoy:
        """A fresh Envoy with an empty cache, on the same listener file (both share the ports by SO_REUSEPORT)."""
        return await self.stack.enter_async_context(
            envoys.envoy(
                self.directory / name, lds=self.wasmer.lds, clusters=self.clusters, version=version
            )
        )


def _proxy_to(host: str) -> FaultProxy:
    address, _, port = host.rpartition(":")
    return FaultProxy(address, int(port))


StandaloneStarter = Callable[..., Awaitable[Standalone]]


@pytest.fixture
async def start_standalone(tmp_path: Path) -> AsyncIterator[StandaloneStarter]:
    """Starts the parts of a Standalone; `version` of Envoy, more `arguments` for wasmer."""
    async with AsyncExitStack() as stack:

        async def make(
            *,
            version: str = pypi.ENVOY_VERSIONS[0],
            arguments: tuple[str, ...] = (),
            **options: Any,
        ) -> Standalone:
            web = await stack.enter_async_context(upstream())
            store = await stack.enter_async_context(
                registry.distribution(tmp_path / "registry", **options)
            )
            port = ports.free_port()
            server = await stack.enter_async_context(
                wasmer.standalone(
                    tmp_path / "wasmer",
                    template=envoys.listeners_yaml([port], cluster="web"),
                    plain_http=[store.host],
                    arguments=arguments,
                )
            )
            proxy = await stack.enter_async_context(_proxy_to(server.host))
            clusters = {"web": web.host, wasmer.ENVOY_CLUSTER: f"{ports.LOOPBACK}:{proxy.port}"}
            proxied = await stack.enter_async_context(
                envoys.envoy(tmp_path / "envoy", lds=server.lds, clusters=clusters, version=version)
            )
            return Standalone(tmp_path, stack, store, server, proxied, proxy, port, clusters)

        yield make


@pytest.fixture
async def standalone(start_standalone: StandaloneStarter) -> Standalone:
    """The standalone with default settings."""
    return await start_standalone()
