"""A registry and object host of our own that can break any rule: raw sockets, no library that would correct it.

Not a fake of a registry: no test relies on it for the behaviour of a registry. Invariant: requests and read bytes are
counted, so a test knows that wasmer requested its attack.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.fakes.loopbackserver import LoopbackServer

Body = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""Writes the answer, including the status line."""


@dataclass(slots=True)
class Origin(LoopbackServer):
    """Answers by path. `requests` counts by path."""

    requests: Counter[str] = field(default_factory=Counter)
    _answers: dict[str, Body] = field(default_factory=dict)

    def serve(self, path: str, body: bytes, *, media_type: str = "application/octet-stream") -> str:
        """An honest answer with a hostile body; returns the URL."""

        async def answer(writer: asyncio.StreamWriter) -> None:
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode())
            for at in range(0, len(body), 1 << 20):
                writer.write(body[at : at + (1 << 20)])
                await writer.drain()

        return self.act(path, answer)

    def act(self, path: str, answer: Body) -> str:
        """Serve the output of `answer`; returns the URL."""
        self._answers[path] = answer
        return f"http://{self.host}{path}"

    def image(self, repository: str, manifest: bytes) -> str:
        """Every tag of `repository` is this manifest; returns a reference."""
        media_type = "application/vnd.oci.image.manifest.v1+json"
        self.serve(f"/v2/{repository}/manifests/v1", manifest, media_type=media_type)
        return f"{self.host}/{repository}:v1"

    def layer(self, repository: str, digest: object, body: bytes) -> None:
        """The content of `digest`; it need not match."""
        self.serve(f"/v2/{repository}/blobs/{digest}", body)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head.split(b" ", 2)[1].decode().partition("?")[0], writer)
        finally:
            writer.transport.abort()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        self.requests[path] += 1
        answer = self._answers.get(path)
        if answer is None:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        else:
            await answer(writer)
        await writer.drain()


def chunked(piece: bytes, *, pause: float = 0.0) -> Body:
    """The same chunk, endlessly."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        frame = b"%x\r\n%s\r\n" % (len(piece), piece)
        while True:
            writer.write(frame)
            await writer.drain()
            if pause:
                await asyncio.sleep(pause)

    return answer


async def endless_headers(writer: asyncio.StreamWriter) -> None:
    """Endless headers, and never a body."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    number = 0
    while True:
        writer.write(b"X-%d: %s\r\n" % (number, b"a" * 1000))
        number += 1
        await writer.drain()


def steady(rate: int, *, size: int) -> Body:
    """A body of `size` bytes at `rate` bytes a second, also on a machine that delays the pieces: a late one is larger."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        loop, sent = asyncio.get_running_loop(), 0
        begun = loop.time()
        while sent < size:
            due = min(size, int((loop.time() - begun + 0.25) * rate))
            writer.write(bytes(due - sent))
            sent = due
            await writer.drain()
            await asyncio.sleep(0.25)

    return answer
