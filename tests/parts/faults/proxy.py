"""A TCP proxy between our client and a real server, with faults on command.

Not a mock: undisturbed answers are the real server's. Invariant: each fault with an effect is counted, so a test can
assert that the fault occurred.
"""

import asyncio
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Pass:
    """No fault is active."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """New connections are reset at once. Existing ones continue."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Connections are accepted, but no data moves on them or on existing ones; nothing is closed and nothing is lost."""


@dataclass(frozen=True, slots=True)
class CutAfter:
    """Connections are closed once the client has received this many bytes since the fault was set; after `times` of them, `Pass`."""

    size: int
    times: int = 1
    reset: bool = False
    """With a TCP reset instead of a normal close."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Every chunk is held for this long, in both directions."""

    seconds: float


Mode = Pass | Refuse | Hang | CutAfter | Delay


@dataclass(slots=True)
class Counters:
    """Events so far."""

    connections: int = 0
    refused: int = 0
    hung: int = 0
    """Chunks and new connections that `Hang` held."""
    cut: int = 0
    delayed: int = 0
    to_client: int = 0
    to_server: int = 0


@dataclass(eq=False, slots=True)
class _Connection:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    mode: Mode = field(default_factory=Pass)
    sent: int = 0
    """Bytes to the client since `mode` was set."""


class FaultProxy:
    """Forwards 127.0.0.1:`port` to the given server; an async context manager."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._mode: Mode = Pass()
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self.counters = Counters()
        self.port = 0

    @property
    def mode(self) -> Mode:
        """The faults that are active."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode
        self._changed.set()
        self._changed = asyncio.Event()

    def lead_to(self, host: str, port: int) -> None:
        """Send new connections to this server, for a server that is started after the proxy."""
        self._upstream = (host, port)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
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
        self.cut_all()
        while self._connections:
            await asyncio.sleep(0.01)
            self.cut_all()
        await self._server.wait_closed()

    @property
    def open(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    def cut_all(self, *, reset: bool = False) -> None:
        """Close every connection now."""
        for connection in list(self._connections):
            self._close(connection, reset=reset)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counters.connections += 1
        connection = _Connection(writer)
        self._connections.add(connection)
        try:
            if isinstance(self._mode, Refuse):
                self.counters.refused += 1
                self._close(connection, reset=True)
                return
            await self._hold(connection)
            upstream_reader, connection.server = await asyncio.open_connection(*self._upstream)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(connection, reader, connection.server, back=False))
                group.create_task(self._pump(connection, upstream_reader, writer, back=True))
        except OSError:
            pass  # the server is not running: the client sees its connection closed
        finally:
            self._close(connection)
            self._connections.discard(connection)

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        back: bool,
    ) -> None:
        try:
            while chunk := await reader.read(_CHUNK):
                await self._hold(connection)
                if back and not await self._to_client(connection, chunk):
                    return
                if not back:
                    self.counters.to_server += len(chunk)
                    writer.write(chunk)
                    await writer.drain()
        except OSError:
            pass  # one side has closed, so close the other
        finally:
            self._close(connection)

    async def _to_client(self, connection: _Connection, chunk: bytes) -> bool:
        """Forward; False if that was the end of the connection."""
        mode = self._mode
        if connection.mode is not mode:
            connection.mode, connection.sent = mode, 0
        whole = True
        if isinstance(mode, CutAfter) and connection.sent + len(chunk) > mode.size:
            chunk = chunk[: mode.size - connection.sent]
            whole = False
        connection.sent += len(chunk)
        self.counters.to_client += len(chunk)
        connection.client.write(chunk)
        await connection.client.drain()
        if isinstance(mode, CutAfter) and not whole:
            self.counters.cut += 1
            self._close(connection, reset=mode.reset)
            if mode is self._mode:
                left = mode.times - 1
                self.mode = CutAfter(mode.size, left, mode.reset) if left else Pass()
        return whole

    async def _hold(self, connection: _Connection) -> None:
        if isinstance(self._mode, Delay):
            self.counters.delayed += 1
            await asyncio.sleep(self._mode.seconds)
        if isinstance(self._mode, Hang):
            self.counters.hung += 1
        while isinstance(self._mode, Hang) and not connection.client.is_closing():
            await self._changed.wait()

    def _close(self, connection: _Connection, *, reset: bool = False) -> None:
        for writer in (connection.client, connection.server):
            if writer is None or writer.is_closing():
                continue
            if reset:
                endpoint = writer.get_extra_info("socket")
                linger = struct.pack("ii", 1, 0)
                endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            else:
                writer.close()
