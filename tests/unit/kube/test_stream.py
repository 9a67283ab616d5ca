"""Bytes to lines."""

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autowasm.kube.errors import UnexpectedAnswer
from autowasm.kube.listwatch import LineSplitter, read_lines


def split(chunks: Iterable[bytes], *, limit: int = 1000) -> list[bytes]:
    splitter = LineSplitter(limit=limit)
    return [line for chunk in chunks for line in splitter.feed(chunk)]


class Chunks:
    """A stream that has everything at once."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)

    async def read(self, n: int = -1, /) -> bytes:
        return next(self._chunks, b"")


@given(
    st.lists(
        st.binary(min_size=1, max_size=20).filter(lambda line: b"\n" not in line and line != b"\r")
    ),
    st.lists(st.integers(1, 30), min_size=1),
)
def test_lines_come_out_whole_however_they_were_cut(lines: list[bytes], sizes: list[int]) -> None:
    text = b"".join(line + b"\n" for line in lines)
    chunks: list[bytes] = []
    start = 0
    while start < len(text):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(text[start : start + size])
        start += size
    assert split(chunks) == lines


def test_half_a_line_at_the_end_is_no_line() -> None:
    assert split([b'{"a":1}\n{"b"', b":"]) == [b'{"a":1}']


def test_empty_lines_are_left_out() -> None:
    assert split([b"\n\r\na\n\n"]) == [b"a"]


@pytest.mark.parametrize("chunks", [[b"x" * 11 + b"\n"], [b"x" * 6, b"x" * 6], [b"x" * 11]])
def test_a_line_above_the_limit_ends_the_stream(chunks: list[bytes]) -> None:
    with pytest.raises(UnexpectedAnswer, match="longer than 10 bytes"):
        split(chunks, limit=10)
    assert split([b"x" * 10 + b"\n"], limit=10) == [b"x" * 10]


async def test_a_burst_gives_way_to_others() -> None:
    iterations = 0

    async def other() -> None:
        nonlocal iterations
        while True:
            iterations += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    stream = Chunks([b"x\n" * 1000] * 50)
    seen = 0
    async for _ in read_lines(stream, limit=100, budget=0.001):
        seen += 1
    task.cancel()
    assert seen == 50_000
    assert iterations > 3
