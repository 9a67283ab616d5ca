"""wasmer does not publish a module that would not start in Envoy: real filters, real Envoys, requests meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.parts import envoy as envoys
from tests.parts import filters, ports, pypi, registry, wasmer, wat
from tests.parts.envoy import Envoy
from tests.parts.load import Load
from tests.parts.upstream import upstream
from tests.parts.wasmer import Wasmer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]
REQUESTS = 2000
TRAPS = """
(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) unreachable))
"""
"""A filter that starts, and fails on every request."""


@dataclass
class Stand:
    """A registry, wasmer with the default pre-flight, and an Envoy with one listener."""

    directory: Path
    registry: str
    wasmer: Wasmer
    envoy: Envoy
    host: str

    async def push(self, name: str, file: Path) -> str:
        image = f"{self.registry}/filters/{name}:v1"
        await wasmer.wasmc(self.directory).run("push", image, "-f", str(file))
        return image

    def apply(self, image: str, *, annotation: str = "", **fields: Any) -> None:
        port = int(self.host.rpartition(":")[2])
        self.wasmer.apply(
            {
                "apiVersion": "wasm.tcm.io/v1alpha1",
                "kind": "AutoWasm",
                "metadata": {
                    "name": "checked",
                    "namespace": "default",
                    "annotations": {"wasm.tcm.io/preflight": annotation} if annotation else {},
                },
                "spec": {
                    "filter": {
                        "applyPorts": [port],
                        "source": {"registry": {"image": image}},
                        **fields,
                    },
                    "selector": {"matchLabels": {"app": "details"}},
                },
            }
        )

    async def condition(self, kind: str, status: str, reason: str) -> str:
        """The message of the condition, once it has this status and reason."""
        last: object = None
        async with asyncio.timeout(60):
            while True:
                found = await asyncio.to_thread(self.wasmer.status, "checked")
                last = found.get("conditions", [])
                for each in found.get("conditions", []):
                    if (each["type"], each["status"], each["reason"]) == (kind, status, reason):
                        return str(each["message"])
                await asyncio.sleep(0.05)
        raise AssertionError(last)

    async def value(self, value: str) -> None:
        await filters.until_answer(
            self.host, lambda answer: answer.headers.get("x-configuration") == value
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=pypi.ENVOY_VERSIONS)
async def stand(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stand]:
    directory = tmp_path_factory.mktemp("preflight")
    port = ports.free_port()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        web = await enter(upstream())
        store = await enter(registry.distribution(directory / "registry"))
        server = await enter(
            wasmer.standalone(
                directory / "wasmer",
                template=envoys.listeners_yaml([port], cluster="web"),
                plain_http=[store.host],
                arguments=["--allow-preflight-override"],
            )
        )
        proxy = await enter(
            envoys.envoy(
                directory / "envoy",
                lds=server.lds,
                clusters={"web": web.host, wasmer.ENVOY_CLUSTER: server.host},
                version=request.param,
                concurrency=1,
            )
        )
        yield Stand(directory, store.host, server, proxy, f"{ports.LOOPBACK}:{port}")


@pytest.mark.parametrize("toolchain", filters.TOOLCHAINS)
async def test_refused_configuration_under_load_fails_no_request_and_changes_no_envoyfilter(
    stand: Stand, toolchain: str
) -> None:
    file = await asyncio.to_thread(filters.build, "refuse-config", toolchain=toolchain)
    image = await stand.push(f"refuse-config-{toolchain}", file)
    stand.apply(image, pluginConfig=f"good {toolchain}", rootID="refuse-config")
    await stand.value(f"good {toolchain}")
    assert await stand.condition("Starts", "True", "Started")
    before = await asyncio.to_thread(stand.wasmer.envoyfilter, "checked")

    load = Load(stand.host, header="x-filter", max_requests=REQUESTS, pause=0.001)
    async with load.steady() as report:
        stand.apply(image, pluginConfig="refuse this", rootID="refuse-config")
        message = await stand.condition("Ready", "False", "ConfigurationRefused")
        status = await asyncio.to_thread(stand.wasmer.status, "checked")
        while report.total < REQUESTS:
            await asyncio.sleep(0.05)

    assert report.failed == 0, report
    assert status["phase"] == "Degraded"
    assert "the configuration contains the word refuse: refuse this" in status["message"] + message
    assert await asyncio.to_thread(stand.wasmer.envoyfilter, "checked") == before


async def test_operator_may_let_an_annotation_publish_it_all_the_same(stand: Stand) -> None:
    file = await asyncio.to_thread(filters.build, "refuse-config", toolchain="c")
    image = await stand.push("refuse-config-c", file)
    stand.apply(image, pluginConfig="first", rootID="refuse-config")
    await stand.value("first")

    stand.apply(image, pluginConfig="refuse it", rootID="refuse-config", annotation="warn")

    await stand.condition("Ready", "True", "Synced")
    assert "contains the word refuse" in await stand.condition(
        "Starts", "False", "ConfigurationRefused"
    )


async def test_module_that_fails_on_its_first_request_is_published_with_a_doubt(
    stand: Stand,
) -> None:
    file = stand.directory / "trap.wasm"
    file.write_bytes(await asyncio.to_thread(wat.compile_text, TRAPS))
    image = await stand.push("trap-on-request", file)

    stand.apply(image)

    assert "unreachable" in await stand.condition("Starts", "Unknown", "FirstRequestFailed")
    await stand.condition("Ready", "True", "Synced")
