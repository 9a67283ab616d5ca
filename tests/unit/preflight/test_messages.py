"""Messages and frames between wasmer, the fork server and its children."""

import os
from collections.abc import Iterator

import pytest

from autowasm.preflight import messages
from autowasm.preflight.messages import Ended, Job, Kill, Message, Ready, Started


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize(
    "message",
    [
        Job(1, "run", seconds=1.5, resident=2, memory=3, cpu=4, file=5),
        Kill(1),
        Ready(),
        Started(1, 2),
        Ended(1, status=9, cause="deadline", stderr="\n\ufffd" * 2000, cpu=0.5, memory=7),
    ],
)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    packet = messages.pack(message)
    assert messages.unpack(packet) == message
    assert len(packet) <= messages.MAX_PACKET


@pytest.mark.parametrize("packet", [b"", b"[]", b'["Job", {}]', b'["Other", {}]', b"1", b"\xff"])
def test_anything_else_is_refused(packet: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of several kinds
        messages.unpack(packet)


def test_a_frame_arrives_as_it_was_sent(pipe: tuple[int, int]) -> None:
    messages.write_all(
        pipe[1], messages.frame(b"one") + messages.frame(b"") + messages.frame(b"two")
    )
    assert [messages.read_frame(pipe[0], most=3) for _ in range(3)] == [b"one", b"", b"two"]


def test_a_frame_that_is_too_long_is_refused_before_it_is_read(pipe: tuple[int, int]) -> None:
    messages.write_all(pipe[1], messages.frame(b"four"))
    with pytest.raises(ValueError, match="4 bytes, more than 3"):
        messages.read_frame(pipe[0], most=3)
    assert os.read(pipe[0], 10) == b"four"


@pytest.mark.parametrize("part", [b"", b"\0\0", b"\0\0\0\x02a"])
def test_a_frame_that_ends_early_is_the_end(part: bytes) -> None:
    reading, writing = os.pipe()
    messages.write_all(writing, part)
    os.close(writing)
    with pytest.raises(EOFError):
        messages.read_frame(reading, most=10)
    os.close(reading)
