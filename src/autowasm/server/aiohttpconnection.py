"""Connection: aiohttp's server side of one HTTP/1 connection, with the deadlines that aiohttp does not have.

aiohttp bounds a connection by one keep-alive timeout, which must be longer than Envoy's (1 h), and has no deadline for a client
that stops reading. Here, a missing or incomplete request times out after `request_timeout` of the settings, and a response that
the client does not read after `send_base`; file sends have their own deadline through `writable`. A client may shut down its
sending side after the request and still gets its response (RFC 9112 9.6; aiohttp drops it). Broken connections and invalid
requests leave no traceback in the log.

Invariant: after `connection_lost` no timer runs and nothing waits for the connection.

Uses private parts of aiohttp 3.14's RequestHandler (`_messages`, `_request_count`, `_waiter`, `_drain_helper`), which have no
public equivalent; the tests of this module fail if their meaning changes.
"""

import asyncio
import os
import socket
import struct
from http import HTTPStatus
from typing import Any, Final, Protocol, cast

import structlog
from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import LineTooLong

from autowasm.limits import ServeLimits
from autowasm.server.requestlog import text_answer

_log = structlog.get_logger(__name__)

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER, on, 0 s


class ConnectionOwner(Protocol):
    """The part of the owner that a connection uses."""

    is_stopping: bool

    def answered(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """A response was sent, or the client disconnected during it."""


class Connection(web.RequestHandler):
    """One connection. `manager` is aiohttp's server, `owner` is ours."""

    __slots__ = (
        "_answer_timer",
        "_due",
        "_duplicate",
        "_early",
        "_half_closed",
        "_limits",
        "_owner",
        "_request_timer",
        "_sending",
        "cut_for",
    )

    def __init__(
        self,
        manager: web.Server,
        *,
        owner: ConnectionOwner,
        loop: asyncio.AbstractEventLoop,
        limits: ServeLimits,
        early: bytes,
        due: float | None,
        **options: Any,  # aiohttp's, passed on by its Server
    ) -> None:
        """`early`: bytes that were already received; `due`: when the request that they begin must be complete, in loop time."""
        super().__init__(manager, loop=loop, **options)
        self._owner = owner
        self._limits = limits
        self._early = early
        self._due = due
        self.cut_for: str | None = None
        """Why the connection was cut, if it was."""
        self._duplicate = -1
        self._half_closed = False
        self._request_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected; its first request is expected, or already received."""
        super().connection_made(transport)
        # Writing counts as paused until the buffer is empty: files bypass the buffer, so it must be empty.
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=0)
        self._await_request(self._due)
        early, self._early = self._early, b""
        self.data_received(early)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection has ended, from either side."""
        self._cancel_timers()
        _wake(self._sending)
        super().connection_lost(exc)

    # --- requests

    @property
    def is_idle(self) -> bool:
        """Whether the connection waits and no request is due: none has begun to arrive, and the connection is not new."""
        return self._request_timer is None and self.is_waiting

    @property
    def is_waiting(self) -> bool:
        """Whether no request is in progress or queued; one may have begun to arrive."""
        return not self._messages and self._waiter is not None and not self._waiter.done()

    def data_received(self, data: bytes) -> None:
        """Bytes arrived. A request that they begin must be complete before its deadline."""
        before = self._request_count
        super().data_received(data)
        if self._request_count == before:
            if data:
                self._await_request()
            return
        self._request_came()
        if not data.endswith(b"\n\r\n"):  # the start of the next request, or a body
            self._await_request()

    def eof_received(self) -> bool | None:  # type: ignore[override]  # asyncio's own signature
        """The client sends no more; pending responses are still sent."""
        if self.is_waiting:
            return None
        self._half_closed = True
        return True

    def _await_request(self, due: float | None = None) -> None:
        if self._request_timer is None:
            if due is None:
                due = self._loop.time() + self._limits.request_timeout
            self._request_timer = self._loop.call_at(due, self._request_overdue)

    def _request_came(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _request_overdue(self) -> None:
        self._request_timer = None
        if self.is_waiting:
            self.force_close()
        elif not self._half_closed:
            self._await_request()  # an earlier request is still in progress

    # --- responses

    def pause_writing(self) -> None:
        """The kernel's buffer is full, so bytes wait in the transport's buffer."""
        super().pause_writing()
        self._answer_timer = self._loop.call_later(self._limits.send_base, self.cut, "deadline")

    def resume_writing(self) -> None:
        """The transport's buffer is empty."""
        cast(asyncio.TimerHandle, self._answer_timer).cancel()
        self._answer_timer = None
        super().resume_writing()

    async def writable(self, client: socket.socket, deadline: float) -> None:
        """Return when `client`, its socket, is writable again, or the connection is lost. `deadline` in loop time.

        Raises TimeoutError. Waits on a duplicate of the descriptor, because asyncio reserves the transport's own. The caller must
        call `end_of_send` at the end.
        """
        if self._duplicate < 0:
            self._duplicate = os.dup(client.fileno())
        fd = self._duplicate
        waiter = self._sending = self._loop.create_future()
        self._loop.add_writer(fd, _wake, waiter)
        timer = self._loop.call_at(deadline, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._loop.remove_writer(fd)
            self._sending = None
        if self._loop.time() >= deadline:
            raise TimeoutError

    def end_of_send(self) -> None:
        """Close the descriptor of `writable`. Until then the client does not see the connection closed."""
        if self._duplicate >= 0:
            os.close(self._duplicate)
            self._duplicate = -1

    async def drained(self) -> None:
        """Return when the transport's buffer is empty. Raises ConnectionError."""
        await self._drain_helper()

    def cut(self, cause: str) -> None:
        """Reset the connection: the kernel drops bytes that the client has not read."""
        transport = self.transport
        if transport is None:
            return
        self.cut_for = self.cut_for or cause
        connection = transport.get_extra_info("socket")  # open as long as there is a transport
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send `resp`, and count it. The last response on a connection has `Connection: close`."""
        if self._is_last:
            resp.force_close()
        result = await super().finish_response(request, resp, start_time)
        if self._is_last:  # it may have become the last one meanwhile
            resp.force_close()
        self._owner.answered(request, resp)
        return result

    @property
    def _is_last(self) -> bool:
        return (self._half_closed or self._owner.is_stopping) and not self._messages

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The response to an invalid HTTP request or an error in our code. Raises ConnectionError."""
        if isinstance(exc, ConnectionError):
            raise exc
        if isinstance(exc, HttpProcessingError):
            answer = text_answer(status, f"This is not a valid HTTP request: {_what_is_wrong(exc)}")
        else:
            _log.error("request failed", path=request.path, exc_info=exc)
            if request.writer.output_size:
                raise ConnectionError("the response has started and cannot be completed") from exc
            answer = text_answer(
                status, f"{HTTPStatus(status).phrase}. See wasmer's log for the cause."
            )
        answer.force_close()
        return answer

    def _cancel_timers(self) -> None:
        for timer in (self._request_timer, self._answer_timer):
            if timer is not None:
                timer.cancel()
        self._request_timer = self._answer_timer = None


def _what_is_wrong(error: HttpProcessingError) -> str:
    """Aiohttp's message without the client's bytes, which may be long, binary, or secret."""
    if isinstance(error, LineTooLong):
        return "a line is too long"
    return error.message.strip().partition("\n")[0].partition(": ")[0].rstrip(":") or "bad request"


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
