"""Connections that were handed over to aiohttp: the responses after errors."""

import asyncio

import pytest
import structlog
from aiohttp import web

from autowasm.limits import ServeLimits
from autowasm.server.requestlog import text_answer
from tests.unit.server.ports import REQUEST, opened


async def test_fault_of_a_handler_is_answered_and_logged() -> None:
    async def fail(request: web.BaseRequest) -> web.StreamResponse:
        raise RuntimeError("a fault")

    with structlog.testing.capture_logs() as events:
        async with opened(fail) as port, asyncio.timeout(60):
            reader, writer = await port.connect()
            writer.write(REQUEST)
            answer = await reader.read()
            writer.close()
            assert port.answers == [("GET", 500)]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"connection: close" in head.lower()
    assert body == b"Internal Server Error. See wasmer's log for the cause.\n"
    assert [(event["path"], str(event["exc_info"])) for event in events if "exc_info" in event] == [
        ("/", "a fault")
    ]


async def test_answers_that_fill_the_buffer_arrive_whole_once_the_client_reads() -> None:
    sentence = "x" * 100_000
    begun = asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        begun.set()
        return text_answer(200, sentence)

    async with opened(answer) as port, asyncio.timeout(60):
        reader, writer = await port.connect()
        writer.transport.pause_reading()
        writer.write(REQUEST * 3)
        await begun.wait()
        writer.transport.resume_reading()
        for _ in range(3):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(len(sentence) + 1) == sentence.encode() + b"\n"
        writer.write(REQUEST)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_connection_that_is_going_over_at_the_stop_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The moment between the two ways is one iteration of the event loop; here it is longer."""
    going_over = asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        raise AssertionError

    async def connect_accepted_socket(*_: object) -> None:
        going_over.set()
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    async with opened(answer) as port, asyncio.timeout(60):
        monkeypatch.setattr(loop, "connect_accepted_socket", connect_accepted_socket)
        reader, writer = await port.connect()
        writer.write(REQUEST)
        await going_over.wait()
        await port.connections.stop(grace=0)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


@pytest.mark.parametrize("half_close", [False, True])
async def test_half_a_request_behind_one_that_waits_cuts_the_connection_after_its_answer(
    half_close: bool,
) -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        await may_answer.wait()
        return text_answer(200, "late")

    async with (
        opened(answer, limits=ServeLimits(request_timeout=0.2)) as port,
        asyncio.timeout(60),
    ):
        reader, writer = await port.connect()
        writer.write(REQUEST + REQUEST[:10])
        if half_close:
            writer.write_eof()
        await asked.wait()
        silent, silent_writer = await port.connect()
        assert await silent.read() == b"", "its request was overdue, so the other's half one was"
        assert not reader.at_eof()
        may_answer.set()
        got = await reader.read()
        assert got.startswith(b"HTTP/1.1 200 ")
        assert got.endswith(b"\r\n\r\nlate\n")
        assert port.answers == [("GET", 200)]
        for closing in (writer, silent_writer):
            closing.close()


async def test_stop_without_or_after_another_stop_has_nothing_to_cut() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        raise AssertionError

    async with opened(answer) as port:
        assert await port.connections.stop(grace=0) == 0
        assert await port.connections.stop(grace=0) == 0
