"""FastConnection: a connection that serves whole blobs from the page cache without aiohttp.

Envoy loads a module with one plain GET; thousands arrive at once. Here such a request takes one receive, one match, and
sends from the page cache, all in callbacks of the loop, without task, transport, or parser. Everything else (another
method, a Range, a blob that must be fetched, an incomplete request) is handed over with the socket to a `Connection`, permanently. Invariants: a
request that is taken here means the same to aiohttp, and no field that can change the response (Range, conditions, a body, Connection) is among those
taken; the bytes sent are those announced, or the connection is reset; no request and no send outlasts its deadline; one callback makes at most one
sendfile call of `sendfile_chunk` bytes, and the loop's selector is fair over connections; after `close` or the hand-over the loop has no reference to
the socket.
"""

import asyncio
import re
import socket
import struct
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Final, Protocol

import structlog

from autowasm.digest import Sha256Hex
from autowasm.errors import StorageError
from autowasm.limits import ServeLimits
from autowasm.performance.sendfile import AGAIN, BlobSend, OpenBlob

_LONGEST: Final = 4096
"""Bytes. aiohttp answers longer requests with its own limits."""
_MAX_FIELDS: Final = 64
"""aiohttp refuses more than 128."""
_FIELDS: Final = (
    rb"host|user-agent|accept|accept-encoding|accept-language|cache-control|pragma|x-request-id|x-forwarded-for"
    rb"|x-forwarded-proto|x-forwarded-client-cert|x-envoy-[a-z-]{1,40}|traceparent|tracestate|b3|x-b3-[a-z]{1,20}"
)
_PLAIN: Final = re.compile(
    rb"GET /wasm/([0-9a-f]{64})(?:\?[\w=&.~-]{0,128})? HTTP/1\.1\r\n(?:(?i:"
    + _FIELDS
    + rb"):[\t\x20-\x7e]*\r\n){1,%d}\r\n" % _MAX_FIELDS
)
_HOST: Final = re.compile(rb"\nhost: *[!-~]")


def plain_request(data: bytes) -> Sha256Hex | None:
    """The digest, if `data` is exactly one complete plain request."""
    if len(data) > _LONGEST:
        return None
    match = _PLAIN.fullmatch(data)
    if match is None:
        return None
    lower = data.lower()
    if lower.count(b"\nhost:") != 1 or _HOST.search(lower) is None:  # RFC 9112 3.2: exactly one
        return None
    if lower.count(b"\nuser-agent:") > 1:  # aiohttp refuses a second one
        return None
    return Sha256Hex(match[1].decode())


class ResponseHeads:
    """Heads of responses with a whole blob, rendered once a second because of their Date."""

    def __init__(self, *, server: str, cache_control: str, content_type: str) -> None:
        """The values of these fields."""
        self._server = server
        self._cache_control = cache_control
        self._content_type = content_type
        self._second: int | None = None
        self._heads: dict[Sha256Hex, bytes] = {}

    def of(self, blob: OpenBlob) -> bytes:
        """Status line and header fields, with the empty line."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._heads.clear()
        head = self._heads.get(blob.sha256)
        if head is None:
            head = self._heads[blob.sha256] = self._rendered(blob, second)
        return head

    def _rendered(self, blob: OpenBlob, second: int) -> bytes:
        return (
            "HTTP/1.1 200 OK\r\n"
            f"server: {self._server}\r\n"
            f'etag: "sha256:{blob.sha256}"\r\n'
            f"cache-control: {self._cache_control}\r\n"
            "accept-ranges: bytes\r\n"
            f"content-type: {self._content_type}\r\n"
            f"content-length: {blob.size}\r\n"
            f"Date: {formatdate(second, usegmt=True)}\r\n\r\n"
        ).encode()


_log = structlog.get_logger(__name__)

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER, on, 0 s
_READ: Final = 8192
"""Bytes received at once, and accepted at most while a response is being sent. Envoy's request has some 300."""


class FastPathOwner(Protocol):
    """The part of the listener that a connection uses."""

    is_stopping: bool

    def ready(self, sha256: Sha256Hex) -> tuple[OpenBlob, bytes] | None:
        """The blob and the head of its response, if the blob can be sent at once."""

    def began(self) -> None:
        """A send is waiting for its client."""

    def ended(self) -> None:
        """Such a send ended, with or without success."""

    def sent(self, sha256: Sha256Hex, address: str, count: int, *, cut_for: str | None) -> None:
        """A response ended after `count` bytes of the blob; `cut_for`: why it is incomplete, if it is."""

    def hand_over(self, connection: "FastConnection", data: bytes, due: float | None) -> None:
        """Continue with `connection.socket`, from which `data` was received. `due`: when its request must be complete."""

    def closed(self, connection: "FastConnection") -> None:
        """The connection has ended."""


class FastConnection:
    """One accepted, non-blocking socket."""

    __slots__ = (
        "_address",
        "_deadline",
        "_due",
        "_early",
        "_fd",
        "_is_closed",
        "_is_half_closed",
        "_is_handed_over",
        "_is_reading",
        "_late",
        "_limits",
        "_loop",
        "_next",
        "_owner",
        "_sending",
        "_timer",
        "_until",
        "socket",
    )

    def __init__(
        self,
        accepted: socket.socket,
        address: str,
        *,
        owner: FastPathOwner,
        loop: asyncio.AbstractEventLoop,
        limits: ServeLimits,
    ) -> None:
        self.socket = accepted
        self._fd = accepted.fileno()
        self._address = address
        self._owner = owner
        self._loop = loop
        self._limits = limits
        self._is_closed = self._is_handed_over = self._is_half_closed = False
        self._sending: BlobSend | None = None
        self._early = b""
        self._next: asyncio.Handle | None = None
        self._late: asyncio.TimerHandle | None = None
        self._due: float | None = loop.time() + limits.request_timeout
        self._until = self._due
        self._timer = loop.call_at(self._until, self._timed_out)
        self._is_reading = True
        loop.add_reader(self._fd, self._guarded, self._receive)

    @property
    def is_idle(self) -> bool:
        """Whether it is between two requests, with none due."""
        return self._due is None and self.is_waiting

    @property
    def is_waiting(self) -> bool:
        """Whether no response is being sent, and no request was received during the last one."""
        return self._sending is None and not self._early and not self._is_handed_over

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a callback. An unexpected error is logged and ends this connection, so that none is left without an owner."""
        try:
            step()
        except Exception as error:  # supervised edge: a callback of the loop
            _log.error("connection failed", client=self._address, exc_info=error)
            self._fail("fault")

    # --- requests

    def _receive(self) -> None:
        try:
            data = self.socket.recv(_READ)
        except AGAIN:
            return
        except OSError:
            self._fail("client")
            return
        if self._sending is not None:  # handled after this response
            self._early = data
            self._is_half_closed = not data
            self._stop_reading()
        elif data:
            self._serve(data)
        else:
            self.force_close()

    def _serve(self, data: bytes) -> None:
        sha256 = None if self._owner.is_stopping else plain_request(data)
        try:
            found = self._owner.ready(sha256) if sha256 is not None else None
        except (OSError, StorageError):  # aiohttp's path reports the error
            found = None
        if found is None:
            self._hand_over(data)
            return
        limits = self._limits
        blob, head = found
        self._due = None
        self._sending = BlobSend(self.socket, blob, head, chunk=limits.sendfile_chunk)
        self._deadline = self._loop.time() + limits.send_base + blob.size / limits.send_rate
        self._send()

    def _hand_over(self, data: bytes) -> None:
        self._is_handed_over = True
        self._stop_reading()
        self._timer.cancel()
        self._owner.hand_over(self, data, self._due)

    def _stop_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._fd)

    def _timed_out(self) -> None:
        """Close if a request is overdue or the keep-alive time has passed. Otherwise rearm, so that requests need no timer call."""
        now = self._loop.time()
        if self._sending is None and now >= self._until:
            self.force_close()
            return
        later = self._until if self._until > now else now + self._limits.request_timeout
        self._timer = self._loop.call_at(later, self._timed_out)

    # --- responses

    def _send(self) -> None:
        """Send as much as one call takes; called again while there is more and the socket is writable."""
        sending = self._sending
        if sending is None:  # pragma: no cover - the writer is removed with it
            return
        cause = sending.step()
        if cause is not None:
            self._fail(cause)
        elif sending.is_whole:
            self._sent(sending)
        elif self._late is None:
            self._wait()
        elif self._loop.time() >= self._deadline:
            self._fail("deadline")

    def _wait(self) -> None:
        self._late = self._loop.call_at(self._deadline, self._fail, "deadline")
        self._loop.add_writer(self._fd, self._guarded, self._send)
        self._owner.began()

    def _end_of_send(self) -> None:
        self._sending = None
        if self._late is not None:
            self._late.cancel()
            self._late = None
            self._loop.remove_writer(self._fd)
            self._owner.ended()

    def _sent(self, sending: BlobSend) -> None:
        self._end_of_send()
        self._owner.sent(sending.blob.sha256, self._address, sending.position, cut_for=None)
        if self._is_half_closed or (self._owner.is_stopping and not self._early):
            self.force_close()
            return
        self._until = self._loop.time() + self._limits.keepalive_timeout
        if self._early:  # in a callback of its own, so that other connections come first
            self._next = self._loop.call_soon(self._guarded, self._serve_early)

    def _serve_early(self) -> None:
        self._is_reading = True
        self._loop.add_reader(self._fd, self._guarded, self._receive)
        early, self._early = self._early, b""
        self._serve(early)

    # --- end

    def _fail(self, cause: str) -> None:
        """End with a reset, so that the client does not mistake a partial body for a complete one."""
        sending = self._sending
        if sending is not None:
            self._end_of_send()
            self._owner.sent(sending.blob.sha256, self._address, sending.position, cut_for=cause)
        if not self._is_closed:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.force_close()

    def cut(self, cause: str) -> None:
        """End at once. The kernel drops bytes that the client has not read."""
        self._fail(cause)

    def force_close(self) -> None:
        """Close. Bytes that were sent still arrive."""
        if self._is_closed:
            return
        self._is_closed = True
        self._end_of_send()
        self._stop_reading()
        if self._next is not None:
            self._next.cancel()
        self._timer.cancel()
        self.socket.close()
        self._owner.closed(self)

    def handed_over(self) -> None:
        """A `Connection` owns the socket now."""
        self._is_closed = True
        self._owner.closed(self)
