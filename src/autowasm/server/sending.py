"""Sending: one whole blob with the head of its answer, on its way to one socket that does not block.

Not the connection nor its deadline (`quick.py`). Invariants: one step makes at most one sendfile call of `chunk` bytes; an
answer whose file changed on the way is never whole.
"""

import errno
import os
import socket
from typing import Final

import structlog

from autowasm.blobs.blob import Blob

_log = structlog.get_logger(__name__)

_GONE: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ETIMEDOUT})
"""How the kernel says that the client does not answer any more, besides a reset (tcp(7), ip(7))."""
AGAIN: Final = (BlockingIOError, InterruptedError)
"""What a socket raises that can take or give nothing now."""


def is_about_client(error: OSError) -> bool:
    """Whether a failed sendfile is the fault of the connection, not of the file."""
    return isinstance(error, ConnectionError) or error.errno in _GONE


class Sending:
    """`blob`: open. `head`: the bytes before it. `position`: how much of the blob the kernel has taken."""

    __slots__ = ("_chunk", "_fd", "_head", "_socket", "blob", "position")

    def __init__(self, client: socket.socket, blob: Blob, head: bytes, *, chunk: int) -> None:
        self._socket = client
        self._fd = client.fileno()
        self._head = head
        self._chunk = chunk
        self.blob = blob
        self.position = 0

    @property
    def is_whole(self) -> bool:
        """Whether all was taken."""
        return self.position == self.blob.size and not self._head

    def step(self) -> str | None:
        """Send as much as one call takes. Returns why nothing more can be sent, if that is so."""
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
            _log.error("blob not readable", digest=self.blob.sha256, reason=str(error))
            return "storage"
        return None

    def _copy(self) -> None:
        blob = self.blob
        wanted = min(blob.size - self.position, self._chunk)
        if self.position + wanted == blob.size and blob.was_written():
            raise OSError(errno.EIO, "the file was written to")  # so the answer is never whole
        sent = os.sendfile(self._fd, blob.fd, self.position, wanted)
        if sent == 0 and wanted:
            raise OSError(errno.EIO, "the file has become shorter")
        self.position += sent
