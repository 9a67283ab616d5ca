"""Blobs over connections of aiohttp with full buffers or slow clients."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from blockbuster import BlockBuster

from autowasm.blobs.files import Blob
from autowasm.digest import Sha256Hex, Signature
from autowasm.limits import ServeLimits
from autowasm.server.aiohttpconnection import Connection
from autowasm.server.blobs import BlobResponse, SendScheduler
from autowasm.server.ranges import Decision
from autowasm.telemetry.metrics import Metrics
from tests.unit.server.ports import REQUEST, Handler, opened

CONTENT = b"b" * 300_000
LONG_HEAD = {"x-long": "h" * 100_000}
"""So long that it alone fills the buffers."""


@pytest.fixture(autouse=True)
def _sendfile_on_the_loop(blockbuster: BlockBuster) -> Iterator[None]:
    """From the page cache, to a socket that does not block (ADR 1)."""
    sendfile = blockbuster.functions["os.sendfile"]
    before = sendfile.can_block_functions[:]
    sendfile.can_block_in("autowasm/server/blobs.py", "_copy")
    yield
    sendfile.can_block_functions[:] = before


@pytest.fixture
def blob(tmp_path: Path) -> Iterator[Blob]:
    (tmp_path / "blob").write_bytes(CONTENT)
    descriptor = os.open(tmp_path / "blob", os.O_RDONLY)
    yield Blob(Sha256Hex("b" * 64), descriptor, Signature.of(descriptor))
    os.close(descriptor)


def answering(
    blob: Blob, metrics: Metrics, limits: ServeLimits, headers: dict[str, str] | None = None
) -> Handler:
    pacing = SendScheduler(copies=8)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        return BlobResponse(
            blob,
            Decision(200, 0, blob.size),
            connection=connection,
            headers={"content-length": str(blob.size), **(headers or {})},
            limits=limits,
            metrics=metrics,
            pacing=pacing,
        )

    return answer


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


async def until_sending(metrics: Metrics) -> None:
    while not sample(metrics, "autowasm_blob_sends"):
        await asyncio.sleep(0)


async def test_blob_comes_behind_a_head_that_had_to_wait(blob: Blob) -> None:
    metrics, limits = Metrics(), ServeLimits()
    async with (
        opened(answering(blob, metrics, limits, LONG_HEAD), limits=limits) as port,
        asyncio.timeout(60),
    ):
        reader, writer = await port.connect(limit=1 << 20)
        writer.transport.pause_reading()
        writer.write(REQUEST * 2)
        await until_sending(metrics)
        assert sample(metrics, "autowasm_blob_served_bytes_total") == 0
        writer.transport.resume_reading()
        for _ in range(2):
            assert LONG_HEAD["x-long"].encode() in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(CONTENT)) == CONTENT
        writer.close()
        assert sample(metrics, "autowasm_blob_served_bytes_total") == 2 * len(CONTENT)


async def test_client_that_does_not_even_take_the_head_is_cut_at_the_deadline(blob: Blob) -> None:
    metrics, limits = Metrics(), ServeLimits(send_base=0.2)
    async with (
        opened(answering(blob, metrics, limits, LONG_HEAD), limits=limits) as port,
        asyncio.timeout(60),
    ):
        reader, writer = await port.connect(limit=1 << 20)
        writer.transport.pause_reading()
        writer.write(REQUEST)
        await until_sending(metrics)
        while sample(metrics, "autowasm_blob_sends"):
            await asyncio.sleep(0.01)
        writer.transport.resume_reading()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    assert sample(metrics, "autowasm_blob_sends_aborted_total", cause="deadline") == 1
    assert sample(metrics, "autowasm_blob_served_bytes_total") == 0


async def test_client_that_leaves_before_it_has_the_head_is_counted(blob: Blob) -> None:
    metrics, limits = Metrics(), ServeLimits()
    async with (
        opened(answering(blob, metrics, limits, LONG_HEAD), limits=limits) as port,
        asyncio.timeout(60),
    ):
        _, writer = await port.connect()
        writer.transport.pause_reading()
        writer.write(REQUEST)
        await until_sending(metrics)
        writer.transport.abort()
        while sample(metrics, "autowasm_blob_sends"):
            await asyncio.sleep(0.01)
    assert sample(metrics, "autowasm_blob_sends_aborted_total", cause="client") == 1


async def test_send_that_takes_too_long_is_cut_between_two_chunks(blob: Blob) -> None:
    """The deadline is over after the first chunk, which the kernel takes at once."""
    metrics, limits = Metrics(), ServeLimits(send_base=0, send_rate=1 << 60, sendfile_chunk=100)
    async with (
        opened(answering(blob, metrics, limits), limits=limits) as port,
        asyncio.timeout(60),
    ):
        reader, writer = await port.connect()
        writer.write(REQUEST)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    assert sample(metrics, "autowasm_blob_sends_aborted_total", cause="deadline") == 1
    assert sample(metrics, "autowasm_blob_served_bytes_total") == 100
