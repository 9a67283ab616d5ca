"""A slow link: what it delays, what it shares, and that nothing is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.parts.faults.link import Link

SIZE = 200_000


@asynccontextmanager
async def source_behind(link: Link) -> AsyncIterator[None]:
    """A server that answers each line with `SIZE` bytes and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"x" * SIZE)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, link:
        link.lead_to(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        yield


async def download(link: Link) -> tuple[float, bytes]:
    """Seconds by the loop's clock, and what arrived."""
    begun = asyncio.get_running_loop().time()
    reader, writer = await asyncio.open_connection(link.address, link.port)
    writer.write(b"\n")
    received = await asyncio.wait_for(reader.read(-1), 30)
    writer.close()
    return asyncio.get_running_loop().time() - begun, received


async def test_everything_arrives_in_order() -> None:
    link = Link("127.0.0.1", round_trip=0.02, rate=5e6)
    async with source_behind(link):
        _, received = await download(link)
    assert received == b"x" * SIZE
    assert link.connections == 1


async def test_connection_and_request_each_take_a_round_trip() -> None:
    link = Link("127.0.0.1", round_trip=0.1)
    async with source_behind(link):
        took, _ = await download(link)
    assert took >= 0.2  # at least; how much more depends on the machine


async def test_rate_is_shared_by_all_connections() -> None:
    link = Link("127.0.0.1", rate=1e6)
    async with source_behind(link):
        begun = asyncio.get_running_loop().time()
        await asyncio.gather(download(link), download(link))
        took = asyncio.get_running_loop().time() - begun
    assert took >= 2 * SIZE / 1e6


def test_chunks_of_several_connections_follow_each_other_on_the_link() -> None:
    link = Link("127.0.0.1", rate=1000.0)
    first, second = link._leave(500), link._leave(500)
    assert second - first == 0.5


async def test_sender_hears_that_its_receiver_went() -> None:
    heard = asyncio.Event()

    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(b"x" * SIZE)
                await writer.drain()
        except OSError:
            heard.set()

    server = await asyncio.start_server(send, "127.0.0.1", 0)
    async with server, Link("127.0.0.1", round_trip=0.01) as link:
        link.lead_to(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        reader, writer = await asyncio.open_connection(link.address, link.port)
        await reader.readexactly(1)
        writer.transport.abort()
        await asyncio.wait_for(heard.wait(), 30)


async def test_receiver_may_reset_its_connection_before_the_end_has_travelled() -> None:
    link = Link("127.0.0.1", round_trip=0.2)
    async with source_behind(link):
        _, writer = await asyncio.open_connection(link.address, link.port)
        writer.write(b"\n")
        await writer.drain()
        writer.transport.abort()
        tasks = list(link._tasks)
        await asyncio.wait_for(asyncio.gather(*tasks), 30)


async def test_closing_link_ends_its_connections() -> None:
    link = Link("127.0.0.1", rate=1.0)
    async with source_behind(link):
        reader, writer = await asyncio.open_connection(link.address, link.port)
        writer.write(b"\n")
        await writer.drain()
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(-1), 30) == b""
    writer.close()
