"""The cause of a response that cannot be sent completely: the client, or the store."""

import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from autowasm.blobs.files import Blob
from autowasm.digest import Sha256Hex, Signature
from autowasm.performance.sendfile import BlobSend

SIZE = 8 << 20
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our side of a TCP connection, which does not block, and the client's."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=60) as client,
    ):
        ours, _ = listener.accept()
        with ours:
            ours.setblocking(False)
            yield ours, client


@pytest.fixture
def blob(tmp_path: Path) -> Iterator[Blob]:
    (tmp_path / "blob").write_bytes(b"b" * SIZE)
    descriptor = os.open(tmp_path / "blob", os.O_RDONLY)
    yield Blob(Sha256Hex("b" * 64), descriptor, Signature.of(descriptor))
    os.close(descriptor)


def step_until_blocked(sending: BlobSend) -> None:
    before = -1
    while sending.position > before:
        before = sending.position
        assert sending.step() is None
    assert before < SIZE


def test_client_whose_host_answers_no_more_is_at_fault(
    pair: tuple[socket.socket, socket.socket], blob: Blob
) -> None:
    ours, _ = pair
    sending = BlobSend(ours, blob, HEAD, chunk=1 << 20)
    step_until_blocked(sending)
    ours.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1
    )  # ms: the kernel ends the connection
    assert select.select([], [ours], [], 60)[1]
    assert sending.step() == "client"


def test_head_that_the_kernel_takes_in_parts_comes_whole_before_the_blob(
    pair: tuple[socket.socket, socket.socket], blob: Blob
) -> None:
    ours, client = pair
    head = bytes(range(256)) * (SIZE // 256)
    sending = BlobSend(ours, blob, head, chunk=1 << 20)
    assert sending.step() is None
    assert sending.position == 0, "the kernel had no room for the head"
    received = bytearray()
    while len(received) < len(head) + SIZE:
        assert sending.is_whole or sending.step() is None
        received += client.recv(1 << 20)
    assert received == head + b"b" * SIZE
    assert sending.is_whole


def test_answer_that_finds_the_buffer_full_waits_and_comes_whole(
    pair: tuple[socket.socket, socket.socket], blob: Blob
) -> None:
    ours, client = pair
    before = 0
    with pytest.raises(BlockingIOError):
        while True:
            before += ours.send(b"e" * 65_536)
    sending = BlobSend(ours, blob, HEAD, chunk=1 << 20)
    assert sending.step() is None
    assert sending.position == 0
    received = bytearray()
    while len(received) < before + len(HEAD) + SIZE:
        assert sending.is_whole or sending.step() is None
        received += client.recv(1 << 20)
    assert received == b"e" * before + HEAD + b"b" * SIZE
