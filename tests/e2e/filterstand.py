"""Real filters behind `wasmer standalone`: one Envoy for the cases of a file, with a listener for each case.

Envoy has one worker, so the next request reaches a crashed filter again.
"""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.parts import envoy as envoys
from tests.parts import filters, ports, registry, wasmer, wat, wire
from tests.parts.envoy import Envoy
from tests.parts.filters import Echo
from tests.parts.registry import RegistryServer
from tests.parts.upstream import upstream
from tests.parts.wasmer import Wasmer
from tests.parts.wire import Answer

LISTENERS = 48  # at least one for each case
TIMEOUT = 90
LOG_TAIL = 4000
"""Characters of Envoy's log in the message of a failure."""


@dataclass
class Case:
    """One AutoWasm and its listener."""

    stand: "Stand"
    name: str
    port: int
    image: str
    digest: str

    @property
    def host(self) -> str:
        """The address of the listener."""
        return f"{ports.LOOPBACK}:{self.port}"

    def apply(self, image: str = "", **fields: Any) -> None:
        """Apply the AutoWasm with these fields in `spec.filter`; `image` replaces the case's own."""
        source = {"registry": {"image": image or self.image}}
        self.stand.wasmer.apply(
            {
                "apiVersion": "wasm.tcm.io/v1alpha1",
                "kind": "AutoWasm",
                "metadata": {"name": self.name, "namespace": "default"},
                "spec": {
                    "filter": {"applyPorts": [self.port], "source": source, **fields},
                    "selector": {"matchLabels": {"app": "details"}},
                },
            }
        )

    async def ask(self, **headers: str) -> Answer:
        """A request with these headers; `_` in a name becomes `-`."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await wire.get(f"http://{self.host}/", headers=given)

    async def wait_for(self, condition: Callable[[Answer], bool]) -> Answer:
        """The first answer that fulfils the condition. Raises TimeoutError with the status and the end of Envoy's log."""
        try:
            return await filters.until_answer(self.host, condition)
        except TimeoutError as error:
            status = await asyncio.to_thread(self.stand.wasmer.status, self.name)
            error.add_note(f"status of {self.name}: {status}")
            error.add_note((await self.stand.envoy.log_text())[-LOG_TAIL:])
            raise

    async def runs(self) -> Answer:
        """The first answer that the filter has seen."""
        return await self.wait_for(lambda answer: "x-filter" in answer.headers)

    async def wait_for_header(self, name: str, value: str) -> Answer:
        """The first answer with status 200 and this header."""
        return await self.wait_for(
            lambda answer: answer.status == 200 and answer.headers.get(name) == value
        )

    async def echo(self, wanted: Callable[[Echo], bool], *, plugin: str = "any") -> Echo:
        """The input that the filter echo reports, once it has the wanted values."""
        return await filters.until_echo(self.host, wanted, plugin=plugin)


@dataclass
class Stand:
    """The running parts: a registry, wasmer, an Envoy with many listeners, and a service that echoes requests."""

    directory: Path
    registry: RegistryServer
    wasmer: Wasmer
    envoy: Envoy
    free: Iterator[int]
    numbers: Iterator[int] = field(default_factory=itertools.count)
    pushed: set[str] = field(default_factory=set)

    async def case(self, filter_: str, toolchain: str) -> Case:
        """A listener and a pushed module of the filter; nothing is applied yet."""
        path = await asyncio.to_thread(filters.build, filter_, toolchain=toolchain)
        image = f"{self.registry.host}/filters/{filter_}:{toolchain}"
        if image not in self.pushed:
            await wasmer.wasmc(self.directory).run("push", image, "-f", str(path))
            self.pushed.add(image)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name = f"{filter_}-{toolchain}-{next(self.numbers)}"
        return Case(self, name, next(self.free), image, digest)

    async def push_another(self, filter_: str, toolchain: str, *, tag: str) -> str:
        """Push the filter with other bytes, so Envoy does not have it in its cache; returns the reference."""
        path = await asyncio.to_thread(filters.build, filter_, toolchain=toolchain)
        module = path.read_bytes()
        file = self.directory / f"{tag}.wasm"
        file.write_bytes(wat.padded(module, size=len(module) + 16 + next(self.numbers)))
        image = f"{self.registry.host}/filters/{filter_}:{tag}"
        await wasmer.wasmc(self.directory).run("push", image, "-f", str(file))
        return image

    async def logged(self, text: str) -> None:
        """Wait until Envoy's log has the text."""
        async with asyncio.timeout(TIMEOUT):
            while text not in await self.envoy.log_text():
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(directory: Path, version: str) -> AsyncIterator[Stand]:
    """The running parts with an Envoy of this version."""
    listeners = ports.free_ports(LISTENERS)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        web = await enter(upstream())
        store = await enter(registry.distribution(directory / "registry"))
        server = await enter(
            wasmer.standalone(
                directory / "wasmer",
                template=envoys.listeners_yaml(listeners, cluster="web"),
                plain_http=[store.host],
                arguments=["--preflight", "off"],  # modules that would be refused must reach Envoy
            )
        )
        clusters = {
            "web": web.host,
            "gone": f"{ports.LOOPBACK}:{ports.free_port()}",
            wasmer.ENVOY_CLUSTER: server.host,
        }
        proxy = await enter(
            envoys.envoy(
                directory / "envoy",
                lds=server.lds,
                clusters=clusters,
                version=version,
                concurrency=1,
                log_level="info",
            )
        )
        yield Stand(directory, store, server, proxy, iter(listeners))
