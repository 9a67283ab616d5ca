"""A minimal HTTP/1.1 client, on raw streams: one request, one answer, nothing done implicitly.

Not for the product. Real client libraries retry, pool and follow redirects by themselves, and each of these has hidden
a failed request once; here a broken connection is always an error. Bodies up to 256 MiB, in memory.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

_BODY_LIMIT = 256 * 1024 * 1024
_HEAD_LIMIT = 256 * 1024


class WireError(OSError):
    """The connection ended early, or the answer is not HTTP/1.1."""


class NoAnswer(WireError):
    """The connection ended before the first byte of an answer."""


class Unfinished(WireError):
    """The connection ended within an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer. Header names are lower-case; the values of repeated headers are joined by `, `."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Connection:
    """One connection to a server, for requests one after the other while it is `usable`."""

    host: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    _closing: bool = field(default=False)

    @classmethod
    async def open(cls, host: str, *, tls: ssl.SSLContext | None = None) -> Self:
        """Connect to `host`, which is `address:port`. Raises OSError; ConnectionRefusedError: nothing listens there.

        A server that stops resets the connections that it has not accepted yet. The client sees that here or at its first read:
        NoAnswer in both cases.
        """
        address, _, port = host.rpartition(":")
        try:
            reader, writer = await asyncio.open_connection(
                address, int(port), ssl=tls, limit=_HEAD_LIMIT
            )
        except (ConnectionResetError, ConnectionAbortedError) as error:
            raise NoAnswer(f"reset by the server during the connect: {error}") from error
        return cls(host, reader, writer)

    @property
    def usable(self) -> bool:
        """Whether another request may be sent: the server has neither announced the end nor closed the connection."""
        return not (self._closing or self.reader.at_eof() or self.writer.is_closing())

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Send one request and read the whole answer. Raises WireError or another OSError.

        After an error or a cancellation the connection is not usable: close it.
        """
        self._closing, asked_before = True, self._closing
        if asked_before:
            raise WireError("the server has announced the end of this connection")
        lines = {"host": self.host, **(headers or {})}
        if body:
            lines["content-length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.writer.write(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)
        try:
            await self.writer.drain()
            first = await self.reader.readexactly(1)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            raise NoAnswer(f"closed by the server without an answer: {error}") from error
        try:
            answer = await self._read(method, first)
        except asyncio.IncompleteReadError as error:
            raise Unfinished(
                f"closed by the server after {len(error.partial)} bytes of a part of the answer"
            ) from error
        except (ValueError, asyncio.LimitOverrunError) as error:
            raise WireError(f"not an HTTP/1.1 answer: {error}") from error
        tokens = answer.headers.get("connection", "").lower()
        self._closing = "close" in tokens or not _framed(answer, method)
        return answer

    async def stream(
        self, method: str, target: str, *, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Send one request and yield the lines of a chunked answer with status 200 as they come; close afterwards.

        Raises WireError or another OSError; an answer that ends is no error.
        """
        self._closing = True
        lines = {"host": self.host, **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.writer.write(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1"))
        await self.writer.drain()
        rest = b""
        try:
            status, found = await self._read_head(b"")
            if status != 200 or "chunked" not in found.get("transfer-encoding", ""):
                raise WireError(f"status {status}, not a stream")
            while chunk := await self._read_chunk():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line
        except (ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise WireError(f"the stream broke: {error}") from error

    async def _read(self, method: str, begun: bytes) -> Answer:
        status, headers = await self._read_head(begun)
        bodiless = method == "HEAD" or status in (204, 304)
        body = b"" if bodiless else await self._read_body(headers)
        return Answer(status, headers, body)

    async def _read_head(self, begun: bytes) -> tuple[int, dict[str, str]]:
        while True:
            head = (begun + await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            begun = b""
            first, *lines = head[:-4].split("\r\n")
            version, status_text, *_ = f"{first} ".split(" ", 2)
            if not version.startswith("HTTP/1."):
                raise ValueError(first)
            status = int(status_text)
            if status >= 200:  # 100 Continue and other interim responses announce the answer
                break
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            name, value = name.strip().lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return status, headers

    async def _read_body(self, headers: Mapping[str, str]) -> bytes:
        if "chunked" in headers.get("transfer-encoding", ""):
            return await self._read_chunks()
        if (length := headers.get("content-length")) is not None:
            if int(length) > _BODY_LIMIT:
                raise ValueError(f"a body of {length} bytes")
            return await self.reader.readexactly(int(length))
        return await self.reader.read(_BODY_LIMIT)

    async def _read_chunks(self) -> bytes:
        chunks = bytearray()
        while chunk := await self._read_chunk():
            chunks += chunk
            if len(chunks) > _BODY_LIMIT:
                raise ValueError(f"a body of more than {_BODY_LIMIT} bytes")
        return bytes(chunks)

    async def _read_chunk(self) -> bytes:
        """The next chunk; empty at the end."""
        size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
        if size > _BODY_LIMIT:
            raise ValueError(f"a chunk of {size} bytes")
        if size == 0:
            while await self.reader.readuntil(b"\r\n") != b"\r\n":
                pass
            return b""
        chunk = await self.reader.readexactly(size)
        await self.reader.readexactly(2)
        return chunk

    async def close(self) -> None:
        """Close, without waiting for the other side to agree."""
        self.writer.transport.abort()
        with suppress(OSError):  # it may have broken before
            await self.writer.wait_closed()


def _framed(answer: Answer, method: str) -> bool:
    """Whether something other than the end of the connection marks the end of the answer."""
    return (
        method == "HEAD"
        or answer.status in (204, 304)
        or "content-length" in answer.headers
        or "transfer-encoding" in answer.headers
    )


def unverified_tls() -> ssl.SSLContext:
    """TLS to a server of our own on loopback; its certificate is not verified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    timeout: float = 10,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """One request on a connection of its own. Raises OSError, such as TimeoutError after `timeout` seconds.

    For an https URL without `tls` the certificate is not verified.
    """
    parts = urlsplit(url)
    context = (tls or unverified_tls()) if parts.scheme == "https" else None
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    async with asyncio.timeout(timeout):
        connection = await Connection.open(parts.netloc, tls=context)
        try:
            return await connection.request(method, target, headers=headers, body=body)
        finally:
            await connection.close()


async def get(url: str, *, headers: Mapping[str, str] | None = None, timeout: float = 10) -> Answer:
    """`request` with GET."""
    return await request("GET", url, headers=headers, timeout=timeout)
