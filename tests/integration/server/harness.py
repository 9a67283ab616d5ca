"""A real blob server on loopback with a source that the test plays."""

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.limits import ServeLimits
from autowasm.net.pools import Pools
from autowasm.server.app import BlobServer
from autowasm.server.ondemand import Supplier
from autowasm.telemetry.metrics import Metrics

MODULE = b"\0asm\1\0\0\0" + bytes(range(256)) * 20


def sha256(data: bytes) -> Sha256Hex:
    return Sha256Hex(hashlib.sha256(data).hexdigest())


@dataclass
class PlayedSource:
    """`BlobSource`: knows `known`; `fill` raises `failures` one by one, then waits for `may_fill`, then calls `filler`."""

    known: set[str] = field(default_factory=set)
    failures: list[Exception] = field(default_factory=list)
    may_fill: asyncio.Event = field(default_factory=asyncio.Event)
    filler: Callable[[str], object] | None = None
    fills: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def learn(self, digest: str) -> None:
        self.known.add(digest)
        self.changed.set()

    def is_known(self, sha256: Sha256Hex) -> bool:
        return sha256 in self.known

    async def wait_known(self, sha256: Sha256Hex) -> None:
        while sha256 not in self.known:
            self.changed.clear()
            await self.changed.wait()

    async def fill(self, sha256: Sha256Hex) -> Supplier:
        self.fills += 1
        if self.failures:
            raise self.failures.pop(0)
        await self.may_fill.wait()
        if self.filler is not None:
            await self.filler(sha256)  # type: ignore[misc]
        return "origin"


@dataclass
class Serving:
    server: BlobServer
    store: BlobStore
    source: PlayedSource
    metrics: Metrics
    port: int

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, digest: str) -> str:
        return f"http://{self.host}/wasm/{digest}"

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    async def put(self, data: bytes) -> Sha256Hex:
        async with self.store.stage() as stage:
            await asyncio.to_thread(stage.path.write_bytes, data)
            await self.store.commit(stage, sha256(data))
        return sha256(data)

    async def connect(
        self, *, receive_buffer: int = 0
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """`receive_buffer`: bytes that the kernel takes for a client that does not read; 0: its default, which grows."""
        client = socket.socket()
        client.setblocking(False)
        try:
            if receive_buffer:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.port))
            return await asyncio.open_connection(sock=client)
        except BaseException:
            client.close()
            raise


@contextlib.asynccontextmanager
async def serving(
    directory: Path, *, limits: ServeLimits | None = None, instance: str = "them"
) -> AsyncIterator[Serving]:
    metrics = Metrics()
    with Pools() as pools:
        async with BlobStore(directory, pools=pools, metrics=metrics) as store:
            source = PlayedSource()
            server = BlobServer(
                store, source, limits=limits or ServeLimits(), metrics=metrics, instance=instance
            )
            port = await server.start("127.0.0.1:0")
            try:
                yield Serving(server, store, source, metrics, port)
            finally:
                await server.stop(0.0)


async def until(condition: Callable[[], bool], *, within: float = 60.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)
