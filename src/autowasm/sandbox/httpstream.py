"""The course of an HTTP stream: the order of arrivals, local replies, resets, timeouts, and the end of its context.

Invariants: a stream ends, at the latest by its idle timeout; the log, done and delete callbacks run once, in this order.

Sources: envoy source/common/http/filter_manager.cc `sendLocalReply`; source/common/http/conn_manager_impl.cc `onIdleTimeout`;
source/common/router/router.cc; source/extensions/common/wasm/context.cc `sendLocalResponse`, `failStream`, `log`, `onDestroy`.
"""

from collections.abc import Mapping
from typing import Final

from autowasm.sandbox import attributes
from autowasm.sandbox.connectionmanager import LocalReply, arriving, is_grpc, local_reply, sent
from autowasm.sandbox.contexts import Context
from autowasm.sandbox.errors import FailureKind, ModuleFailed
from autowasm.sandbox.filterchain import Direction
from autowasm.sandbox.headers import HeaderMap, MapKind, Pairs
from autowasm.sandbox.host import Host
from autowasm.sandbox.httpfilter import RequestFilter, ResponseFilter
from autowasm.sandbox.message import Message, Request, Response, decoded, encoded, trailer_map
from autowasm.sandbox.properties import Value, merged
from autowasm.sandbox.protocol import BufferType, MapType, StreamType
from autowasm.sandbox.vm import Vm

_DRAIN_SECONDS: Final = 60.0
"""Virtual time for which the stream waits for callouts that nothing else waits for."""
_CONNECT_NANOSECONDS: Final = 1_000_000
_TWICE: Final = "it resumes the {} within the callback that gets its headers: if that does not pause, Envoy passes the headers on twice"
_TRAILERS_TWICE: Final = "it resumes the request in or after the callback that lets its trailers pass: Envoy passes the trailers on twice"


class Receiver:
    """The service or the client: records what it receives."""

    def __init__(self) -> None:
        self.headers: HeaderMap | None = None
        self.trailers: HeaderMap | None = None
        self.body = bytearray()
        self.is_complete = False

    def take_headers(self, headers: HeaderMap, *, end: bool) -> None:
        """See filterchain.Next."""
        self.headers = headers
        self.is_complete = end

    def take_data(self, data: bytes, *, end: bool) -> None:
        """See filterchain.Next."""
        self.body += data
        self.is_complete = self.is_complete or end

    def take_trailers(self, trailers: HeaderMap) -> None:
        """See filterchain.Next."""
        self.trailers = trailers
        self.is_complete = True

    def message(self) -> Message | None:
        """The received message; None if no headers arrived."""
        if self.headers is None:
            return None
        return Message(
            decoded(self.headers),
            bytes(self.body),
            decoded(self.trailers or ()),
            self.is_complete,
        )


class _Router:
    """The router: its changes to a request before the service receives it."""

    def __init__(self, stream: "HttpStream") -> None:
        self._stream = stream

    def take_headers(self, headers: HeaderMap, *, end: bool) -> None:
        """See filterchain.Next."""
        stream = self._stream
        missing = next((name for name in _REQUIRED if not headers.get(name)), None)
        if not (headers.get(b":path") or b"").startswith(b"/") or not headers.get(
            b"x-forwarded-proto"
        ):
            stream.send_local_reply(404, b"", [], None, "route_not_found")  # then no route matches
        elif missing is not None:
            text = f"missing required header: {missing.decode()}"
            details = f"filter_removed_required_request_headers{{{text.replace(' ', '_')}}}"
            stream.send_local_reply(503, text.encode(), [], None, details)
        else:
            if headers.get(b"x-envoy-expected-rq-timeout-ms") is None:
                headers.add(b"x-envoy-expected-rq-timeout-ms", b"15000")
            stream.routed_at = stream.now
            stream.service.take_headers(headers, end=end)

    def take_data(self, data: bytes, *, end: bool) -> None:
        """See filterchain.Next."""
        self._stream.service.take_data(data, end=end)

    def take_trailers(self, trailers: HeaderMap) -> None:
        """See filterchain.Next."""
        self._stream.service.take_trailers(trailers)


_REQUIRED: Final = (b":method",)


class _Manager:
    """The connection manager: its changes to a response before the client receives it."""

    def __init__(self, stream: "HttpStream") -> None:
        self._stream = stream

    def take_headers(self, headers: HeaderMap, *, end: bool) -> None:
        """See filterchain.Next."""
        if not (headers.get(b":status") or b"").isdigit():
            self._stream.replace_response(
                502,
                b"missing required header: :status",
                "filter_removed_required_response_headers{missing_required_header:_:status}",
            )
        else:
            self._stream.client.take_headers(headers, end=end)

    def take_data(self, data: bytes, *, end: bool) -> None:
        """See filterchain.Next."""
        self._stream.client.take_data(data, end=end)

    def take_trailers(self, trailers: HeaderMap) -> None:
        """See filterchain.Next."""
        self._stream.client.take_trailers(trailers)


class HttpStream:
    """A stream and its context. One per request; `run` drives it to its end."""

    def __init__(
        self, vm: Vm, request: Request, response: Response, properties: Mapping[str, Value]
    ) -> None:
        self._vm = vm
        self.host: Host = vm.host
        self._request = request
        self._response = response
        self._given = properties
        self.service = Receiver()
        self.client = Receiver()
        self.is_local_reply = False
        self.is_reset = False
        self.has_timed_out = False
        self.is_filtered = True
        self.details = ""
        self.warnings: dict[str, None] = {}
        self._is_ending = False
        self._is_answered_locally = False
        """Whether a local reply gave the details, which may be empty."""
        self._prepared: LocalReply | None = None
        self._has_answered = False
        self._began = self.host.clock.now
        limit = vm.limits.body_bytes
        self.decoding = Direction(RequestFilter(self), _Router(self), limit=limit)
        self.encoding = Direction(ResponseFilter(self), _Manager(self), limit=limit)
        self.has_failed = False
        """Whether the stream was answered because the module failed."""
        self.context: Context | None = None
        self.request_headers = arriving(request, self.host.random)
        self.routed_at: int | None = None
        """When the request was passed on, in virtual nanoseconds."""
        # As it arrives: the filter's changes to the headers do not affect how Envoy answers.
        self.is_head = request.method == "HEAD"
        self._is_grpc = is_grpc(self.request_headers)

    @property
    def now(self) -> int:
        """Virtual nanoseconds since the start."""
        return self.host.clock.now

    # --- the course of a stream

    def run(self, idle_seconds: float) -> None:
        """Drive the stream to its end, and end its context."""
        host = self.host
        if not host.has_failed:
            self._create()
        elif self._vm.plugin.fail_open:
            self.is_filtered = False
        self._send_request()
        while not self._is_over():
            if self.service.is_complete and not self._has_answered and not self.is_local_reply:
                self._answer()
                continue
            if not self._wait(idle_seconds):
                break
        self._end()

    def _create(self) -> None:
        host = self.host
        try:
            self.context = host.new_context(self._vm.root.identifier)
            self.context.stream = self
        except ModuleFailed as failure:
            host.fail(failure)

    def _send_request(self) -> None:
        request = self._request
        trailers = trailer_map(MapKind.REQUEST_TRAILERS, request.trailers)
        pieces = request.pieces
        self.decoding.start(self.request_headers, end=not pieces and trailers is None)
        self._reply_if_prepared()
        for at, piece in enumerate(pieces):
            self._pass_time(request.pace)
            is_last = at == len(pieces) - 1 and trailers is None
            self.decoding.add_data(piece, end=is_last)
            self._reply_if_prepared()
        if trailers is not None:
            self._pass_time(request.pace)
            self.decoding.add_trailers(trailers)
            self._reply_if_prepared()

    def _pass_time(self, seconds: float) -> None:
        """Advance time before the next piece of a body."""
        if seconds:
            host = self.host
            deadline = host.clock.now + int(seconds * 1e9)
            host.run_until(self._is_over, deadline=deadline)
            host.clock.advance_to(deadline)
            self._reply_if_prepared()

    def _answer(self) -> None:
        """The service answers."""
        self._has_answered = True
        response = self._response
        self.details = "via_upstream"
        headers = HeaderMap(MapKind.RESPONSE_HEADERS, [(b":status", str(response.status).encode())])
        for name, value in encoded(response.headers):
            headers.add(name, value)
        headers.remove(b"keep-alive")
        headers.assign(b"x-envoy-upstream-service-time", b"0")
        trailers = trailer_map(MapKind.RESPONSE_TRAILERS, response.trailers)
        pieces = [] if self.is_head or response.status in (204, 304) else response.pieces
        self.encoding.start(headers, end=not pieces and trailers is None)
        for at, piece in enumerate(pieces):
            self._pass_time(response.pace)
            self.encoding.add_data(piece, end=at == len(pieces) - 1 and trailers is None)
        if trailers is not None:
            self._pass_time(response.pace)
            self.encoding.add_trailers(trailers)

    def _is_over(self) -> bool:
        return self.is_reset or self.client.is_complete

    def _wait(self, idle_seconds: float) -> bool:
        """Advance time until something happens; False if nothing will."""
        host, clock = self.host, self.host.clock
        before = self._progress()

        def has_moved() -> bool:
            return self._progress() != before

        deadline = clock.now + int(idle_seconds * 1e9)
        host.run_until(has_moved, deadline=deadline)
        self._reply_if_prepared()
        if has_moved():
            return True
        if self._is_over():
            return False
        clock.advance_to(deadline)
        return self._time_out()

    def _time_out(self) -> bool:
        """The filter did not resume the stream, or failed in a callback of its root context."""
        self.has_timed_out = True
        if self.encoding.has_passed_headers:
            self.reset("stream_idle_timeout")
        else:
            status = 504 if self.decoding.has_ended else 408
            self._start_reply(status, b"stream timeout", [], None, "stream_idle_timeout")
        return not self._is_over()

    def _progress(self) -> tuple[object, ...]:
        return (
            self.service.is_complete,
            len(self.service.body),
            self.service.headers is not None,
            self.client.is_complete,
            len(self.client.body),
            self.client.headers is not None,
            self.is_reset,
            self.is_local_reply,
        )

    def _end(self) -> None:
        """The log callback, then the end of the context."""
        context, host = self.context, self.host
        if self.client.headers is not None:
            sent(self.client.headers, host.clock.started_at + host.clock.now)
        if context is None:
            return
        self.decoding.is_aborted = self.encoding.is_aborted = True
        self._is_ending = True
        if context.is_created:
            context.log_maps = {
                MapType.REQUEST_HEADERS: self.request_headers,
                MapType.RESPONSE_HEADERS: self.client.headers,
                MapType.RESPONSE_TRAILERS: self.client.trailers,
            }
            host.callback(context, "proxy_on_log", context.identifier)
            context.log_maps = None
            context.is_destroyed = True
            host.callback(context, "proxy_on_done", context.identifier)
            host.callback(context, "proxy_on_delete", context.identifier)
        host.drop_context(context)
        deadline = host.clock.now + int(_DRAIN_SECONDS * 1e9)
        host.run_until(lambda: not host.has_events, deadline=deadline)

    # --- requests of the module (contexts.Stream)

    def continue_stream(self, stream: StreamType) -> None:
        """See contexts.Stream."""
        if stream is StreamType.REQUEST:
            self._resume(self.decoding, "request")
        elif stream is StreamType.RESPONSE:
            if self.encoding.headers is None and not self._is_ending:
                self._crash("it resumes a response that does not exist")
            else:
                self._resume(self.encoding, "response")

    def _resume(self, direction: Direction, what: str) -> None:
        if direction.is_in_filter and not direction.is_held and not direction.has_passed_headers:
            self.warnings[_TWICE.format(what)] = None
        direction.resume()

    def _crash(self, what: str) -> None:
        """The module crashes Envoy."""
        message = f"{what}, which crashes Envoy"
        self.host.fail(ModuleFailed(FailureKind.CRASH, message))
        self.reset("crash")

    def close_stream(self, stream: StreamType) -> None:
        """See contexts.Stream."""
        if self._is_ending:
            self._crash("it closes a stream that has ended")
        elif stream in (StreamType.REQUEST, StreamType.RESPONSE):
            self.reset("wasm_close_stream")

    def reset(self, details: str) -> None:
        """End the stream without a response."""
        self.details = self.details or details
        self.is_reset = True
        self.decoding.is_aborted = self.encoding.is_aborted = True

    def send_local_reply(
        self, status: int, body: bytes, headers: Pairs, grpc_status: int | None, details: str
    ) -> None:
        """See contexts.Stream."""
        if self._is_ending:
            self._crash("it answers a request that has ended")
        else:
            self._start_reply(status, body, headers, grpc_status, details)

    def fail_stream(self) -> None:
        """See contexts.Stream."""
        self.has_failed = True
        self._start_reply(503, b"", [], 14, "wasm_fail_stream")

    def added_trailers(self, kind: MapType) -> HeaderMap | None:
        """See contexts.Stream."""
        is_request = kind is MapType.REQUEST_TRAILERS
        direction = self.decoding if is_request else self.encoding
        context = self.context
        body = BufferType.HTTP_REQUEST_BODY if is_request else BufferType.HTTP_RESPONSE_BODY
        if context is None or context.bodies.get(body) is None or not direction.has_ended:
            return None
        if direction.trailers is None:
            made = MapKind.REQUEST_TRAILERS if is_request else MapKind.RESPONSE_TRAILERS
            direction.trailers = HeaderMap(made)
        return direction.trailers

    def properties(self) -> Mapping[str, Value]:
        """See contexts.Stream."""
        context = self.context
        maps: Mapping[MapType, HeaderMap | None] = {}
        if context is not None:
            maps = context.maps if context.log_maps is None else context.log_maps
        response = self.encoding.headers
        status = (response.get(b":status") if response is not None else None) or b""
        facts = attributes.HttpFacts(
            request_headers=maps.get(MapType.REQUEST_HEADERS),
            request_trailers=maps.get(MapType.REQUEST_TRAILERS),
            response_headers=maps.get(MapType.RESPONSE_HEADERS),
            response_trailers=maps.get(MapType.RESPONSE_TRAILERS),
            request_body=self.decoding.received,
            response_body=len(self.client.body),
            status=int(status) if status.isdigit() and len(status) == 3 else 0,
            is_routed=self.service.headers is not None,
            is_connected=self._has_answered or self._is_connected(),
            has_ended=self._is_over(),
            details=self.details if self.details or self._is_answered_locally else None,
            began=self.host.clock.started_at + self._began,
            elapsed=self.host.clock.now - self._began,
            state=context.state if context is not None else {},
        )
        found = merged(attributes.of_http(facts), self.host.environment.properties)
        return merged(found, self._given)

    def _is_connected(self) -> bool:
        """Whether Envoy has had time to connect to the service since it passed the request on."""
        now = self.host.clock.now
        return self.routed_at is not None and now - self.routed_at >= _CONNECT_NANOSECONDS

    def clear_route_cache(self) -> None:
        """See contexts.Stream."""

    # --- local replies

    def _start_reply(
        self, status: int, body: bytes, headers: Pairs, grpc_status: int | None, details: str
    ) -> None:
        if self.is_reset or self.client.is_complete:
            return
        self.details = details
        self._is_answered_locally = True
        if self.encoding.has_passed_headers:
            self.reset(details)
            return
        reply = self._reply(status, body, headers, grpc_status)
        self.decoding.is_aborted = True
        if self.encoding.headers is not None:  # replaces a response that the filter holds back
            self.encoding.is_aborted = True
            self.is_local_reply = True
            self._send_directly(reply)
        elif self.decoding.is_in_filter:
            self._prepared = self._prepared or reply
        else:
            self._send_through_filter(reply)

    def _reply_if_prepared(self) -> None:
        """Send the reply that a callback requested, now that it has returned."""
        reply, self._prepared = self._prepared, None
        if reply is not None:
            self._send_through_filter(reply)

    def _send_through_filter(self, reply: LocalReply) -> None:
        self.is_local_reply = True
        self.encoding.start(reply.headers, end=not reply.body)
        if reply.body:
            self.encoding.add_data(reply.body, end=True)

    def _send_directly(self, reply: LocalReply) -> None:
        self.client.take_headers(reply.headers, end=not reply.body)
        if reply.body:
            self.client.take_data(reply.body, end=True)

    def replace_response(self, status: int, body: bytes, details: str) -> None:
        """Reply instead of a response that was not yet sent."""
        self.details = details
        self.is_local_reply = True
        self.decoding.is_aborted = self.encoding.is_aborted = True
        self._send_directly(self._reply(status, body, [], None))

    def _reply(
        self, status: int, body: bytes, headers: Pairs, grpc_status: int | None
    ) -> LocalReply:
        return local_reply(
            status,
            body,
            headers,
            grpc_status=grpc_status,
            to_grpc=self._is_grpc,
            to_head=self.is_head,
        )

    def too_large(self, direction: Direction) -> None:
        """The filter keeps too much of a body."""
        if direction is self.decoding:
            self._start_reply(413, b"Payload Too Large", [], None, "request_payload_too_large")
        elif self.encoding.has_passed_headers:
            self.reset("response_payload_too_large")
        else:
            self._start_reply(500, b"Internal Server Error", [], None, "response_payload_too_large")

    def end_twice(self, direction: Direction) -> None:
        """See filterchain.Filter. Envoy knows then that the request is complete."""
        if direction is self.encoding:
            self._crash(
                "it resumes the response within the callback that gets its end, and does not pause"
            )

    def trailers_twice(self, direction: Direction, *, is_resumed: bool) -> None:
        """See filterchain.Filter."""
        if direction is self.decoding:
            self.warnings[_TRAILERS_TWICE] = None
        elif not is_resumed:  # else Envoy knows that the response is complete
            self._crash(
                "it resumes the response within the callback that gets its trailers, and does not pause"
            )
