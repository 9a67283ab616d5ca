"""ObjectSession: deadlines, rates and sizes."""

import asyncio
import time
from dataclasses import replace

import pytest

from autowasm.errors import (
    ContentRejected,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
)
from autowasm.limits import Limits
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.unit.net.objectsessions import LIMITS, failure, opened, read

QUICK = replace(LIMITS, answer_timeout=0.5, minimum_rate_after=0.4)
"""The others are longer than a test may take."""


async def test_no_answer_ends_long_before_the_fetch_would() -> None:
    async with ScriptedServer(Exchange.hang) as server, opened(limits=QUICK) as session:
        error = await failure(session, f"{server.url}/x?secret")
        await server.all_gone()
    assert error.reason == "Timeout"


async def test_an_answer_header_that_drips_ends_in_time() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        await exchange.drip(b"x", every=0.02)

    async with ScriptedServer(script) as server, opened(limits=QUICK) as session:
        assert (await failure(session, server.url)).reason == "Timeout"
        await server.all_gone()


@pytest.mark.parametrize("every", [0.02, 60.0])
async def test_a_body_that_drips_or_stops_is_cut(every: float) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Length": "100000"})
        await exchange.drip(b"x", every=every)

    async with ScriptedServer(script) as server, opened(limits=QUICK) as session:
        began = time.monotonic()
        error = await failure(session, f"{server.url}/x?secret")
        assert time.monotonic() - began > 0.35
        await server.all_gone()
    assert error.reason == "TooSlow"


async def test_the_callers_own_slowness_is_not_the_servers() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(body=b"x" * 200_000)

    limits, total = replace(LIMITS, minimum_rate_after=0.4), 0
    async with (
        ScriptedServer(script) as server,
        opened(limits=limits) as session,
        session.stream_get(server.url) as stream,
    ):
        async for chunk in stream:
            if not total:
                await asyncio.sleep(limits.minimum_rate_after * 1.5)
            total += len(chunk)
    assert total == 200_000


async def test_the_whole_fetch_has_a_deadline() -> None:
    limits = Limits(fetch_timeout=0.3, minimum_rate=1, minimum_rate_after=10)

    async def script(exchange: Exchange) -> None:
        await exchange.head(200, {})
        await exchange.drip(b"x" * 1000, every=0.01)

    async with ScriptedServer(script) as server, opened(limits=limits) as session:
        error = await failure(session, f"{server.url}/x?secret")
        await server.all_gone()
    assert (error.reason, "0.3 s" in str(error)) == ("Timeout", True)


async def test_an_endless_body_is_cut_at_the_limit() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(200, {"Connection": "close"})
        await exchange.drip(b"x" * 65536, every=0)

    async with ScriptedServer(script) as server, opened() as session:
        error = await failure(session, f"{server.url}/x?secret")
        await server.all_gone()
    assert isinstance(error, ContentRejected)
    assert error.reason == "TooLarge"


async def test_an_announced_size_beyond_the_limit_is_not_even_read() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Length": str(LIMITS.layer_bytes + 1)})
        await exchange.hang()

    async with ScriptedServer(script) as server, opened() as session:
        assert (await failure(session, server.url)).reason == "TooLarge"


async def test_a_body_cut_short_is_noticed() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Length": "1000"})
        exchange.writer.write(b"x" * 10)
        exchange.writer.close()

    async with ScriptedServer(script) as server, opened() as session:
        error = await failure(session, f"{server.url}/x?secret")
    assert (type(error), error.reason) == (SourceUnavailable, "ObjectUnavailable")


async def test_an_endless_error_page_is_not_read() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(404, {})
        await exchange.drip(b"x" * 65536, every=0)

    async with ScriptedServer(script) as server, opened() as session:
        assert isinstance(await failure(session, server.url), SourceNotFound)
        await server.all_gone()


async def test_cancelling_a_stream_closes_its_connection() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(200, {})
        await exchange.drip(b"x" * 1000, every=0.01)

    async with ScriptedServer(script) as server, opened() as session:
        task = asyncio.create_task(read(session, server.url), name="read")
        async with asyncio.timeout(30):
            while not server.requests:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.all_gone()


async def test_an_error_body_that_drips_delays_the_status_by_its_timeout_only() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(403, {"Content-Length": "1000"})
        await exchange.drip(b"x", every=0.05)

    limits = replace(LIMITS, error_body_timeout=0.3)
    async with ScriptedServer(script) as server, opened(limits=limits) as session:
        error = await failure(session, f"{server.url}/m.wasm")
        await server.all_gone()
    assert isinstance(error, SourceDenied)
