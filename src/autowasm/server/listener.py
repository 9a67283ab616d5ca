"""Listener: takes connections from a listening socket, some in each turn of the loop.

Not asyncio's `Server`, which makes a task, a future and a transport of each connection before it is known what that wants,
and loses those that wait as it closes. Invariants: whoever the kernel accepted is handed on or still waits with the kernel;
without free descriptors accepting pauses, and says so, instead of spinning.
"""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Final

import structlog

_log = structlog.get_logger(__name__)

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE: Final = 1.0
"""Seconds without accepting when the machine has no descriptors or memory left."""


class Listener:
    """Owns `listener`. `on_accept` gets each connection, non-blocking, and the client's address."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        loop: asyncio.AbstractEventLoop,
        accepts: int,
        on_accept: Callable[[socket.socket, str], None],
    ) -> None:
        """`accepts`: how many in one turn of the loop."""
        self._listener = listener
        self._loop = loop
        self._accepts = accepts
        self._on_accept = on_accept
        self._paused: asyncio.TimerHandle | None = None
        # What is accepted has these from the start (Linux), without two calls for each.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        loop.add_reader(listener, self._readable)

    def close(self) -> None:
        """Hand on those that wait, then close: a listening socket that closes resets them."""
        if self._listener.fileno() < 0:
            return
        self._loop.remove_reader(self._listener)
        if self._paused is not None:
            self._paused.cancel()
        with contextlib.suppress(OSError):  # BlockingIOError: there are no more
            while True:
                self._accept()
        self._listener.close()

    def _readable(self) -> None:
        try:
            for _ in range(self._accepts):
                self._accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno in _EXHAUSTED:
                _log.error("no new connections for a moment", reason=str(error), seconds=_PAUSE)
                self._loop.remove_reader(self._listener)
                self._paused = self._loop.call_later(_PAUSE, self._resume)
            else:  # accept(2): errors of the new connection's network are to be taken like EAGAIN
                _log.warning("connection not accepted", reason=str(error))

    def _accept(self) -> None:
        accepted, address = self._listener.accept()
        accepted.setblocking(False)
        self._on_accept(accepted, address[0])

    def _resume(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listener, self._readable)
