"""A bug of ours ends one connection, and is logged."""

import asyncio
import socket

import pytest
import structlog

from autowasm.blobs.files import Blob
from autowasm.digest import Sha256Hex
from autowasm.errors import StorageError
from autowasm.limits import ServeLimits
from autowasm.performance.fastpath import FastConnection

REQUEST = f"GET /wasm/{'ab' * 32} HTTP/1.1\r\nhost: wasmer\r\n\r\n".encode()


class BrokenDesk:
    """Raises instead of returning whether a blob is ready."""

    def __init__(self, error: Exception) -> None:
        self.is_stopping = False
        self.error = error
        self.gone = 0
        self.handed: list[bytes] = []

    def ready(self, sha256: Sha256Hex) -> tuple[Blob, bytes] | None:
        raise self.error

    def began(self) -> None: ...

    def ended(self) -> None: ...

    def sent(self, sha256: Sha256Hex, address: str, count: int, *, cut_for: str | None) -> None: ...

    def hand_over(self, connection: FastConnection, data: bytes, due: float | None) -> None:
        self.handed.append(data)

    def closed(self, connection: FastConnection) -> None:
        self.gone += 1


async def ask(owner: BrokenDesk) -> tuple[FastConnection, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    limits = ServeLimits(request_timeout=10_000)  # the connection is not closed by its timer
    connection = FastConnection(ours, "10.0.0.1", owner=owner, loop=loop, limits=limits)
    await loop.sock_sendall(theirs, REQUEST)
    async with asyncio.timeout(20):
        while not owner.gone and not owner.handed:
            await asyncio.sleep(0.005)
    return connection, theirs


async def test_a_fault_closes_the_connection_and_is_logged() -> None:
    owner = BrokenDesk(RuntimeError("a fault"))
    with structlog.testing.capture_logs() as events:
        connection, client = await ask(owner)
    assert [event["event"] for event in events] == ["connection failed"]
    assert client.recv(10) == b""
    connection.force_close()
    assert owner.gone == 1
    client.close()


@pytest.mark.parametrize("error", [OSError(5, "no disk"), StorageError("no disk")])
async def test_a_failing_disk_is_left_to_the_way_that_answers_it(error: Exception) -> None:
    owner = BrokenDesk(error)
    connection, client = await ask(owner)
    assert owner.handed == [REQUEST]
    connection.cut("stop")
    client.close()
