"""An HBONE client, like the ztunnel of an ambient workload: HTTP/2 CONNECT with a mesh certificate, then bytes through the tunnel.

Independent of Envoy and of Istio: h2 on asyncio. One stream per connection. Source: istio.io/docs/ambient/architecture/hbone.
"""

import asyncio
import http.client
import io
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.events

from tests.parts import wire

PORT = 15008
_SECONDS = 10


@dataclass(slots=True)
class Tunnel:
    """An open stream. `status` and `headers` are the answer to the CONNECT (lower-case names)."""

    status: int
    headers: dict[str, str]
    _connection: h2.connection.H2Connection
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    _stream: int

    async def get(self, path: str = "/", *, host: str = "details") -> wire.Answer:
        """One HTTP/1.1 request through the tunnel, and the whole answer. Raises OSError (also TimeoutError) or HTTPException."""
        request = f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
        self._connection.send_data(self._stream, request.encode())
        self._writer.write(self._connection.data_to_send())
        async with asyncio.timeout(_SECONDS):
            await self._writer.drain()
            return _answer(await self._read_to_end())

    async def _read_to_end(self) -> bytes:
        received = bytearray()
        while data := await self._reader.read(64 * 1024):
            for event in self._connection.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    received += event.data or b""
                    self._connection.acknowledge_received_data(
                        event.flow_controlled_length or 0, self._stream
                    )
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    return bytes(received)
            self._writer.write(self._connection.data_to_send())
        return bytes(received)


@asynccontextmanager
async def tunnel(
    address: str, *, target: str, certificates: ssl.SSLContext
) -> AsyncIterator[Tunnel]:
    """CONNECT to `target` (`address:port`) through the proxy at `address`, port 15008. Raises OSError or TimeoutError.

    `certificates` is a workload's context (`Agent.client`); its ALPN protocol is set to HTTP/2.
    """
    certificates.set_alpn_protocols(["h2"])
    async with asyncio.timeout(_SECONDS):
        reader, writer = await asyncio.open_connection(address, PORT, ssl=certificates)
    try:
        async with asyncio.timeout(_SECONDS):
            opened = await _connect(reader, writer, target)
        yield opened
    finally:
        writer.close()


async def _connect(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str
) -> Tunnel:
    config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
    connection = h2.connection.H2Connection(config=config)
    connection.initiate_connection()
    stream = connection.get_next_available_stream_id()
    connection.send_headers(stream, [(":method", "CONNECT"), (":authority", target)])
    writer.write(connection.data_to_send())
    while data := await reader.read(64 * 1024):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                headers = {str(name): str(value) for name, value in event.headers}
                writer.write(connection.data_to_send())
                status = int(headers.pop(":status"))
                return Tunnel(status, headers, connection, reader, writer, stream)
            if isinstance(event, h2.events.StreamReset):
                raise wire.NoAnswer(f"the stream of the CONNECT was reset: {event.error_code}")
        writer.write(connection.data_to_send())
    raise wire.NoAnswer("closed by the server without an answer to the CONNECT")


def _answer(received: bytes) -> wire.Answer:
    """Parsed by the standard library's client; the values of repeated headers are joined by `, `."""
    response = http.client.HTTPResponse(_Received(received))  # type: ignore[arg-type]
    response.begin()
    headers: dict[str, str] = {}
    for name, value in response.getheaders():
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return wire.Answer(response.status, headers, response.read())


class _Received:
    """The part of a socket that an HTTPResponse uses."""

    def __init__(self, received: bytes) -> None:
        self._received = received

    def makefile(self, _mode: str) -> io.BytesIO:
        """All that was received."""
        return io.BytesIO(self._received)
