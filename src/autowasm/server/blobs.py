"""BlobHandler: `/wasm/<sha256>` and `/seen` on the blob port; BlobResponse: a blob, or a part of it, from the page cache to the socket.

Blobs come from `ondemand.py`; `ranges.py` evaluates a Range. Invariant: the response to a plain GET, as Envoy sends it, is 200 with
every byte, 404, or 503.

BlobResponse is sent by aiohttp's server (ADR 8). aiohttp's FileResponse opens and stats the file each time in the default executor,
makes its own ETag, has no write deadline, and answers some Range headers wrongly; measured at 64 KiB, it costs four times as much.
Invariants: the bytes sent are those announced, or the connection is reset: never padded, never short; a response whose file changed
meanwhile is never complete; no send outlasts its deadline; one sendfile call copies at most `sendfile_chunk` bytes, and sends take
turns, so that many clients cannot block the loop, either.
"""

import asyncio
import errno
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import structlog
from aiohttp import web

from autowasm.artifacts.peers import PEER_HEADER
from autowasm.blobs.files import Blob
from autowasm.digest import Sha256Hex
from autowasm.limits import ServeLimits
from autowasm.performance.sendfile import SendScheduler, is_about_client
from autowasm.server.aiohttpconnection import Connection
from autowasm.server.downloadlog import DownloadLog
from autowasm.server.ondemand import BlobAbsent, OnDemandBlobs
from autowasm.server.ranges import Conditions, Decision, decide
from autowasm.server.requestlog import CACHE_CONTROL, CONTENT_TYPE, SERVER, request_id, text_answer
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)
_PATH: Final = re.compile(r"/wasm/([0-9a-f]{64})")
_SEEN_PATH: Final = re.compile(r"/seen/([0-9a-f]{64})")
_MILLISECONDS: Final = re.compile(r"[0-9]{1,9}")
_SENTENCES: Final = {
    412: "If-Match does not list the module's ETag, which is its digest.",
    416: "The Range starts after the module's last byte.",
}


class SendAborted(ConnectionError):
    """A send did not finish; `cause` is the label of the metric. aiohttp treats it as a broken connection: no traceback."""

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
            # Checked after each wait: the descriptor's number may now belong to another connection.
            transport = self._connection.transport
            if transport is None or transport.is_closing():
                raise ConnectionResetError
            socket = transport.get_extra_info("socket")
            wanted = min(end - self._position, chunk)
            if self._position + wanted == end and self._blob.was_written():
                raise OSError(
                    errno.EIO, "the file was modified"
                )  # so the response is never complete
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


class BlobHandler:
    """Answers requests on `Connection`s."""

    def __init__(
        self,
        on_demand: OnDemandBlobs,
        *,
        instance: str,
        download_log: DownloadLog,
        limits: ServeLimits,
        metrics: Metrics,
    ) -> None:
        """`instance`: our name for the other replicas."""
        self._on_demand = on_demand
        self._instance = instance
        self._download_log = download_log
        self._limits = limits
        self._metrics = metrics
        self._pacing = SendScheduler(copies=limits.copies)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """The response to `request`."""
        match = _PATH.fullmatch(request.path)
        if match is None and request.path == "/seen":
            return self._log_document(self._download_log.summary())
        if match is None and (log_path := _SEEN_PATH.fullmatch(request.path)):
            return self._log_document(await self._download_log.document(Sha256Hex(log_path[1])))
        if match is None:
            return text_answer(
                404,
                "Unknown path; modules are at /wasm/<sha256>, with 64 lower-case hexadecimal digits.",
            )
        if request.method not in {"GET", "HEAD"}:
            return text_answer(
                405, "Method not allowed; use GET or HEAD.", headers={"allow": "GET, HEAD"}
            )
        sha256 = Sha256Hex(match[1])
        if PEER_HEADER in request.headers:
            answer = self._outcome(request, await self._on_demand.stored(sha256))
            answer.headers[PEER_HEADER] = self._instance
            return answer
        with structlog.contextvars.bound_contextvars(
            request_id=request_id(request)
        ):  # fills inherit the context
            found = await self._on_demand.find(sha256, patience=_patience(request))
        if isinstance(found, BlobAbsent):
            known = found.status != 404
            self._download_log.failed(sha256, request.remote, found.status, known=known)
        return self._outcome(
            request, found, on_sent=partial(self._download_log.served, sha256, request.remote)
        )

    def ready(self, sha256: Sha256Hex) -> Blob | None:
        """The blob if it can be sent at once. It is then counted as a hit."""
        return self._on_demand.ready(sha256)

    def served(self, sha256: Sha256Hex, address: str) -> None:
        """The whole blob was sent to `address`."""
        self._download_log.served(sha256, address)

    def _log_document(self, document: bytes) -> web.Response:
        """A document of the download log, for peers and for clients that know the digest."""
        return web.Response(
            body=document,
            content_type="application/json",
            headers={"server": SERVER, "cache-control": "no-store", PEER_HEADER: self._instance},
        )

    def _outcome(
        self,
        request: web.BaseRequest,
        found: Blob | BlobAbsent,
        *,
        on_sent: Callable[[], None] = lambda: None,
    ) -> web.StreamResponse:
        if isinstance(found, Blob):
            return self._answer(request, found, on_sent)
        headers = {"retry-after": str(found.retry_after)} if found.status == 503 else None
        return text_answer(found.status, found.sentence, headers=headers)

    def _answer(
        self, request: web.BaseRequest, blob: Blob, on_sent: Callable[[], None]
    ) -> web.StreamResponse:
        etag = f'"sha256:{blob.sha256}"'
        decision = decide(request.method, _conditions(request), etag=etag, size=blob.size)
        headers = {
            "server": SERVER,
            "etag": etag,
            "cache-control": CACHE_CONTROL,
            "accept-ranges": "bytes",
        }
        if decision.status == 304:
            return web.StreamResponse(status=304, headers=headers)
        if decision.status == 416:
            return _refusal(416, {**headers, "content-range": f"bytes */{blob.size}"})
        if decision.status == 412:
            return _refusal(412, headers)
        headers["content-type"] = CONTENT_TYPE
        headers["content-length"] = str(decision.count)
        if decision.status == 206:
            headers["content-range"] = _content_range(decision, blob.size)
        connection = request.protocol
        if request.method == "HEAD" or not isinstance(connection, Connection):
            return web.StreamResponse(status=decision.status, headers=headers)
        return BlobResponse(
            blob,
            decision,
            connection=connection,
            headers=headers,
            limits=self._limits,
            metrics=self._metrics,
            pacing=self._pacing,
            on_sent=on_sent if decision.status == 200 else lambda: None,
        )


def _refusal(status: int, headers: dict[str, str]) -> web.Response:
    return text_answer(status, _SENTENCES[status], headers={**headers, "cache-control": "no-store"})


def _content_range(decision: Decision, size: int) -> str:
    return f"bytes {decision.offset}-{decision.offset + decision.count - 1}/{size}"


def _conditions(request: web.BaseRequest) -> Conditions:
    headers = request.headers
    return Conditions(
        if_match=_joined(request, "If-Match") if "If-Match" in headers else None,
        if_none_match=_joined(request, "If-None-Match") if "If-None-Match" in headers else None,
        if_range=_joined(request, "If-Range") if "If-Range" in headers else None,
        range=_joined(request, "Range") if "Range" in headers else None,
    )


def _joined(request: web.BaseRequest, name: str) -> str:
    """Combine several lines of one field into one list (RFC 9110 5.3)."""
    return ", ".join(request.headers.getall(name))


def _patience(request: web.BaseRequest) -> float | None:
    """Seconds that Envoy waits for this response, from its header `x-envoy-expected-rq-timeout-ms`."""
    value = request.headers.get("x-envoy-expected-rq-timeout-ms")
    if value is None or not _MILLISECONDS.fullmatch(value):
        return None
    # Envoy sends 0 for "no limit".
    return int(value) / 1000 or None
