"""Connections: all connections of one port, from accepting to an orderly stop.

Not the listening socket (`sockets.py`) and not a router. Invariant: after `stop` there is no connection and no task of
one; a request that had begun before is answered unless its time is up.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

from autowasm.server.connection import Connection
from autowasm.settings import ServeLimits

_log = structlog.get_logger(__name__)
_logger: Final = logging.getLogger(__name__)

_CANCELLED_WITHIN: Final = 0.2
"""Seconds for handlers to end whose connection was cut; they await nothing but it."""


class Connections(web.Server):
    """aiohttp's protocol factory, making our `Connection`s.

    `on_answer(method, status)` is told of every answer, bad requests included.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        limits: ServeLimits,
        on_answer: Callable[[str, int], None],
    ) -> None:
        super().__init__(
            handler,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=limits.keepalive_timeout,
            lingering_time=limits.unread_body,
        )
        self._limits = limits
        self._on_answer = on_answer
        self._open: set[Connection] = set()
        self._changed = asyncio.Event()
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self.is_stopping = False

    def __call__(self) -> Connection:
        """The protocol of a new connection."""
        return Connection(self, owner=self, loop=self._loop, limits=self._limits, **self._kwargs)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """A client connected."""
        super().connection_made(handler, transport)
        if isinstance(handler, Connection):
            self._open.add(handler)

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        """A connection is gone."""
        super().connection_lost(handler, exc)
        if isinstance(handler, Connection):
            self._open.discard(handler)
            self._changed.set()

    def answered(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """An answer was sent, or its client went away while it was."""
        self._on_answer(request.method, response.status)
        if _logger.isEnabledFor(logging.DEBUG):
            _log.debug(
                "answered",
                method=request.method,
                path=request.path,
                status=response.status,
                client=request.remote,
            )

    async def listen(self, listener: socket.socket, *, backlog: int) -> None:
        """Take connections from `listener`, which is ours from now on."""
        self._listener = listener
        # asyncio accepts as many as the backlog that it knows in one turn of the loop, which then lasts for long.
        accepts = min(self._limits.accepts, backlog)
        self._server = await self._loop.create_server(self, sock=listener, backlog=accepts)
        listener.listen(backlog)

    async def stop(self, *, grace: float) -> int:
        """Take no more connections, let answers finish for `grace` seconds, then cut; returns how many were cut."""
        deadline = self._loop.time() + grace
        self.is_stopping = True
        await self._close_listener()
        await _turn()  # what clients have sent is read, so that their connections do not look idle
        self._close_idle()
        # A connection that was just made brings its request in a moment; refusing it now would lose that.
        await self._all_closed(min(deadline, self._loop.time() + self._limits.settle))
        for connection in self._open.copy():
            if connection.is_waiting:
                connection.force_close()
        await self._all_closed(deadline)
        rest = self._open.copy()
        for connection in rest:
            connection.cut("stop")
        await self.shutdown(_CANCELLED_WITHIN)
        return len(rest)

    async def _close_listener(self) -> None:
        """Close the listening socket without losing who has connected to it.

        asyncio's own `Server.close` drops them twice: connections that the kernel holds are reset, and those accepted
        in the same turn are never looked at again and hang (CPython's `_accept_connection2` asserts an open server).
        """
        listener, server = self._listener, self._server
        if listener is None or server is None:
            return
        self._listener = self._server = None
        self._loop.remove_reader(listener)
        await _turn()  # transports are made for what asyncio has accepted
        waiting: list[socket.socket] = []
        with contextlib.suppress(OSError):  # BlockingIOError: there are no more
            while True:
                waiting.append(listener.accept()[0])
        server.close()
        for accepted in waiting:
            accepted.setblocking(False)
            with contextlib.suppress(OSError):  # this client has left again
                await self._loop.connect_accepted_socket(self, accepted)

    def _close_idle(self) -> None:
        for connection in self._open.copy():
            if connection.is_idle:
                connection.force_close()

    async def _all_closed(self, deadline: float) -> None:
        while self._open:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return


async def _turn() -> None:
    for _ in range(2):
        await asyncio.sleep(0)
