"""Whether a port of this machine expects TLS, detected with one request in plain HTTP."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from autowasm.net.tls import speaks_tls
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.fakes.tlsserver import TlsServer
from tests.parts import ports
from tests.parts.certificates import Authority


def context(folder: Path) -> ssl.SSLContext:
    files = Authority().issue(folder)
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(files.certificate, files.key)
    return made


async def ok(exchange: Exchange) -> None:
    await exchange.send(200)


async def test_tls_and_plain_http_are_distinguished(tmp_path: Path) -> None:
    async with ScriptedServer(ok, tls=context(tmp_path)) as server:
        assert await speaks_tls(server.host, timeout=5)
    async with ScriptedServer(ok) as server:
        assert not await speaks_tls(server.host, timeout=5)
        assert server.requests[0].target == "/v2/"
        assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_server_that_wants_a_client_certificate_has_tls(
    tmp_path: Path, newest: ssl.TLSVersion
) -> None:
    made = context(tmp_path)
    made.maximum_version = newest
    made.verify_mode = ssl.CERT_REQUIRED
    with TlsServer(made) as server:
        assert await speaks_tls(server.host, timeout=5)


async def test_a_server_of_another_protocol_has_no_tls() -> None:
    with TlsServer(None) as server:
        assert not await speaks_tls(server.host, timeout=5)


@pytest.mark.parametrize(
    ("status", "body", "tls"),
    [
        (400, b"Client sent an HTTP request to an HTTPS server.\n", True),
        (400, b"<title>400 The plain HTTP request was sent to HTTPS port</title>", True),
        (400, b"Bad request", False),
        (401, b"Client sent an HTTP request to an HTTPS server.\n", False),
        (500, b"", False),
    ],
)
async def test_the_sentences_of_servers_with_tls_are_known(
    status: int, body: bytes, tls: bool
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(status, body)
        exchange.writer.close()

    async with ScriptedServer(script) as server:
        assert await speaks_tls(server.host, timeout=5) is tls


async def test_a_server_that_says_nothing_or_is_not_there_is_none_with_tls() -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.hang()

    async def reset(exchange: Exchange) -> None:
        exchange.writer.transport.abort()

    async with ScriptedServer(silent) as server:
        assert not await speaks_tls(server.host, timeout=0.2)
    async with ScriptedServer(reset) as server:
        assert not await speaks_tls(server.host, timeout=2)
    assert not await speaks_tls(f"127.0.0.1:{ports.free_port()}", timeout=2)


@asynccontextmanager
async def answering(*packets: bytes, reset: bool = False) -> AsyncIterator[str]:
    """A server that sends these packets, each with a pause, and ends the connection."""

    writers: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read(1024)
        for packet in packets:
            writer.write(packet)
            await asyncio.sleep(0.05)
        if reset:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for writer in writers:
        with suppress(OSError):
            await writer.wait_closed()


async def test_an_alert_of_tls_is_tls() -> None:
    async with answering(b"\x15\x03\x01\x00\x02\x02\x46") as host:
        assert await speaks_tls(host, timeout=5)


async def test_the_sentence_of_a_server_with_tls_may_come_in_a_packet_of_its_own() -> None:
    head = b"HTTP/1.0 400 Bad Request\r\n\r\n"
    async with answering(head, b"Client sent an HTTP request to an HTTPS server.\n") as host:
        assert await speaks_tls(host, timeout=5)


async def test_a_server_that_resets_each_connection_has_no_tls() -> None:
    async with answering(reset=True) as host:
        assert not await speaks_tls(host, timeout=5)
