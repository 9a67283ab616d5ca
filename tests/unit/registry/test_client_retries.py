"""The registry client: deadlines, retries and connections."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autowasm.errors import (
    SourceUnavailable,
)
from autowasm.reference import ImageReference
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.unit.registry.clients import (
    LAYER,
    LIMITS,
    FakeRegistry,
    first_layer,
    scripted_registry,
)

QUICK = replace(LIMITS, answer_timeout=0.5, minimum_rate_after=0.4)
"""The others are longer than a test may take."""


@pytest.mark.parametrize("every", [0.02, 60.0])
async def test_a_layer_that_drips_or_stops_is_cut_and_its_thread_is_free(
    every: float, tmp_path: Path
) -> None:
    async def drip(exchange: Exchange) -> bool:
        if "/blobs/" not in exchange.request.target:
            return False
        await exchange.head(200, {"Content-Length": str(len(LAYER))})
        await exchange.drip(b"x", every=every)
        return True

    async with scripted_registry(FakeRegistry(before=drip), limits=QUICK) as scripted:
        began = time.monotonic()
        error = await scripted.download_fails(tmp_path / "layer")
        assert time.monotonic() - began > 0.35
        await scripted.assert_threads_are_free()
        await scripted.server.all_gone()
    assert (type(error), error.reason) == (SourceUnavailable, "TooSlow")


async def test_a_silent_registry_is_given_up_in_time_and_its_thread_is_free() -> None:
    async with scripted_registry(Exchange.hang, limits=QUICK) as scripted:
        error = await scripted.fails()
        await scripted.assert_threads_are_free()
        await scripted.server.all_gone()
    assert (type(error), error.reason) == (SourceUnavailable, "Timeout")


async def test_an_answer_header_that_drips_is_given_up_in_time() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        await exchange.drip(b"x", every=0.02)

    async with scripted_registry(script, limits=QUICK) as scripted:
        assert (await scripted.fails()).reason == "Timeout"
        await scripted.assert_threads_are_free()


async def test_the_whole_fetch_has_one_deadline() -> None:
    async def later(exchange: Exchange) -> None:
        await asyncio.sleep(0.2)
        await exchange.send(503)

    limits = replace(LIMITS, fetch_timeout=0.5, attempts=10_000)
    async with scripted_registry(later, limits=limits) as scripted:
        error = await scripted.fails()
    assert isinstance(error, SourceUnavailable)


async def test_cancelling_frees_the_thread_and_the_connection() -> None:
    async with scripted_registry(Exchange.hang) as scripted:
        task = asyncio.create_task(scripted.resolve(), name="resolve")
        async with asyncio.timeout(30):
            while not scripted.server.requests:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await scripted.assert_threads_are_free()
        await scripted.server.all_gone()


async def test_later_answers_are_tried_again() -> None:
    statuses = [503, 429]

    async def later(exchange: Exchange) -> bool:
        if not statuses:
            return False
        await exchange.send(statuses.pop(), headers={"Retry-After": "0"})
        return True

    async with scripted_registry(FakeRegistry(before=later)) as scripted:
        assert first_layer(await scripted.resolve()).size == len(LAYER)
    assert len(scripted.server.requests) == 3


async def test_tries_are_bounded() -> None:
    async def later(exchange: Exchange) -> None:
        await exchange.send(503)

    async with scripted_registry(later) as scripted:
        error = await scripted.fails()
    assert (type(error), error.reason) == (SourceUnavailable, "RegistryUnavailable")
    assert len(scripted.server.requests) == LIMITS.attempts


async def test_a_long_retry_after_is_left_to_the_caller() -> None:
    async def later(exchange: Exchange) -> None:
        await exchange.send(429, headers={"Retry-After": "120"})

    async with scripted_registry(later) as scripted:
        error = await scripted.fails()
    assert isinstance(error, SourceUnavailable)
    assert error.retry_after == 120
    assert len(scripted.server.requests) == 1


async def test_a_broken_connection_is_tried_again(tmp_path: Path) -> None:
    broken = [True]

    async def break_once(exchange: Exchange) -> bool:
        if "/blobs/" not in exchange.request.target or not broken:
            return False
        broken.clear()
        await exchange.head(200, {"Content-Length": str(len(LAYER))})
        exchange.writer.write(LAYER[:1000])
        exchange.writer.close()
        return True

    async with scripted_registry(FakeRegistry(before=break_once)) as scripted:
        layer = first_layer(await scripted.resolve())
        target = tmp_path / "layer"
        await scripted.client.download(scripted.reference(), layer, target, credential=None)
        assert await asyncio.to_thread(target.read_bytes) == LAYER


async def test_nothing_listens() -> None:
    async with scripted_registry(FakeRegistry()) as scripted:
        async with ScriptedServer(Exchange.hang) as other:
            host = other.host
        with pytest.raises(SourceUnavailable, match="refused") as caught:
            await scripted.client.resolve(ImageReference.parse(f"{host}/a:b"), credential=None)
    assert caught.value.reason == "RegistryUnavailable"


async def test_a_name_that_does_not_exist() -> None:
    async with scripted_registry(FakeRegistry(), limits=replace(LIMITS, attempts=1)) as scripted:
        reference = ImageReference.parse("does-not-exist.invalid/a:b")
        with pytest.raises(SourceUnavailable) as caught:
            await scripted.client.resolve(reference, credential=None)
    assert caught.value.reason in ("RegistryUnavailable", "Timeout")


async def test_a_closed_client_keeps_no_connection() -> None:
    async with scripted_registry(FakeRegistry()) as scripted:
        await scripted.resolve()
        await scripted.client.close()
        await scripted.server.all_gone()


async def test_idle_connections_are_bounded() -> None:
    async with scripted_registry(
        FakeRegistry(), limits=replace(LIMITS, idle_registries=2)
    ) as scripted:
        for number in range(5):
            await scripted.resolve(f"team/filter{number}:v1")
        async with asyncio.timeout(30):
            while scripted.server.connections - scripted.server.gone > 2:
                await asyncio.sleep(0.01)
