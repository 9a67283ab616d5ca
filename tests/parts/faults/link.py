"""A slow link before a real server: a round-trip time, and a rate that all connections share.

It works below TLS and HTTP and without loss: bytes arrive late, in order and complete. Invariant: each chunk is held for half a round
trip in each direction, but successive chunks travel at the same time, as on a cable. TCP's slow start is not reproduced, so a real
link of this kind is slower for the first kilobytes of a connection.
"""

import asyncio
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

_CHUNK = 16 * 1024
_TRAVELLING = 256
"""Maximum number of chunks of a connection in transit, per direction; beyond that the link reads no more from the sender."""


class Link:
    """Forwards `address`:`port` to the server that `lead_to` names; an async context manager.

    `round_trip` is in seconds, `rate` in bytes a second towards the clients (0: unlimited); both may change while it runs. A new
    connection takes one round trip, as the handshake of TCP does.
    """

    def __init__(self, address: str, *, round_trip: float = 0.0, rate: float = 0.0) -> None:
        self.address = address
        self.round_trip = round_trip
        self.rate = rate
        self.port = 0
        self.connections = 0
        self._upstream = ("", 0)
        self._idle_at = 0.0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def host(self) -> str:
        """Where it listens, `address:port`."""
        return f"{self.address}:{self.port}"

    def lead_to(self, host: str) -> None:
        """New connections go to `host`, which is `address:port`."""
        address, _, port = host.rpartition(":")
        self._upstream = (address, int(port))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.address, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._connect(reader, writer), name="link")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            await asyncio.sleep(self.round_trip)
            there, server = await asyncio.open_connection(*self._upstream)
            ends.append(server)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, server, ends, limited=False))
                group.create_task(self._carry(there, writer, ends, limited=True))
        except OSError:
            pass  # the server is not running: the client sees its connection closed
        finally:
            _abort(ends)

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: list[asyncio.StreamWriter],
        *,
        limited: bool,
    ) -> None:
        """One direction, until its end has travelled, too."""
        travelling: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_TRAVELLING)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._arrive(travelling, writer, ends))
            while True:
                try:
                    chunk = await reader.read(_CHUNK)
                except OSError:
                    chunk = b""  # one side has closed, so close the other
                left = self._leave(len(chunk)) if limited else time.monotonic()
                await travelling.put((left + self.round_trip / 2, chunk))
                if not chunk:
                    return

    async def _arrive(
        self,
        travelling: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        ends: list[asyncio.StreamWriter],
    ) -> None:
        while True:
            due, chunk = await travelling.get()
            await asyncio.sleep(due - time.monotonic())
            if writer.is_closing():
                _abort(ends)  # the receiver has closed: close the sender's side, too
            else:
                with suppress(OSError):  # it closed just now: the write of the next chunk fails
                    await _write(writer, chunk)
            if not chunk:
                return

    def _leave(self, size: int) -> float:
        """The time at which the last of these bytes is on the link, after all bytes that were sent before."""
        now = time.monotonic()
        if not self.rate:
            return now
        self._idle_at = max(now, self._idle_at) + size / self.rate
        return self._idle_at


async def _write(writer: asyncio.StreamWriter, chunk: bytes) -> None:
    if chunk:
        writer.write(chunk)
        await writer.drain()
    else:
        writer.write_eof()


def _abort(ends: list[asyncio.StreamWriter]) -> None:
    for end in ends:
        end.transport.abort()
