"""The judge of the fault rows: excused failures, and those that never are."""

import asyncio
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from tests.parts.downloads import Cut, Good, Outcome, Unreachable, Watch, WrongBytes, fetch
from tests.parts.process import Process
from tests.parts.wasmer import Wasmer

MODULE = b"a module"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n"


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[Wasmer]:
    """A replica that sends this and closes."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        process = Process("none", ["none"], log=Path("none"))
        yield Wasmer(process, Path("none"), f"127.0.0.1:{port}", "")


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (HEAD + MODULE, Good),
        (HEAD + b"a nodule", WrongBytes),
        (HEAD + b"a mod", Cut),
        (b"HTTP/1.1 2", Cut),
        (b"HTTP/1.1 503 Not Now\r\ncontent-length: 0\r\n\r\n", Outcome),
        (b"", Unreachable),
    ],
)
async def test_outcome_of_an_answer(answer: bytes, outcome: type[Outcome]) -> None:
    async with answering(answer) as replica:
        found = await fetch(replica, sha256(MODULE).hexdigest())
    assert type(found) is outcome, found.problem


async def test_port_without_a_listener_is_unreachable() -> None:
    async with answering(b"") as replica:
        pass
    assert type(await fetch(replica, "00")) is Unreachable


async def test_replica_that_ends_before_it_accepts_the_connection_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address, port = listener.getsockname()
        process = Process("none", ["none"], log=Path("none"))
        replica = Wasmer(process, Path("none"), f"{address}:{port}", "")
        fetching = asyncio.create_task(fetch(replica, "00"))
        while not select.select([listener], [], [], 0)[0]:  # the connection waits in the backlog
            await asyncio.sleep(0)
    assert type(await fetching) is Unreachable


@pytest.mark.parametrize(
    ("outcome", "excused", "counts"),
    [
        (Good, (), (1, 0, 0)),
        (Good, (Outcome,), (1, 0, 0)),
        (Outcome, (), (0, 0, 1)),
        (Outcome, (Unreachable,), (0, 0, 1)),
        (Outcome, (Outcome,), (0, 1, 0)),
        (Unreachable, (), (0, 0, 1)),
        (Unreachable, (Unreachable,), (0, 1, 0)),
        (WrongBytes, (), (0, 0, 1)),
        (WrongBytes, (Outcome,), (0, 0, 1)),
    ],
)
def test_each_outcome_is_counted_as_good_refused_or_wrong(
    outcome: Callable[[], Outcome], excused: tuple[type[Outcome], ...], counts: tuple[int, int, int]
) -> None:
    watch = Watch()
    watch.count(outcome(), *excused)
    assert (watch.good, watch.refused, len(watch.wrong)) == counts
