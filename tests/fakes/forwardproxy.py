"""ForwardProxy: a real, small HTTP proxy: CONNECT tunnels and requests with an absolute URL.

It does not resolve names: for any requested host, the bytes go to `target`. So a test can use any name and check that
the proxy, not the client, resolves it.
"""

import asyncio
import contextlib
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.fakes.loopbackserver import LoopbackServer


@dataclass(slots=True)
class ForwardProxy(LoopbackServer):
    """Forwards everything to one place, or gives a fixed answer."""

    target: str
    """`HOST:PORT` to which every request is forwarded."""
    authorization: str | None = None
    """The required value of `Proxy-Authorization`."""
    refuses_with: int | None = None
    answer: bytes | None = None
    """Sent verbatim as the answer to CONNECT; empty: the connection is closed without an answer."""
    asked: list[str] = field(default_factory=list)
    """First lines, in order."""
    heads: list[bytes] = field(default_factory=list)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await self._pass_on(head, reader, writer)

    async def _pass_on(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        first = head.partition(b"\r\n")[0].decode()
        self.asked.append(first)
        self.heads.append(head)
        if self.authorization and f"proxy-authorization: {self.authorization}".lower() not in (
            head.decode().lower()
        ):
            writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
            return
        if self.refuses_with:
            writer.write(f"HTTP/1.1 {self.refuses_with} No\r\nContent-Length: 0\r\n\r\n".encode())
            return
        if self.answer is not None:
            writer.write(self.answer)
            if self.answer:
                await reader.read()
            return
        host, _, port = self.target.rpartition(":")
        onward, back = await asyncio.open_connection(host, int(port))
        method, url, version = first.split(" ")
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
        else:
            path = urlsplit(url)._replace(scheme="", netloc="").geturl()
            back.write(f"{method} {path} {version}".encode() + head[len(first) :])
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_copy(reader, back), name="there")
                tasks.create_task(_copy(onward, writer), name="back")
        finally:
            back.close()


async def _copy(source: asyncio.StreamReader, destination: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await source.read(65536):
            destination.write(chunk)
            await destination.drain()
        destination.write_eof()
