"""A port that hands all connections over to aiohttp, with tiny socket buffers."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from autowasm.blobs.files import Blob
from autowasm.digest import Sha256Hex
from autowasm.limits import ServeLimits
from autowasm.server.app import Connections, listening_socket
from autowasm.telemetry.metrics import Metrics

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class EmptyShelf:
    """Has nothing ready, so that every request goes over."""

    def ready(self, sha256: Sha256Hex) -> Blob | None:
        return None

    def served(self, sha256: Sha256Hex, address: str) -> None:
        raise AssertionError


@dataclass
class Port:
    connections: Connections
    number: int
    answers: list[tuple[str, int]] = field(default_factory=list)

    async def connect(
        self, *, limit: int = 1 << 16
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.number))
        return await asyncio.open_connection(sock=client, limit=limit)


@contextlib.asynccontextmanager
async def opened(handler: Handler, *, limits: ServeLimits | None = None) -> AsyncIterator[Port]:
    answers: list[tuple[str, int]] = []
    connections = Connections(
        handler,
        ready_blobs=EmptyShelf(),
        limits=limits or ServeLimits(),
        metrics=Metrics(),
        on_answer=lambda method, status: answers.append((method, status)),
    )
    listening = listening_socket("127.0.0.1:0", backlog=64)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # accepted sockets inherit it
    port: int = listening.getsockname()[1]
    connections.listen(listening)
    try:
        yield Port(connections, port, answers)
    finally:
        await connections.stop(grace=0)
