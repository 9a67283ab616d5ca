"""One connection on real sockets and a clock that the test moves: the client's response, and the server's events."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster
from structlog.testing import capture_logs

from autowasm.blobs.files import Blob
from autowasm.digest import Sha256Hex, Signature
from autowasm.limits import ServeLimits
from autowasm.performance.fastpath import FastConnection
from autowasm.performance.sendfile import BlobSend

START = 1_000.0
SMALL, LARGE = Sha256Hex("a" * 64), Sha256Hex("b" * 64)
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
LIMITS = ServeLimits(
    request_timeout=15,
    keepalive_timeout=100,
    send_base=30,
    send_rate=1 << 20,
    sendfile_chunk=1 << 16,
)
SIZES = {SMALL: 10, LARGE: 8 << 20}
TO_SEND = 30 + 8
"""Seconds that the large one may take."""


def request(sha256: str, *, more: str = "") -> bytes:
    return f"GET /wasm/{sha256} HTTP/1.1\r\nhost: wasmer\r\n{more}\r\n".encode()


@dataclass
class Timer:
    when: float
    call: Callable[[], None]
    is_over: bool = False

    def cancel(self) -> None:
        self.is_over = True


@dataclass
class Clock:
    """The loop, but for its time."""

    loop: asyncio.AbstractEventLoop
    now: float = START
    timers: list[Timer] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loop, name)

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[..., None], *args: Any) -> Timer:
        timer = Timer(when, lambda: call(*args))
        self.timers.append(timer)
        return timer

    def pending(self) -> list[float]:
        return sorted(timer.when - START for timer in self.timers if not timer.is_over)

    def move_to(self, seconds: float) -> None:
        """`seconds` after the start."""
        while due := [
            each for each in self.timers if not each.is_over and each.when <= START + seconds
        ]:
            timer = min(due, key=lambda each: each.when)
            self.now, timer.is_over = max(self.now, timer.when), True
            timer.call()
        self.now = START + seconds


@dataclass
class Desk:
    blobs: dict[Sha256Hex, Blob]
    is_stopping: bool = False
    events: list[tuple[Any, ...]] = field(default_factory=list)
    on_sent: Callable[[], object] = lambda: None

    def ready(self, sha256: Sha256Hex) -> tuple[Blob, bytes] | None:
        return (self.blobs[sha256], HEAD) if sha256 in self.blobs else None

    def began(self) -> None:
        self.events.append(("began",))

    def ended(self) -> None:
        self.events.append(("ended",))

    def sent(self, sha256: Sha256Hex, address: str, count: int, *, cut_for: str | None) -> None:
        self.events.append(("sent", sha256, address, count, cut_for))
        self.on_sent()

    def hand_over(self, connection: FastConnection, data: bytes, due: float | None) -> None:
        self.events.append(("hand_over", data, due))

    def closed(self, connection: FastConnection) -> None:
        self.events.append(("closed",))

    def names(self) -> list[str]:
        return [event[0] for event in self.events]


@dataclass
class ServedClient:
    """A client, and the connection that answers it."""

    connection: FastConnection
    owner: Desk
    clock: Clock
    client: socket.socket

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.client, data)

    async def read(self, count: int) -> bytes:
        data = b""
        async with asyncio.timeout(60):
            while len(data) < count:
                more = await asyncio.get_running_loop().sock_recv(self.client, count - len(data))
                if not more:
                    break
                data += more
        return data

    async def begin_large(self) -> None:
        """The client requests the large one, and does not read it."""
        await self.send(request(LARGE))
        await self.until(lambda: self.owner.events)
        assert self.owner.names() == ["began"]

    async def is_reset(self) -> bool:
        try:
            await self.read(1 << 30)
        except ConnectionResetError:
            return True
        return False

    @property
    def is_closed(self) -> bool:
        return self.connection.socket.fileno() == -1


@pytest.fixture(autouse=True)
def _sendfile_on_the_loop(blockbuster: BlockBuster) -> Iterator[None]:
    """From the page cache, to a socket that does not block (ADR 1)."""
    sendfile = blockbuster.functions["os.sendfile"]
    before = sendfile.can_block_functions[:]
    sendfile.can_block_in("autowasm/performance/sendfile.py", "_copy")
    yield
    sendfile.can_block_functions[:] = before


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedClient]:
    loop = asyncio.get_running_loop()
    descriptors: list[int] = []
    blobs: dict[Sha256Hex, Blob] = {}
    for sha256, size in SIZES.items():
        (tmp_path / sha256).write_bytes(sha256[:1].encode() * size)
        descriptors.append(os.open(tmp_path / sha256, os.O_RDONLY))
        blobs[sha256] = Blob(sha256, descriptors[-1], Signature.of(descriptors[-1]))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    client.setblocking(False)
    ours.setblocking(False)
    clock, owner = Clock(loop), Desk(blobs)
    connection = FastConnection(
        ours,
        "10.0.0.1",
        owner=owner,
        loop=clock,  # type: ignore[arg-type]
        limits=LIMITS,
    )
    yield ServedClient(connection, owner, clock, client)
    connection.force_close()
    ours.close()
    client.close()
    for descriptor in descriptors:
        os.close(descriptor)


async def test_whole_answer_is_sent_and_reported(served: ServedClient) -> None:
    for _ in range(3):
        await served.send(request(SMALL))
        assert await served.read(len(HEAD) + 10) == HEAD + b"a" * 10
    assert served.owner.events == [("sent", SMALL, "10.0.0.1", 10, None)] * 3


async def test_answer_that_the_client_takes_in_parts_is_whole(served: ServedClient) -> None:
    await served.begin_large()
    assert await served.read(len(HEAD) + SIZES[LARGE]) == HEAD + b"b" * SIZES[LARGE]
    await served.until(lambda: len(served.owner.events) == 3)
    assert served.owner.events[1:] == [("ended",), ("sent", LARGE, "10.0.0.1", SIZES[LARGE], None)]
    assert served.clock.pending() == [15], "no deadline of a send is left"
    await served.send(request(SMALL))
    assert await served.read(len(HEAD) + 10) == HEAD + b"a" * 10


async def test_state_tells_whether_a_request_is_due_or_a_send_under_way(
    served: ServedClient,
) -> None:
    connection = served.connection
    assert (connection.is_waiting, connection.is_idle) == (True, False)
    await served.send(request(SMALL))
    await served.read(len(HEAD) + 10)
    assert (connection.is_waiting, connection.is_idle) == (True, True)
    await served.send(request(LARGE))
    await served.until(lambda: "began" in served.owner.names())
    assert (connection.is_waiting, connection.is_idle) == (False, False)
    await served.read(len(HEAD) + SIZES[LARGE])
    await served.until(lambda: "ended" in served.owner.names())
    assert (connection.is_waiting, connection.is_idle) == (True, True)
    await served.send(b"HEAD")
    await served.until(lambda: "hand_over" in served.owner.names())
    assert (connection.is_waiting, connection.is_idle) == (False, False)


async def test_connection_without_a_request_is_closed(served: ServedClient) -> None:
    served.clock.move_to(14.9)
    assert served.owner.events == []
    served.clock.move_to(15)
    assert served.owner.events == [("closed",)]
    assert await served.read(1) == b""
    assert served.clock.pending() == []


async def test_connection_that_is_not_used_any_more_is_closed(served: ServedClient) -> None:
    served.clock.move_to(10)
    await served.send(request(SMALL))
    await served.read(len(HEAD) + 10)
    served.clock.move_to(15)
    assert served.clock.pending() == [110]
    served.clock.move_to(109.9)
    assert not served.is_closed
    served.clock.move_to(110)
    assert served.owner.names() == ["sent", "closed"]
    assert await served.read(1) == b""


async def test_every_answer_makes_the_connection_live_longer(served: ServedClient) -> None:
    for second in (0, 60, 120):
        served.clock.move_to(second)
        await served.send(request(SMALL))
        await served.read(len(HEAD) + 10)
    served.clock.move_to(219.9)
    assert not served.is_closed
    served.clock.move_to(220)
    assert served.is_closed


async def test_send_that_takes_too_long_is_reset(served: ServedClient) -> None:
    await served.begin_large()
    served.clock.move_to(15)
    assert served.clock.pending() == [30, TO_SEND], "looked at again, and not closed"
    served.clock.move_to(TO_SEND - 0.1)
    assert served.owner.names() == ["began"]
    served.clock.move_to(TO_SEND)
    assert served.owner.names() == ["began", "ended", "sent", "closed"]
    _, sha256, address, count, cut_for = served.owner.events[2]
    assert (sha256, address, cut_for) == (LARGE, "10.0.0.1", "deadline")
    assert 0 < count < SIZES[LARGE]
    assert await served.is_reset()
    assert served.clock.pending() == []


async def test_send_that_goes_on_after_its_deadline_is_reset(served: ServedClient) -> None:
    """The loop may see the client before the timer."""
    await served.begin_large()
    served.clock.now = START + TO_SEND
    assert await served.is_reset()
    assert served.owner.events[2][-1] == "deadline"


@pytest.mark.parametrize(
    "data",
    [
        request(SMALL, more="range: bytes=0-1\r\n"),
        request("c" * 64),
        request(SMALL)[:-1],
        request(SMALL).replace(b"GET", b"HEAD"),
        request(SMALL) * 2,
    ],
)
async def test_other_requests_are_handed_over_with_their_socket(
    served: ServedClient, data: bytes
) -> None:
    served.clock.move_to(3)
    await served.send(data)
    await served.until(lambda: served.owner.events)
    assert served.owner.events == [("hand_over", data, START + 15)]
    assert served.clock.pending() == []
    await served.send(b"more")
    for _ in range(5):
        await asyncio.sleep(0)
    assert served.connection.socket.recv(10) == b"more", "left to the other"
    served.connection.handed_over()
    served.connection.force_close()
    assert served.owner.names() == ["hand_over", "closed"]
    assert not served.is_closed


async def test_next_request_that_goes_over_is_not_due(served: ServedClient) -> None:
    await served.send(request(SMALL))
    await served.read(len(HEAD) + 10)
    await served.send(b"GET")
    await served.until(lambda: "hand_over" in served.owner.names())
    assert served.owner.events[-1] == ("hand_over", b"GET", None)


async def test_requests_at_a_stop_go_over(served: ServedClient) -> None:
    served.owner.is_stopping = True
    await served.send(request(SMALL))
    await served.until(lambda: served.owner.events)
    assert served.owner.events == [("hand_over", request(SMALL), START + 15)]


async def test_send_at_a_stop_ends_the_connection(served: ServedClient) -> None:
    await served.begin_large()
    served.owner.is_stopping = True
    assert len(await served.read(1 << 30)) == len(HEAD) + SIZES[LARGE]
    assert served.owner.names() == ["began", "ended", "sent", "closed"]
    assert served.owner.events[2][-1] is None


async def test_request_that_came_before_the_stop_goes_over_after_the_send(
    served: ServedClient,
) -> None:
    await served.begin_large()
    await served.send(request(SMALL))
    for _ in range(20):
        await asyncio.sleep(0)
    served.owner.is_stopping = True
    await served.read(len(HEAD) + SIZES[LARGE])
    await served.until(lambda: "hand_over" in served.owner.names())
    assert served.owner.events[-1] == ("hand_over", request(SMALL), None)
    assert not served.is_closed


async def test_request_that_comes_during_a_send_is_answered_after_it(served: ServedClient) -> None:
    await served.begin_large()
    await served.send(request(SMALL))
    for _ in range(20):
        await asyncio.sleep(0)
    body = HEAD + b"b" * SIZES[LARGE] + HEAD + b"a" * 10
    assert await served.read(len(body)) == body
    await served.send(request(SMALL))
    assert await served.read(len(HEAD) + 10) == HEAD + b"a" * 10
    assert served.owner.names() == ["began", "ended", "sent", "sent", "sent"]


async def test_one_callback_of_the_loop_copies_at_most_one_chunk(
    served: ServedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[int] = [0]
    step, run = BlobSend.step, asyncio.Handle._run

    def counted(send: BlobSend) -> str | None:
        copies[-1] += 1
        return step(send)

    def in_callback(handle: asyncio.Handle) -> None:
        copies.append(0)
        run(handle)

    await served.begin_large()
    await served.send(request(SMALL))
    for _ in range(20):
        await asyncio.sleep(0)
    monkeypatch.setattr(BlobSend, "step", counted)
    monkeypatch.setattr(asyncio.Handle, "_run", in_callback)
    await served.read(len(HEAD) + SIZES[LARGE] + len(HEAD) + 10)
    assert served.owner.names() == ["began", "ended", "sent", "sent"]
    assert max(copies) == 1


async def test_connection_that_is_cut_before_the_next_request_leaves_nothing_behind(
    served: ServedClient,
) -> None:
    loop = asyncio.get_running_loop()
    states: list[tuple[bool, bool]] = []

    def at_once() -> None:
        states.append((served.connection.is_waiting, served.connection.is_idle))
        served.connection.cut("stop")

    await served.begin_large()
    await served.send(request(SMALL))
    for _ in range(20):
        await asyncio.sleep(0)
    served.owner.on_sent = lambda: loop.call_soon(at_once)
    assert await served.is_reset()
    assert states == [(False, False)], "its next request was received"
    for _ in range(20):
        await asyncio.sleep(0)
    assert served.owner.names() == ["began", "ended", "sent", "closed"]
    assert served.clock.pending() == []


async def test_send_at_a_stop_ends_the_connection_that_had_requests_during_a_send(
    served: ServedClient,
) -> None:
    await served.begin_large()
    await served.send(request(SMALL))
    for _ in range(20):
        await asyncio.sleep(0)
    await served.read(len(HEAD) + SIZES[LARGE] + len(HEAD) + 10)
    await served.send(request(LARGE))
    await served.until(lambda: served.owner.names().count("began") == 2)
    served.owner.is_stopping = True
    assert len(await served.read(1 << 30)) == len(HEAD) + SIZES[LARGE]
    assert served.owner.names()[-3:] == ["ended", "sent", "closed"]


async def test_client_that_ends_its_side_during_a_send_gets_all_of_it(served: ServedClient) -> None:
    await served.begin_large()
    served.client.shutdown(socket.SHUT_WR)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(await served.read(1 << 30)) == len(HEAD) + SIZES[LARGE]
    assert served.owner.names() == ["began", "ended", "sent", "closed"]


async def test_file_that_becomes_shorter_during_a_send_resets_the_connection(
    served: ServedClient, tmp_path: Path
) -> None:
    await served.begin_large()
    os.truncate(tmp_path / LARGE, 10)
    assert await served.is_reset()
    assert served.owner.names() == ["began", "ended", "sent", "closed"]
    assert served.owner.events[2][-1] == "storage"


async def test_client_that_closes_ends_the_connection(served: ServedClient) -> None:
    served.client.close()
    await served.until(lambda: served.is_closed)
    assert served.owner.events == [("closed",)]
    assert served.clock.pending() == []


async def test_client_that_resets_ends_the_connection(served: ServedClient) -> None:
    served.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    served.client.close()
    with capture_logs() as events:
        await served.until(lambda: served.is_closed)
    assert events == [], "no fault of ours"
    assert served.owner.events == [("closed",)]


class Failing:
    """The socket of a connection; to receive from it fails with each of `errors` first."""

    def __init__(self, real: socket.socket, *errors: OSError) -> None:
        self.real = real
        self.errors = list(errors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def recv(self, size: int) -> bytes:
        if self.errors:
            raise self.errors.pop(0)
        return self.real.recv(size)


async def test_connection_that_is_woken_too_early_waits_for_its_data(served: ServedClient) -> None:
    errors = BlockingIOError(), InterruptedError()
    served.connection.socket = Failing(served.connection.socket, *errors)  # type: ignore[assignment]
    await served.send(request(SMALL))
    assert await served.read(len(HEAD) + 10) == HEAD + b"a" * 10
    assert served.owner.events == [("sent", SMALL, "10.0.0.1", 10, None)]


async def test_client_that_fails_while_it_is_read_during_a_send_is_reported(
    served: ServedClient,
) -> None:
    await served.begin_large()
    error = ConnectionResetError()
    served.connection.socket = Failing(served.connection.socket, error)  # type: ignore[assignment]
    await served.send(b"x")
    for _ in range(100):
        await asyncio.sleep(0)
    assert served.owner.names() == ["began", "ended", "sent", "closed"]
    assert served.owner.events[2][-1] == "client"
    assert await served.is_reset()


async def test_fault_of_ours_during_a_send_resets_it_and_is_reported(
    served: ServedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(_: BlobSend) -> None:
        raise RuntimeError("a fault")

    await served.begin_large()
    monkeypatch.setattr(BlobSend, "step", fault)
    with capture_logs() as events:
        assert await served.is_reset()
    assert [(event["event"], event["client"]) for event in events] == [
        ("connection failed", "10.0.0.1")
    ]
    assert served.owner.names() == ["began", "ended", "sent", "closed"]
    assert served.owner.events[2][-1] == "fault"


async def test_client_that_resets_during_a_send_is_reported(served: ServedClient) -> None:
    await served.begin_large()
    served.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    served.client.close()
    await served.until(lambda: served.is_closed)
    assert served.owner.names() == ["began", "ended", "sent", "closed"]
    assert served.owner.events[2][-1] == "client"


@pytest.mark.parametrize("is_sending", [False, True])
async def test_connection_that_is_cut_is_reset_once(served: ServedClient, is_sending: bool) -> None:
    if is_sending:
        await served.begin_large()
    for _ in range(2):
        served.connection.cut("stop")
    assert served.is_closed
    names = ["began", "ended", "sent", "closed"] if is_sending else ["closed"]
    assert served.owner.names() == names
    if is_sending:
        assert served.owner.events[2][-1] == "stop"
    assert await served.is_reset()
    assert served.clock.pending() == []


async def test_connection_that_is_closed_during_a_send_leaves_nothing_behind(
    served: ServedClient,
) -> None:
    await served.begin_large()
    served.connection.force_close()
    assert served.owner.names() == ["began", "ended", "closed"]
    assert served.clock.pending() == []


async def test_closing_a_connection_sends_the_accepted_answer_first(served: ServedClient) -> None:
    await served.send(request(SMALL))
    await served.until(lambda: served.owner.events)
    for _ in range(2):
        served.connection.force_close()
    assert await served.read(1 << 20) == HEAD + b"a" * 10
    assert served.owner.names() == ["sent", "closed"]
    assert served.clock.pending() == []
