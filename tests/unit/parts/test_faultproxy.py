"""The proxy with faults on command: each fault has its effect, and is counted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.parts.faults.proxy import CutAfter, Delay, FaultProxy, Hang, Pass, Refuse

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echo_behind_proxy() -> AsyncIterator[FaultProxy]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        async with FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
            yield proxy
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def say(streams: Streams, text: bytes) -> bytes:
    reader, writer = streams
    writer.write(text)
    return await asyncio.wait_for(reader.readexactly(len(text)), 5)


async def test_passes() -> None:
    async with echo_behind_proxy() as proxy, connected(proxy) as streams:
        assert await say(streams, b"x" * 200_000) == b"x" * 200_000
        counters = proxy.counters
        assert (counters.connections, counters.to_server, counters.to_client) == (
            1,
            200_000,
            200_000,
        )


async def test_refuses_new_connections_only() -> None:
    async with echo_behind_proxy() as proxy, connected(proxy) as old:
        await say(old, b"a")
        proxy.mode = Refuse()
        async with connected(proxy) as (reader, _):
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 5)
        assert await say(old, b"b") == b"b"
        assert proxy.counters.refused == 1


async def test_hangs_and_loses_nothing() -> None:
    async with echo_behind_proxy() as proxy, connected(proxy) as streams:
        await say(streams, b"a")
        proxy.mode = Hang()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(say(streams, b"b"), 0.1)
        assert proxy.counters.hung == 1
        proxy.mode = Pass()
        assert await asyncio.wait_for(streams[0].readexactly(1), 5) == b"b"


@pytest.mark.parametrize("reset", [False, True])
async def test_cuts_after_so_many_bytes_and_then_passes(reset: bool) -> None:
    async with echo_behind_proxy() as proxy:
        async with connected(proxy) as streams:
            await say(streams, b"before")
            proxy.mode = CutAfter(10, reset=reset)
            assert await say(streams, b"x" * 10) == b"x" * 10
            streams[1].write(b"y")
            end = asyncio.wait_for(streams[0].read(), 5)
            if reset:
                with pytest.raises(ConnectionResetError):
                    await end
            else:
                assert await end == b""
        assert proxy.counters.cut == 1
        assert proxy.mode == Pass()
        async with connected(proxy) as streams:
            assert await say(streams, b"x" * 20) == b"x" * 20


async def test_cuts_several_times() -> None:
    async with echo_behind_proxy() as proxy:
        proxy.mode = CutAfter(0, times=2)
        for _ in range(2):
            async with connected(proxy) as (reader, writer):
                writer.write(b"x")
                assert await asyncio.wait_for(reader.read(), 5) == b""
        assert (proxy.counters.cut, proxy.mode) == (2, Pass())


async def test_delays() -> None:
    async with echo_behind_proxy() as proxy, connected(proxy) as streams:
        proxy.mode = Delay(0.05)
        started = asyncio.get_running_loop().time()
        await say(streams, b"a")
        assert asyncio.get_running_loop().time() - started >= 0.1
        assert proxy.counters.delayed >= 2


async def test_cuts_everything_now() -> None:
    async with echo_behind_proxy() as proxy, connected(proxy) as streams:
        await say(streams, b"a")
        proxy.cut_all()
        assert await asyncio.wait_for(streams[0].read(), 5) == b""


async def test_a_server_that_is_gone_closes_the_connection() -> None:
    async with FaultProxy("127.0.0.1", 1) as proxy, connected(proxy) as (reader, _):
        assert await asyncio.wait_for(reader.read(), 5) == b""
