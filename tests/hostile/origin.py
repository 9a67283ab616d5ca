"""A registry and object host of our own that does whatever it likes: raw sockets, no library that would mend it.

Not a fake of a registry: no test learns from it how a registry behaves. Invariant: each request is counted, so a test knows
that its attack was asked for, and how many bytes of it were taken.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

Body = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""Writes the answer, from its status line on."""


class Origin:
    """Answers by path. `asked` and `sent` (bytes taken by the other side's socket) by path."""

    def __init__(self) -> None:
        self.host = ""
        self.asked: Counter[str] = Counter()
        self._answers: dict[str, Body] = {}

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
        """Whatever `answer` writes; returns the URL."""
        self._answers[path] = answer
        return f"http://{self.host}{path}"

    def image(self, repository: str, manifest: bytes) -> str:
        """Every tag of `repository` is this manifest; returns a reference."""
        media_type = "application/vnd.oci.image.manifest.v1+json"
        self.serve(f"/v2/{repository}/manifests/v1", manifest, media_type=media_type)
        return f"{self.host}/{repository}:v1"

    def layer(self, repository: str, digest: object, body: bytes) -> None:
        """What is under `digest`, true or not."""
        self.serve(f"/v2/{repository}/blobs/{digest}", body)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broken = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
        try:
            with contextlib.suppress(*broken):
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    await self._answer(head.split(b" ", 2)[1].decode().partition("?")[0], writer)
        finally:
            writer.transport.abort()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        self.asked[path] += 1
        answer = self._answers.get(path)
        if answer is None:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        else:
            await answer(writer)
        await writer.drain()


@contextlib.asynccontextmanager
async def origin() -> AsyncIterator[Origin]:
    """One that listens on a port of the loopback until the context ends."""
    made = Origin()
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(made._connected(reader, writer), name="hostile answer")
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    made.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close their sockets


def chunked(piece: bytes, *, pause: float = 0.0) -> Body:
    """The same chunk for ever."""

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
    """Header after header, and never a body."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    number = 0
    while True:
        writer.write(b"X-%d: %s\r\n" % (number, b"a" * 1000))
        number += 1
        await writer.drain()


def steady(rate: int, *, size: int) -> Body:
    """A body of `size` bytes at `rate` bytes a second."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(0, size, rate // 4):
            writer.write(bytes(rate // 4))
            await writer.drain()
            await asyncio.sleep(0.25)

    return answer
