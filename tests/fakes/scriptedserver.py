"""ScriptedServer: an HTTP/1.1 server whose every byte a test decides.

Not a registry and not a correct server: the script decides the answers and their pace.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from tests.fakes.loopbackserver import LoopbackServer


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent. Header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Exchange:
    """One request and the means to answer it."""

    request: Request
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(
        self, status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        """A complete answer with its length; the connection stays open."""
        await self.head(status, {"Content-Length": str(len(body)), **(headers or {})})
        if self.request.method != "HEAD":
            self.writer.write(body)
        await self.writer.drain()

    async def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Status line and headers only."""
        lines = [f"HTTP/1.1 {status} Scripted", *(f"{key}: {headers[key]}" for key in headers)]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await self.writer.drain()

    async def drip(self, chunk: bytes, *, every: float) -> None:
        """`chunk`, repeatedly until the client disconnects."""
        while not self.reader.at_eof():
            self.writer.write(chunk)
            await self.writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await self.reader.read(1)

    async def hang(self) -> None:
        """Nothing until the client disconnects."""
        await self.reader.read()


Script = Callable[[Exchange], Awaitable[None]]


@dataclass(slots=True)
class ScriptedServer(LoopbackServer):
    """The return of a script ends the answer, but not the connection."""

    script: Script
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    gone: int = 0
    """Connections that ended."""

    async def all_gone(self, *, within: float = 5.0) -> None:
        """Wait until no client is connected."""
        async with asyncio.timeout(within):
            while self.gone < self.connections:
                await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (request := await _read_request(reader)) is not None:
                self.requests.append(request)
                await self.script(Exchange(request, reader, writer))
        finally:
            self.gone += 1


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body)
