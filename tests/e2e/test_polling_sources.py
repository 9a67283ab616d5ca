"""`refreshInterval` with sources that support little: objects by their validators, registries without digests or without HEAD."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.autowasms import document
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.parts import envoy as envoys
from tests.parts import wasmer, wat
from tests.parts.faults.virtualtime import VirtualTime
from tests.parts.wasmer import Wasmer

INTERVAL = 30.0
"""Seconds between two polls."""
WITHIN = 60.0
"""Guard: seconds for the effects of a due poll."""
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass
class Source:
    """A source with one module under one name; it counts the requests and the complete responses."""

    module: bytes
    requests: int = 0
    confirmed: int = 0
    """Responses without the module that identify the current one."""
    sent: int = 0
    methods: set[str] = field(default_factory=set)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.module).hexdigest()

    async def __call__(self, exchange: Exchange) -> None:
        raise NotImplementedError


class WithETag(Source):
    """An object that has an entity tag, and no date."""

    async def __call__(self, exchange: Exchange) -> None:
        self.requests += 1
        tag = f'"{self.sha256[:8]}"'
        assert "if-modified-since" not in exchange.request.headers
        if exchange.request.headers.get("if-none-match") == tag:
            self.confirmed += 1
            await exchange.head(304, {"ETag": tag})
            return
        self.sent += 1
        await exchange.send(body=self.module, headers={"ETag": tag})


class WithDate(Source):
    """An object that has a date, and no entity tag."""

    async def __call__(self, exchange: Exchange) -> None:
        self.requests += 1
        day = 1 + self.module[-1] % 20  # a different date for a different module
        date = f"Sun, {day:02} Nov 2026 08:49:37 GMT"
        assert "if-none-match" not in exchange.request.headers
        if exchange.request.headers.get("if-modified-since") == date:
            self.confirmed += 1
            await exchange.head(304, {"Last-Modified": date})
            return
        self.sent += 1
        await exchange.send(body=self.module, headers={"Last-Modified": date})


class WithNothing(Source):
    """An object without validators: each poll downloads it completely."""

    async def __call__(self, exchange: Exchange) -> None:
        self.requests += 1
        assert not {"if-none-match", "if-modified-since"} & exchange.request.headers.keys()
        self.confirmed += 1
        await exchange.send(body=self.module)


class Registry(Source):
    """A registry that announces no digest."""

    async def __call__(self, exchange: Exchange) -> None:
        self.methods.add(exchange.request.method)
        target = exchange.request.target
        if "/blobs/" in target:
            self.sent += 1
            await exchange.send(body=self.module if self.sha256 in target else b"{}")
            return
        self.requests += 1
        self.confirmed += 1
        if exchange.request.method == "HEAD":
            await self.answer_head(exchange)
        else:
            await exchange.send(body=self._manifest(), headers={"Content-Type": MANIFEST})

    async def answer_head(self, exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": MANIFEST})

    def _manifest(self) -> bytes:
        empty = hashlib.sha256(b"{}").hexdigest()
        size = len(self.module)
        layer = {"mediaType": "application/wasm", "digest": f"sha256:{self.sha256}", "size": size}
        config = {"mediaType": "application/json", "digest": f"sha256:{empty}", "size": 2}
        whole = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
        return json.dumps(whole).encode()


class WithoutHead(Registry):
    """A registry that supports only GET."""

    async def answer_head(self, exchange: Exchange) -> None:
        await exchange.head(405, {"Content-Length": "0", "Allow": "GET"})


KINDS: dict[str, Callable[[bytes], Source]] = {
    "etag": WithETag,
    "date": WithDate,
    "nothing": WithNothing,
    "registry": Registry,
    "headless": WithoutHead,
}


@dataclass(frozen=True)
class PolledSources:
    server: Wasmer
    sources: dict[str, Source]
    time: VirtualTime

    async def next_poll(self) -> None:
        """Wait until each source was polled again and wasmer has the results."""
        requests = {name: source.requests for name, source in self.sources.items()}
        polls = await self.server.metric("autowasm_polls_total")
        # An interval is longer by up to a tenth.
        await self.time.pass_(1.2 * INTERVAL, [self.server])
        await self.until(
            lambda: all(source.requests > requests[name] for name, source in self.sources.items())
        )
        async with asyncio.timeout(WITHIN):
            while await self.server.metric("autowasm_polls_total") < polls + len(self.sources):
                await asyncio.sleep(0.1)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN):
            while not condition():
                await self.server.process.check()
                await asyncio.sleep(0.1)

    def rolled_out(self, name: str) -> bool:
        status = self.server.status(name)
        module = status.get("module") or {}
        return status.get("phase") == "Synced" and module.get("sha256") == self.sources[name].sha256

    def envoyfilters(self) -> dict[str, tuple[int, str]]:
        folder = self.server.directory / "envoy" / "envoyfilters"
        return {one.name: (one.stat().st_mtime_ns, one.read_text()) for one in folder.iterdir()}


@pytest.fixture
async def polled(tmp_path: Path) -> AsyncIterator[PolledSources]:
    """All sources at once: one wasmer polls them all."""
    time = VirtualTime(tmp_path / "time")
    sources = {name: kind(wat.header_filter(f"{name} one")) for name, kind in KINDS.items()}
    async with AsyncExitStack() as stack:
        hosts = {
            name: (await stack.enter_async_context(ScriptedServer(source))).host
            for name, source in sources.items()
        }
        server = await stack.enter_async_context(
            wasmer.standalone(
                tmp_path,
                template=envoys.listeners_yaml([1], cluster="web"),
                plain_http=list(hosts.values()),
                env=time.environment,
            )
        )
        for name, host in hosts.items():
            if isinstance(sources[name], Registry):
                given: dict[str, Any] = {"registry": {"image": f"{host}/team/filter:stable"}}
            else:
                given = {"object": {"url": f"http://{host}/filter.wasm"}}
            server.apply(document(name=name, source=given, refreshInterval=f"{INTERVAL:g}s"))
        yield PolledSources(server, sources, time)


@pytest.mark.timeout(600)
async def test_a_source_with_few_validators_is_still_polled_and_followed(
    polled: PolledSources,
) -> None:
    sources = polled.sources
    await polled.until(lambda: all(polled.rolled_out(name) for name in sources))
    before = polled.envoyfilters()
    sent = {name: source.sent for name, source in sources.items()}
    confirmed = {name: source.confirmed for name, source in sources.items()}

    # Nothing changes: each is polled twice more, without unnecessary fetches and without writes.
    for _ in range(2):
        await polled.next_poll()
    assert all(sources[name].confirmed >= confirmed[name] + 2 for name in sources)
    for name in ("registry", "headless"):
        assert sources[name].confirmed >= confirmed[name] + 4, "a HEAD and a GET each"
    assert {name: source.sent for name, source in sources.items()} == sent
    assert polled.envoyfilters() == before
    assert sources["headless"].methods == sources["registry"].methods == {"HEAD", "GET"}

    # All modules change.
    old = {name: source.sha256 for name, source in sources.items()}
    for name, source in sources.items():
        source.module = wat.header_filter(f"{name} two")
        assert source.sha256 != old[name]
    await polled.next_poll()
    await polled.until(lambda: all(polled.rolled_out(name) for name in sources))
    for name in sources:
        status = polled.server.status(name)
        assert status["phase"] == "Synced"
        # One entry for each source: no source has an old module of the same name.
        assert [one["sha256"] for one in status["history"]] == [sources[name].sha256]
    assert await polled.server.metric("autowasm_polls_total") >= 2 * len(sources)
