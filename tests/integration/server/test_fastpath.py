"""Envoy's requests, byte for byte: the fast path without aiohttp, and the handover to aiohttp."""

import asyncio
import logging
import os
import socket
from pathlib import Path

import pytest
import structlog

from autowasm.digest import Sha256Hex
from autowasm.limits import MIB, ServeLimits
from tests.integration.server.harness import MODULE, Serving, serving, until


def plain(digest: str, *, more: str = "", method: str = "GET") -> bytes:
    return f"{method} /wasm/{digest} HTTP/1.1\r\nhost: wasmer:8081\r\n{more}\r\n".encode()


class Client:
    """Reads whole answers, one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def of(cls, server: Serving) -> "Client":
        return cls(*await server.connect())

    async def answer(self, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(30):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            count = int(fields.get("content-length", "0")) if has_body else 0
            return int(head[0].split(" ")[1]), fields, await self.reader.readexactly(count)

    async def send(
        self, request: bytes, *, has_body: bool = True
    ) -> tuple[int, dict[str, str], bytes]:
        self.writer.write(request)
        return await self.answer(has_body=has_body)

    async def rest(self) -> bytes:
        async with asyncio.timeout(30):
            return await self.reader.read()


async def ends(**clients: Client) -> list[str]:
    """The names of connections in the order in which the server closed them."""
    closed: list[str] = []

    async def end(name: str, client: Client) -> None:
        assert await client.rest() == b""
        closed.append(name)
        client.writer.close()

    await asyncio.gather(*(end(name, client) for name, client in clients.items()))
    return closed


async def opened(server: Serving, data: bytes) -> Sha256Hex:
    """Stored, and requested once, so that it is ready."""
    digest = await server.put(data)
    assert await server.store.open(digest)
    return digest


async def slow(server: Serving) -> socket.socket:
    """A client that takes little at a time."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", server.port))
    return client


async def test_fast_path_and_aiohttp_give_the_same_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        digest = await opened(server, MODULE)
        client = await Client.of(server)
        quick = await client.send(plain(digest))
        other = await client.send(plain(digest, more="x-unheard-of: 1\r\n"))
        assert quick[2] == MODULE
        assert {**quick[1], "date": ""} == {**other[1], "date": ""}
        assert (quick[0], quick[2]) == (other[0], other[2])
        assert server.metric("autowasm_blob_served_bytes_total") == 2 * len(MODULE)
        assert server.metric("autowasm_blob_responses_total", method="GET", status="200") == 2
        client.writer.close()


async def test_answers_are_in_the_log_when_it_shows_debug(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "autowasm.server")
    async with serving(tmp_path) as server:
        digest = await opened(server, MODULE)
        client = await Client.of(server)
        with structlog.testing.capture_logs() as events:
            await client.send(plain(digest))
            await client.send(plain(digest, method="HEAD"), has_body=False)
            await until(lambda: len(events) == 2)
        client.writer.close()
    for event, method in zip(events, ("GET", "HEAD"), strict=True):
        assert (event["event"], event["method"], event["path"], event["status"]) == (
            "answered",
            method,
            f"/wasm/{digest}",
            200,
        )
        assert event["client"] == "127.0.0.1"


async def test_a_request_that_is_not_plain_hands_its_connection_to_aiohttp(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        digest = await opened(server, MODULE)
        client = await Client.of(server)
        for _ in range(3):
            assert (await client.send(plain(digest)))[2] == MODULE
        assert (await client.send(plain(digest, method="HEAD"), has_body=False))[0] == 200
        part = await client.send(plain(digest, more="range: bytes=2-4\r\n"))
        assert (part[0], part[2]) == (206, MODULE[2:5])
        assert (await client.send(plain(digest)))[2] == MODULE
        last = await client.send(plain(digest, more="connection: close\r\n"))
        assert (last[0], last[2], await client.rest()) == (200, MODULE, b"")
        client.writer.close()


@pytest.mark.parametrize("cut", [1, 10, 60, -4, -2, -1])
async def test_a_request_may_come_in_two_parts(tmp_path: Path, cut: int) -> None:
    async with serving(tmp_path) as server:
        digest = await opened(server, MODULE)
        client = await Client.of(server)
        request = plain(digest)
        client.writer.write(request[:cut])
        await client.writer.drain()
        await asyncio.sleep(0.02)
        assert (await client.send(request[cut:]))[2] == MODULE
        assert (await client.send(request))[2] == MODULE
        client.writer.close()


async def test_partial_request_does_not_extend_the_deadline_of_its_connection(
    tmp_path: Path,
) -> None:
    limits = ServeLimits(request_timeout=2.0)
    async with serving(tmp_path, limits=limits) as server:
        digest = await opened(server, MODULE)
        client = await Client.of(server)
        await asyncio.sleep(1.0)
        later = await Client.of(server)
        await asyncio.sleep(0.05)
        client.writer.write(plain(digest)[:30])
        assert await ends(half=client, silent=later) == ["half", "silent"]


async def test_requests_that_come_while_a_send_waits_are_answered_after_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        large = await opened(server, os.urandom(1000) * 8000)
        small = await opened(server, MODULE)
        client = await Client.of(server)
        client.writer.write(plain(large))
        await until(lambda: server.metric("autowasm_blob_sends") == 1)
        client.writer.write(plain(small) + plain(large))
        sizes = [len((await client.answer())[2]) for _ in range(3)]
        assert sizes == [8_000_000, len(MODULE), 8_000_000]
        client.writer.close()


async def test_a_client_that_shuts_down_its_sending_side_gets_all_of_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        content = os.urandom(1000) * 8000
        digest = await opened(server, content)
        client = await Client.of(server)
        client.writer.write(plain(digest))
        client.writer.write_eof()
        assert (await client.answer())[2] == content
        assert await client.rest() == b""
        client.writer.close()


async def test_a_file_that_is_written_to_is_never_sent_whole(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        content = bytes(8 * MIB)
        digest = await server.put(content)
        assert await server.store.open(digest)
        client = await slow(server)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, plain(digest))
        await until(lambda: server.metric("autowasm_blob_sends") == 1)

        def damage() -> None:
            with server.store.path(digest).open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"x")

        await asyncio.to_thread(damage)
        received = 0
        with pytest.raises(ConnectionResetError):
            while True:
                async with asyncio.timeout(30):
                    data = await loop.sock_recv(client, 1 << 16)
                assert data
                received += len(data)
        assert received < len(content)
        assert server.metric("autowasm_blob_sends_aborted_total", cause="storage") == 1
        assert server.metric("autowasm_blob_sends") == 0
        client.close()


async def test_sends_under_way_are_finished_at_a_stop_and_cut_after_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        content = os.urandom(1000) * 8000
        digest = await opened(server, content)
        reads = await Client.of(server)
        sleeps = await slow(server)
        reads.writer.write(plain(digest))
        await asyncio.get_running_loop().sock_sendall(sleeps, plain(digest))
        await until(lambda: server.metric("autowasm_blob_sends") == 2)
        stopping = asyncio.create_task(server.server.stop(6.0))
        assert (await reads.answer())[2] == content
        assert await reads.rest() == b""
        await stopping
        assert server.metric("autowasm_blob_sends_aborted_total", cause="stop") == 1
        assert server.metric("autowasm_blob_sends") == 0
        sleeps.close()
        reads.writer.close()


async def test_idle_connections_are_closed_at_a_stop(tmp_path: Path) -> None:
    # The grace of a connection that was just made is longer than a test may take.
    async with serving(tmp_path, limits=ServeLimits(settle=600)) as server:
        digest = await opened(server, MODULE)
        client = await Client.of(server)
        await client.send(plain(digest))
        await server.server.stop(600)
        assert await client.rest() == b""
        client.writer.close()


async def test_connections_that_are_not_used_are_closed(tmp_path: Path) -> None:
    limits = ServeLimits(request_timeout=3.0, keepalive_timeout=4.0)
    async with serving(tmp_path, limits=limits) as server:
        digest = await opened(server, MODULE)
        silent, kept = await Client.of(server), await Client.of(server)
        loop = asyncio.get_running_loop()
        for _ in range(3):
            await asyncio.sleep(0.1)
            begun = loop.time()
            await kept.send(plain(digest))
        assert await ends(silent=silent, kept=kept) == ["silent", "kept"]
        assert loop.time() - begun > 3.9
