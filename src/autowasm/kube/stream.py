"""From the bytes of a watch to its lines: bounded, and in turns, so that a burst does not hold the loop.

Not a decoder (`codec.py`). Invariants: a line is handed on only once its end has arrived, so half a line at the end of a
stream is never taken for an event; a line above the limit ends the stream, whatever it would have been.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Protocol

from autowasm.kube.errors import UnexpectedAnswer

READ_BYTES = 256 * 1024
"""For one read: some twenty events of a Pod. More at a time only holds the loop longer."""


class ByteStream(Protocol):
    """What an `aiohttp.StreamReader` offers, as far as we use it."""

    async def read(self, n: int = -1, /) -> bytes:
        """At most `n` bytes, as soon as there are any; none at the end."""


class LineSplitter:
    """Splits chunks at newlines, holding back the beginning of a line until the rest of it has come."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._held: list[bytes] = []
        self._held_bytes = 0

    @property
    def partial(self) -> int:
        """Bytes of an unfinished line."""
        return self._held_bytes

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that this chunk completes, without their ends; empty lines are left out. Raises UnexpectedAnswer."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            line = chunk[start:end]
            start = end + 1
            if self._held:
                self._hold(line)
                line = b"".join(self._held)
                self._held.clear()
                self._held_bytes = 0
            if len(line) > self._limit:
                raise self._too_long()
            if line and line != b"\r":
                yield line
        if start < len(chunk):
            self._hold(chunk[start:])

    def _hold(self, piece: bytes) -> None:
        self._held.append(piece)
        self._held_bytes += len(piece)
        if self._held_bytes > self._limit:
            raise self._too_long()

    def _too_long(self) -> UnexpectedAnswer:
        return UnexpectedAnswer(f"a line of the watch is longer than {self._limit} bytes")


async def read_lines(
    stream: ByteStream, *, limit: int, budget: float
) -> AsyncGenerator[bytes, None]:
    """Whole lines of the stream until it ends. Gives way to others after each `budget` seconds of work.

    `budget` includes what the consumer does with a line before it asks for the next.
    """
    loop = asyncio.get_running_loop()
    splitter = LineSplitter(limit=limit)
    turn_ends = loop.time() + budget
    while chunk := await stream.read(READ_BYTES):
        for line in splitter.feed(chunk):
            yield line
            if loop.time() >= turn_ends:
                await asyncio.sleep(0)
                turn_ends = loop.time() + budget
