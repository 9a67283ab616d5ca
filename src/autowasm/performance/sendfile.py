"""BlobSend: a blob from the page cache to a non-blocking socket, without a copy in this process. SendScheduler: short iterations.

Invariants: as many bytes are sent as announced, or the send fails; a blob whose file was written before its last chunk is
copied is not sent whole (a write during that copy is not noticed, but Envoy checks the hash); one call copies at most `chunk`
bytes; sends take turns, so that many clients do not hold the loop (ADR 8, ADR 22).
"""

import asyncio
import errno
import os
import socket
from collections import deque
from typing import Final, Protocol

import structlog

from autowasm.digest import Sha256Hex

_log = structlog.get_logger(__name__)


class OpenBlob(Protocol):
    """`blobs.blob.Blob`."""

    @property
    def sha256(self) -> Sha256Hex:
        """The sha256 of its bytes."""

    @property
    def fd(self) -> int:
        """The open descriptor."""

    @property
    def size(self) -> int:
        """Bytes."""

    def was_written(self) -> bool:
        """Whether the file was written since it was verified."""


class SendScheduler:
    """Lets a few of a port's sends continue in each iteration of the loop.

    With `asyncio.sleep(0)` a thousand sends would all continue in the same iteration, which then takes half a second.
    Invariants: first come, first served; no send waits while an iteration has room.
    """

    def __init__(self, *, copies: int) -> None:
        """`copies`: the number of sends that continue in one iteration."""
        self._copies = copies
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_called = False

    async def wait(self) -> None:
        """Return in a later iteration of the loop that has room."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiting.append(waiter)
        if not self._is_called:
            self._is_called = True
            loop.call_soon(self._release, loop)
        await waiter

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        released = 0
        while self._waiting and released < self._copies:
            waiter = self._waiting.popleft()
            if not waiter.done():  # its send was cancelled
                waiter.set_result(None)
                released += 1
        self._is_called = bool(self._waiting)
        if self._is_called:
            loop.call_soon(self._release, loop)


_GONE: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ETIMEDOUT})
"""Errors of the kernel for an unreachable client, besides a reset (tcp(7), ip(7))."""
AGAIN: Final = (BlockingIOError, InterruptedError)
"""Errors of a socket that is not ready now."""


def is_about_client(error: OSError) -> bool:
    """Whether a failed sendfile is due to the connection, not to the file."""
    return isinstance(error, ConnectionError) or error.errno in _GONE


class BlobSend:
    """A whole blob and its head, on the way to one non-blocking socket. The connection has the deadline (`fastpath.py`).

    `blob`: open. `head`: the bytes before it. `position`: how much of the blob the kernel has accepted.
    """

    __slots__ = ("_chunk", "_fd", "_head", "_socket", "blob", "position")

    def __init__(self, client: socket.socket, blob: OpenBlob, head: bytes, *, chunk: int) -> None:
        self._socket = client
        self._fd = client.fileno()
        self._head = head
        self._chunk = chunk
        self.blob = blob
        self.position = 0

    @property
    def is_whole(self) -> bool:
        """Whether all bytes are sent."""
        return self.position == self.blob.size and not self._head

    def step(self) -> str | None:
        """Send as much as one call takes. Returns the cause if nothing more can be sent."""
        try:
            if self._head:
                self._head = self._head[self._socket.send(self._head, socket.MSG_MORE) :]
            if not self._head:
                self._copy()
        except AGAIN:
            pass
        except OSError as error:
            if is_about_client(error):
                return "client"
            _log.error("blob not readable", digest=self.blob.sha256, error=str(error))
            return "storage"
        return None

    def _copy(self) -> None:
        blob = self.blob
        wanted = min(blob.size - self.position, self._chunk)
        if self.position + wanted == blob.size and blob.was_written():
            raise OSError(errno.EIO, "the file was modified")  # so it is never sent whole
        sent = os.sendfile(self._fd, blob.fd, self.position, wanted)
        if sent == 0 and wanted:
            raise OSError(errno.EIO, "the file was truncated")
        self.position += sent
