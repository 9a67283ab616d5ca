"""BlobResponse: a blob, or a part of it, sent by aiohttp's server from the page cache to the socket (ADR 8).

aiohttp's FileResponse opens and stats each time in the default executor, makes an ETag of its own, has no write deadline,
and answers some Range headers wrongly; measured at 64 KiB it costs four times as much. Invariants: the bytes sent are those
announced, or the connection is reset: never padded, never short; a response whose file changed meanwhile is never whole; no
send outlasts its deadline; one sendfile call copies at most `sendfile_chunk` bytes, and sends take turns, so that many
clients do not hold the loop either.
"""

import asyncio
import errno
import os
from collections.abc import Callable, Mapping

import structlog
from aiohttp import web

from autowasm.blobs.blob import Blob
from autowasm.limits import ServeLimits
from autowasm.performance.sendfile import SendScheduler, is_about_client
from autowasm.server.aiohttpconnection import Connection
from autowasm.server.ranges import Decision
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


class SendAborted(ConnectionError):
    """A send did not finish; `cause` is the label of the metric. aiohttp takes it as a broken connection: no traceback."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"send aborted: {cause}")
        self.cause = cause


class BlobResponse(web.StreamResponse):
    """The bytes of `blob` that `decision` (200 or 206) names, for a GET on `connection`."""

    def __init__(
        self,
        blob: Blob,
        decision: Decision,
        *,
        connection: Connection,
        headers: Mapping[str, str],
        limits: ServeLimits,
        metrics: Metrics,
        pacing: SendScheduler,
        on_sent: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(status=decision.status, headers=headers)
        self._on_sent = on_sent
        self._blob = blob
        self._decision = decision
        self._connection = connection
        self._limits = limits
        self._metrics = metrics
        self._pacing = pacing
        self._position = decision.offset

    async def write_eof(self, data: bytes = b"") -> None:
        """Send the file. aiohttp calls it once the head is written. Raises SendAborted."""
        self._metrics.sends.inc()
        try:
            await self._send()
            self._on_sent()
        finally:
            self._metrics.sends.dec()
        await super().write_eof(data)

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        limits, count = self._limits, self._decision.count
        deadline = loop.time() + limits.send_base + count / limits.send_rate
        try:
            if self._connection.writing_paused:
                await self._connection.drained()  # the head first
            await self._copy(self._decision.offset + count, deadline, loop)
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:  # ours, not the kernel's
                raise self._aborted("deadline") from error
            if is_about_client(error):
                raise self._aborted(self._connection.cut_for or "client") from error
            _log.error("blob not readable", digest=self._blob.sha256, error=str(error))
            raise self._aborted("storage") from error
        finally:
            self._connection.end_of_send()
            self._metrics.served_bytes.inc(self._position - self._decision.offset)

    async def _copy(self, end: int, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        source, chunk = self._blob.fd, self._limits.sendfile_chunk
        while True:
            # Checked after each wait: the descriptor's number may belong to another connection now.
            transport = self._connection.transport
            if transport is None or transport.is_closing():
                raise ConnectionResetError
            socket = transport.get_extra_info("socket")
            wanted = min(end - self._position, chunk)
            if self._position + wanted == end and self._blob.was_written():
                raise OSError(errno.EIO, "the file was modified")  # so it is never whole
            try:
                sent = os.sendfile(socket.fileno(), source, self._position, wanted)
            except BlockingIOError:
                await self._connection.writable(socket, deadline)
                continue
            if sent == 0:
                raise OSError(errno.EIO, "the file was truncated")
            self._position += sent
            if self._position == end:
                return
            if sent < wanted:
                await self._connection.writable(socket, deadline)
            elif loop.time() >= deadline:
                raise TimeoutError
            else:
                await self._pacing.wait()

    def _aborted(self, cause: str) -> SendAborted:
        self._metrics.sends_aborted.labels(cause).inc()
        self._connection.cut(cause)
        return SendAborted(cause)
