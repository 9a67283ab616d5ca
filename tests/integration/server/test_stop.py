"""Stopping loses no request, and ends in time: a grace period is longer than the deadline of a test, if it is not to be used up."""

import asyncio
from pathlib import Path

import pytest

from autowasm.limits import MIB, ServeLimits
from tests.integration.server.harness import MODULE, serving, sha256, until
from tests.parts import wire


async def test_sends_in_flight_finish_and_idle_connections_close(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        digest = await server.put(b"s" * 20 * MIB)
        idle = await wire.Connection.open(server.host)
        await idle.request("GET", f"/wasm/{digest}")
        reader, writer = await server.connect()
        writer.write(f"GET /wasm/{digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await reader.readexactly(1000)
        stop = asyncio.create_task(server.server.stop(600))
        async with asyncio.timeout(60):
            assert await idle.reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await server.connect()
        assert not stop.done()
        rest = await reader.read()
        assert len(rest) > 20 * MIB - 1000
        async with asyncio.timeout(60):
            await stop
        for closing in (idle.writer, writer):
            closing.close()


async def test_a_request_that_just_connected_is_answered_with_connection_close(
    tmp_path: Path,
) -> None:
    # The silent connection is closed after this time; until then the others send their requests.
    async with serving(tmp_path, limits=ServeLimits(settle=4.0)) as server:
        digest = await server.put(MODULE)
        fresh = await wire.Connection.open(server.host)
        half = await wire.Connection.open(server.host)
        half.writer.write(f"GET /wasm/{digest} HTTP/1.1\r\n".encode())
        silent, silent_writer = await server.connect()
        stop = asyncio.create_task(server.server.stop(600))
        await asyncio.sleep(0.1)
        got = await fresh.request("GET", f"/wasm/{digest}")
        assert (got.body, got.headers["connection"]) == (MODULE, "close")
        half.writer.write(b"Host: a\r\n\r\n")
        assert (await half.reader.read()).endswith(MODULE)
        async with asyncio.timeout(60):
            assert await silent.read() == b""
            await stop
        for writer in (fresh.writer, half.writer, silent_writer):
            writer.close()


async def test_held_requests_are_served_while_there_is_time(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.source.learn(sha256(MODULE))
        requests = asyncio.create_task(wire.get(server.url(sha256(MODULE))))
        await until(lambda: server.metric("autowasm_blob_requests_held") == 1)
        stop = asyncio.create_task(server.server.stop(600))
        await asyncio.sleep(0.1)
        await server.put(MODULE)
        assert (await requests).body == MODULE
        async with asyncio.timeout(60):
            await stop


async def test_held_requests_get_an_answer_at_the_end(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=ServeLimits(held_known=600)) as server:
        server.source.learn(sha256(MODULE))
        requests = asyncio.create_task(wire.get(server.url(sha256(MODULE))))
        await until(lambda: server.metric("autowasm_blob_requests_held") == 1)
        async with asyncio.timeout(60):
            await server.server.stop(0.4)
        answer = await requests
        assert answer.status == 503
        assert b"stopping" in answer.body
        assert server.source.fills == 1


async def test_unfinished_downloads_are_cut_at_shutdown(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        digest = await server.put(b"s" * 30 * MIB)
        reader, writer = await server.connect()
        writer.write(f"GET /wasm/{digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await until(lambda: server.metric("autowasm_blob_sends") == 1)
        async with asyncio.timeout(60):
            await server.server.stop(0.3)
        assert server.metric("autowasm_blob_sends") == 0
        assert server.metric("autowasm_blob_sends_aborted_total", cause="stop") == 1
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(30 * MIB)
        writer.close()
        await server.server.stop(1.0)  # a second time: nothing to do


async def test_no_request_of_a_steady_load_is_lost(tmp_path: Path) -> None:
    """Clients use another replica after `Connection: close` or a refused connection, as Envoy does; no answer is cut."""
    async with serving(tmp_path, limits=ServeLimits(settle=600)) as server:
        digest = await server.put(MODULE * 100)
        cut = answered = 0

        async def client() -> None:
            nonlocal cut, answered
            while True:
                try:
                    connection = await wire.Connection.open(server.host)
                except OSError:
                    return
                try:
                    got = await connection.request("GET", f"/wasm/{digest}")
                except OSError:
                    cut += 1
                else:
                    answered += got.body == MODULE * 100
                finally:
                    await connection.close()

        clients = [asyncio.create_task(client()) for _ in range(20)]
        await until(lambda: answered > 100)
        await server.server.stop(600)
        await asyncio.gather(*clients)
        assert (cut, server.metric("autowasm_blob_sends_aborted_total", cause="stop")) == (0, 0)
