"""Filters from real toolchains in a mesh: `kubectl apply`, wasmer, istiod, and a sidecar of each supported Envoy release."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.parts import filters, pypi, wire
from tests.parts.controlplane import ControlPlane
from tests.parts.envoy import Envoy
from tests.parts.installation import autowasms, envoyfilters
from tests.parts.mesh import Mesh, composed
from tests.parts.wire import Answer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

LABELS = {"app": "details"}
TIMEOUT = 90
STRATEGIES = ("FAIL_CLOSE", "FAIL_OPEN", "FAIL_RELOAD")
CONFIGURATION = 'say "hällo" to: {a: [1]}\n\t- \\ & # %s\n '


@dataclass(frozen=True)
class Proxy:
    """A sidecar in front of the service."""

    version: str
    host: str
    envoy: Envoy

    async def wait_for(self, condition: Callable[[Answer], bool]) -> Answer:
        """The first answer that fulfils the condition."""
        return await filters.until_answer(self.host, condition)

    async def runs(self, filter_: str) -> Answer:
        """The first answer that the filter has seen."""
        return await self.wait_for(lambda one: one.headers.get("x-filter") == filter_)


@dataclass
class FilteredMesh(Mesh):
    """A mesh with a sidecar of each Envoy; one AutoWasm selects them all."""

    proxies: list[Proxy]

    async def use(self, filter_: str, toolchain: str, **fields: Any) -> None:
        """Apply an AutoWasm with this filter for all sidecars."""
        path = await asyncio.to_thread(filters.build, filter_, toolchain=toolchain)
        image = await self.push(f"{filter_}-{toolchain}", await asyncio.to_thread(path.read_bytes))
        numbers = [int(proxy.host.rpartition(":")[2]) for proxy in self.proxies]
        await self.apply(self.autowasm(image, applyPorts=numbers, **fields))

    async def clean(self) -> None:
        """Remove the AutoWasm, and wait until no sidecar has a filter."""
        await self.cluster.request("DELETE", autowasms())
        await self.wait_gone(autowasms(name="test"))
        await self.wait_gone(envoyfilters(name="test"))
        for proxy in self.proxies:
            await proxy.wait_for(lambda one: one.status == 200 and "x-filter" not in one.headers)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running_mesh(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[FilteredMesh]:
    async with composed(
        tmp_path_factory.mktemp("filters-mesh"),
        plane=control_plane,
        arguments=["--preflight", "off"],  # modules that would be refused must reach Envoy
    ) as found:
        proxies = []
        for version in pypi.ENVOY_VERSIONS:
            labels = {**LABELS, "version": version}  # a Sidecar resource for each
            name = f"details-{version.replace('.', '-')}"
            sidecar = await found.add_sidecar(name, labels, version=version)
            proxies.append(Proxy(version, sidecar.host, sidecar.envoy))
        yield FilteredMesh(**found.parts, proxies=proxies)


@pytest_asyncio.fixture(loop_scope="session")
async def mesh(running_mesh: FilteredMesh) -> AsyncIterator[FilteredMesh]:
    """The mesh without leftovers of another test."""
    yield running_mesh
    await running_mesh.clean()


@pytest.mark.parametrize("toolchain", filters.TOOLCHAINS)
async def test_filter_in_a_sidecar_receives_configuration_environment_root_id_and_vm_id(
    mesh: FilteredMesh, toolchain: str
) -> None:
    environment = {"PLAIN": "value", "EMPTY": "", "UNCOMMON": "=a b,\n%s"}
    await mesh.use(
        "echo",
        toolchain,
        pluginConfig=CONFIGURATION,
        rootID="echo",
        vmID="shared",
        env=[{"name": name, "value": value} for name, value in environment.items()],
    )

    for proxy in mesh.proxies:
        received = await filters.until_echo(proxy.host, lambda echo: echo.configuration != b"")
        assert received.configuration.decode() == CONFIGURATION, proxy
        assert dict(received.environment) == environment, proxy
        assert received.root_id == "echo", proxy
        assert received.vm_id.startswith("shared-"), proxy


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_filter_in_a_sidecar_that_fails_on_a_request(
    mesh: FilteredMesh, strategy: str
) -> None:
    await mesh.use("fail-on-request", "c", failStrategy=strategy)

    for proxy in mesh.proxies:
        await proxy.runs("fail-on-request")
        # A connection stays with one worker of Envoy, and each worker has a VM of its own.
        connection = await wire.Connection.open(proxy.host)
        async with asyncio.timeout(TIMEOUT):
            at_once = await connection.request("GET", "/", headers={"x-fail": "request"})
            assert at_once.status == (200 if strategy == "FAIL_OPEN" else 503), proxy
            answer = await connection.request("GET", "/")
            if strategy == "FAIL_CLOSE":
                assert answer.status == 503, proxy
            elif strategy == "FAIL_OPEN":
                assert (answer.status, answer.headers.get("x-filter")) == (200, None), proxy
            else:
                while answer.headers.get("x-filter") is None:
                    await asyncio.sleep(0.05)
                    answer = await connection.request("GET", "/")
                assert answer.status == 200, proxy
        await connection.close()


@pytest.mark.parametrize("toolchain", ["c", "go"])
async def test_sidecar_that_has_the_module_rejects_a_configuration_that_the_filter_refuses(
    mesh: FilteredMesh, toolchain: str
) -> None:
    await mesh.use("refuse-config", toolchain, pluginConfig="accepted", rootID="refuse-config")
    for proxy in mesh.proxies:
        await proxy.wait_for(lambda one: one.headers.get("x-configuration") == "accepted")

    await mesh.use("refuse-config", toolchain, pluginConfig=f"refuse {toolchain}")

    for proxy in mesh.proxies:
        async with asyncio.timeout(TIMEOUT):
            while f"the word refuse: refuse {toolchain}" not in await proxy.envoy.log_text():
                await asyncio.sleep(0.05)
        answer = await wire.get(f"http://{proxy.host}/")
        assert (answer.status, answer.headers["x-configuration"]) == (200, "accepted"), proxy


async def test_filter_in_a_sidecar_calls_another_cluster_and_reads_a_request_body(
    mesh: FilteredMesh,
) -> None:
    cluster = "outbound|8081||wasmer.istio-system.svc.cluster.local"
    await mesh.use("callout", "go", pluginConfig=f"{cluster} /wasm/nothing")
    for proxy in mesh.proxies:
        answer = await proxy.runs("callout")
        assert (answer.status, answer.headers["x-callout"]) == (200, "404"), proxy
        assert b'"x-callout": "404"' in answer.body, proxy

    await mesh.use("buffer-body", "c")
    for proxy in mesh.proxies:
        await proxy.runs("buffer-body")
        body = bytes(range(256)) * 1000
        answer = await wire.request("POST", f"http://{proxy.host}/", body=body)
        assert (answer.status, answer.headers["x-body"]) == (200, f"{len(body)} {sum(body)}"), proxy


async def test_filter_in_a_sidecar_answers_in_place_of_the_service(mesh: FilteredMesh) -> None:
    await mesh.use("deny", "c")

    for proxy in mesh.proxies:
        answer = await proxy.wait_for(lambda one: one.status == 403)
        assert answer.body == b"denied by the filter deny\n"
