"""Connections: all connections of one port, from accepting to an orderly stop.

Not the listening socket (`sockets.py`) and not a router. Invariant: after `stop` there is no connection and no task of
one; a request that had begun before is answered unless its time is up.
"""

import asyncio
import logging
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
        self.is_stopping = False

    def __call__(self) -> Connection:
        """The protocol of a new connection."""
        return Connection(self, loop=self._loop, limits=self._limits, **self._kwargs)

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

    async def stop(self, listener: asyncio.Server, *, grace: float) -> int:
        """Close `listener`, let answers finish for `grace` seconds, then cut; returns how many were cut."""
        deadline = self._loop.time() + grace
        self.is_stopping = True
        await _turn()  # what clients have sent is read, so that their connections do not look idle
        listener.close()
        await _turn()  # what was accepted by then is made
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
