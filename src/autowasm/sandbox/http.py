"""One HTTP stream through the filter, as Envoy's connection manager and filter manager drive it.

The chain is the filter and the router. The caller gives the request, the response of the service, and the answers of
clusters; time is virtual. Invariants: whatever the module does, `exchange` returns, and what it returns is what Envoy would
pass on; a stream that the filter never resumes ends with Envoy's idle timeout.

Sources: envoy source/extensions/common/wasm/context.cc `decodeHeaders` to `encodeTrailers`, `sendLocalResponse`, `failStream`,
`log`, `onDestroy`; source/common/http/filter_manager.cc `sendLocalReply`; source/common/http/utility.cc `prepareLocalReply`;
source/common/http/conn_manager_utility.cc; proxy-wasm-cpp-host src/context.cc `onRequestHeaders` and its like.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from autowasm.sandbox import attributes
from autowasm.sandbox.callouts import Callout
from autowasm.sandbox.contexts import Context
from autowasm.sandbox.errors import FailureKind, ModuleFailed
from autowasm.sandbox.filterchain import Direction
from autowasm.sandbox.headers import HeaderMap, MapKind
from autowasm.sandbox.host import Host
from autowasm.sandbox.logs import LogLine
from autowasm.sandbox.message import (
    Message,
    Request,
    Response,
    decoded,
    encoded,
    trailer_map,
)
from autowasm.sandbox.pairs import Pairs
from autowasm.sandbox.plugin import FailurePolicy
from autowasm.sandbox.properties import Value, merged
from autowasm.sandbox.protocol import (
    BufferType,
    DataStatus,
    HeadersStatus,
    MapType,
    StreamType,
    TrailersStatus,
)
from autowasm.sandbox.state import Metric
from autowasm.sandbox.vm import Vm, explained

IDLE_SECONDS: Final = 300.0
"""Envoy's `stream_idle_timeout`: how long a filter may hold a stream back."""
_DRAIN_SECONDS: Final = 60.0
"""How long, in virtual time, callouts are waited for that nothing waits for any more."""
_NO_PROPERTIES: Final[Mapping[str, Value]] = {}
_GRPC: Final = b"application/grpc"
_TWICE: Final = "it resumes the {} within the callback that gets its headers: if that does not pause, Envoy passes the headers on twice"


@dataclass(frozen=True, slots=True)
class Failure:
    """How the module failed in a stream. `message` is one sentence; `frames` are function names, innermost first."""

    kind: FailureKind
    message: str
    frames: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exchange:
    """What became of a stream.

    `request` is what the service got, None if nothing; `response` what the client got, None if the stream was reset before.
    `details` are Envoy's response code details (`%RESPONSE_CODE_DETAILS%`). `has_timed_out`: the filter did not resume the
    stream. `is_filtered`: the filter saw the request; False if it failed before and fails open. `warnings` are sentences about
    what the filter does and Envoy handles badly. `log`, `callouts` and `doubts`
    are those of this stream, `metrics` all of the module; `fuel` in units.
    """

    request: Message | None
    response: Message | None
    is_local_reply: bool
    details: str
    has_timed_out: bool
    is_filtered: bool
    failure: Failure | None
    warnings: tuple[str, ...]
    log: tuple[LogLine, ...]
    metrics: tuple[Metric, ...]
    callouts: tuple[Callout, ...]
    doubts: tuple[str, ...]
    fuel: int

    @property
    def status(self) -> int:
        """The status that the client got; 0 if the stream was reset before."""
        return self.response.status if self.response is not None else 0


def exchange(
    vm: Vm,
    request: Request,
    response: Response,
    *,
    properties: Mapping[str, Value] = _NO_PROPERTIES,
    idle_seconds: float = IDLE_SECONDS,
) -> Exchange:
    """Let a request pass through the filter, and the response of the service back.

    `properties` replace those that the stream has by itself, by the parts of their paths. Blocks; bounded by
    `limits.exchange_fuel` and `limits.seconds`. Raises UsageError before `vm.start`.
    """
    vm.reload_if_failed()
    host = vm.host
    host.instance.refuel(vm.limits.exchange_fuel)
    written, called = vm.log.written, len(host.callouts)
    known = len(host.doubts)
    stream = HttpStream(vm, request, response, properties)
    stream.run(idle_seconds)
    failure = host.failure
    return Exchange(
        request=stream.service.message(),
        response=stream.client.message(),
        is_local_reply=stream.is_local_reply,
        details=stream.details,
        has_timed_out=stream.has_timed_out,
        is_filtered=stream.is_filtered,
        failure=None
        if failure is None
        else Failure(failure.kind, explained(failure), failure.frames),
        warnings=tuple(stream.warnings),
        log=vm.log.since(written),
        metrics=tuple(host.metrics),
        callouts=tuple(host.callouts[called:]),
        doubts=tuple(host.doubts)[known:],
        fuel=vm.limits.exchange_fuel - host.instance.fuel,
    )


class _Receiver:
    """The service or the client: keeps what it gets."""

    def __init__(self) -> None:
        self.headers: HeaderMap | None = None
        self.trailers: HeaderMap | None = None
        self.body = bytearray()
        self.is_complete = False

    def take_headers(self, headers: HeaderMap, *, end: bool) -> None:
        self.headers = headers
        self.is_complete = end

    def take_data(self, data: bytes, *, end: bool) -> None:
        self.body += data
        self.is_complete = self.is_complete or end

    def take_trailers(self, trailers: HeaderMap) -> None:
        self.trailers = trailers
        self.is_complete = True

    def message(self) -> Message | None:
        if self.headers is None:
            return None
        return Message(
            decoded(self.headers),
            bytes(self.body),
            decoded(self.trailers or ()),
            self.is_complete,
        )


class _Router:
    """The router: what it does to a request before the service gets it."""

    def __init__(self, stream: "HttpStream") -> None:
        self._stream = stream

    def take_headers(self, headers: HeaderMap, *, end: bool) -> None:
        stream = self._stream
        missing = next((name for name in _REQUIRED if not headers.get(name)), None)
        if not headers.get(b":path") or not headers.get(b"x-forwarded-proto"):
            stream.send_local_reply(404, b"", [], None, "route_not_found")  # no route matches then
        elif missing is not None:
            text = f"missing required header: {missing.decode()}"
            details = f"filter_removed_required_request_headers{{{text.replace(' ', '_')}}}"
            stream.send_local_reply(503, text.encode(), [], None, details)
        else:
            if headers.get(b"x-envoy-expected-rq-timeout-ms") is None:
                headers.add(b"x-envoy-expected-rq-timeout-ms", b"15000")
            stream.service.take_headers(headers, end=end)

    def take_data(self, data: bytes, *, end: bool) -> None:
        self._stream.service.take_data(data, end=end)

    def take_trailers(self, trailers: HeaderMap) -> None:
        self._stream.service.take_trailers(trailers)


_REQUIRED: Final = (b":method",)


class _Manager:
    """The connection manager: what it does to a response before the client gets it."""

    def __init__(self, stream: "HttpStream") -> None:
        self._stream = stream

    def take_headers(self, headers: HeaderMap, *, end: bool) -> None:
        if not (headers.get(b":status") or b"").isdigit():
            self._stream.replace_response(
                502,
                b"missing required header: :status",
                "filter_removed_required_response_headers{missing_required_header:_:status}",
            )
        else:
            self._stream.client.take_headers(headers, end=end)

    def take_data(self, data: bytes, *, end: bool) -> None:
        self._stream.client.take_data(data, end=end)

    def take_trailers(self, trailers: HeaderMap) -> None:
        self._stream.client.take_trailers(trailers)


@dataclass(frozen=True, slots=True)
class _LocalReply:
    headers: HeaderMap
    body: bytes


class HttpStream:
    """A stream and its context. One per request; `run` drives it to its end."""

    def __init__(
        self, vm: Vm, request: Request, response: Response, properties: Mapping[str, Value]
    ) -> None:
        self._vm = vm
        self._host: Host = vm.host
        self._request = request
        self._response = response
        self._given = properties
        self.service = _Receiver()
        self.client = _Receiver()
        self.is_local_reply = False
        self.is_reset = False
        self.has_timed_out = False
        self.is_filtered = True
        self.details = ""
        self.warnings: dict[str, None] = {}
        self._is_ending = False
        self._prepared: _LocalReply | None = None
        self._has_answered = False
        self._began = self._host.clock.now
        limit = vm.limits.body_bytes
        self.decoding = Direction(_RequestFilter(self), _Router(self), limit=limit)
        self.encoding = Direction(_ResponseFilter(self), _Manager(self), limit=limit)
        self.has_failed = False
        """Whether the stream was answered because the module failed."""
        self.context: Context | None = None
        self.request_headers = _arriving(request, self._host)
        self.is_head = request.method == "HEAD"

    # --- the course of a stream

    def run(self, idle_seconds: float) -> None:
        """Drive the stream to its end, and end its context."""
        host = self._host
        if host.has_failed and self._vm.plugin.fail_open:
            self.is_filtered = False
        else:
            self._create()
        self._send_request()
        while not self._is_over():
            if self.service.is_complete and not self._has_answered and not self.is_local_reply:
                self._answer()
                continue
            if not self._wait(idle_seconds):
                break
        self._end()

    def _create(self) -> None:
        host = self._host
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
        """Let time pass before the next piece of a body."""
        if seconds:
            host = self._host
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
        """Let time pass until something moves; False when nothing will."""
        host, clock = self._host, self._host.clock
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
        is_second = self.has_timed_out
        self.has_timed_out = True
        if is_second or self.encoding.has_passed_headers:
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
        context, host = self.context, self._host
        if self.client.headers is not None:
            _sent(self.client.headers, host)
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

    # --- what the module asks for (contexts.Stream)

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
        """The module makes Envoy crash."""
        message = f"{what}, and Envoy crashes at that"
        self._host.fail(ModuleFailed(FailureKind.CRASH, message))
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
        is_last_piece = direction.is_in_filter and direction.has_ended
        if context is None or context.bodies.get(body) is None or not is_last_piece:
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
            has_answered=self._has_answered,
            has_ended=self._is_over(),
            details=self.details,
            elapsed=self._host.clock.now - self._began,
            state=context.state if context is not None else {},
        )
        found = merged(attributes.of_http(facts), self._host.environment.properties)
        return merged(found, self._given)

    def clear_route_cache(self) -> None:
        """See contexts.Stream."""

    # --- local replies

    def _start_reply(
        self, status: int, body: bytes, headers: Pairs, grpc_status: int | None, details: str
    ) -> None:
        if self.is_reset or self.client.is_complete:
            return
        self.details = details
        if self.encoding.has_passed_headers:
            self.reset(details)
            return
        reply = self._reply(status, body, headers, grpc_status)
        self.decoding.is_aborted = True
        if self.encoding.headers is not None:  # a response that the filter holds back is replaced
            self.encoding.is_aborted = True
            self.is_local_reply = True
            self._send_directly(reply)
        elif self.decoding.is_in_filter:
            self._prepared = self._prepared or reply
        else:
            self._send_through_filter(reply)

    def _reply(
        self, status: int, body: bytes, headers: Pairs, grpc_status: int | None
    ) -> _LocalReply:
        made = HeaderMap(MapKind.RESPONSE_HEADERS, [(b":status", str(status).encode())])
        for name, value in headers:
            made.add(name, value)
        if _is_grpc(self.request_headers):
            made.set(b":status", b"200")
            made.set(b"content-type", _GRPC)
            if made.get(b"grpc-status") is None:
                code = grpc_status if grpc_status is not None else attributes.grpc_status(status)
                made.set(b"grpc-status", str(code).encode())
            if body and not self.is_head:
                made.set(b"grpc-message", _percent_encoded(body))
            made.remove(b"content-length")
            return _LocalReply(made, b"")
        if body:
            made.set(b"content-length", str(len(body)).encode())
            if made.get(b"content-type") is None:
                made.add(b"content-type", b"text/plain")
        else:
            made.remove(b"content-length")
            made.remove(b"content-type")
        return _LocalReply(made, b"" if self.is_head else body)

    def _reply_if_prepared(self) -> None:
        """Send the reply that a callback asked for, now that it returned."""
        reply, self._prepared = self._prepared, None
        if reply is not None:
            self._send_through_filter(reply)

    def _send_through_filter(self, reply: _LocalReply) -> None:
        self.is_local_reply = True
        self.encoding.start(reply.headers, end=not reply.body)
        if reply.body:
            self.encoding.add_data(reply.body, end=True)

    def _send_directly(self, reply: _LocalReply) -> None:
        self.client.take_headers(reply.headers, end=not reply.body)
        if reply.body:
            self.client.take_data(reply.body, end=True)

    def replace_response(self, status: int, body: bytes, details: str) -> None:
        """Answer in place of a response that nobody got yet."""
        self.details = details
        self.is_local_reply = True
        self.decoding.is_aborted = self.encoding.is_aborted = True
        self._send_directly(self._reply(status, body, [], None))

    def too_large(self, direction: Direction) -> None:
        """The filter keeps too much of a body."""
        if direction is self.decoding:
            self._start_reply(413, b"Payload Too Large", [], None, "request_payload_too_large")
        elif self.encoding.has_passed_headers:
            self.reset("response_payload_too_large")
        else:
            self._start_reply(500, b"Internal Server Error", [], None, "response_payload_too_large")


class _WasmFilter:
    """What both directions have: calls of filter callbacks, and what becomes of a failure."""

    headers_map: MapType
    trailers_map: MapType
    body: BufferType
    names: tuple[str, str, str]

    def __init__(self, stream: HttpStream) -> None:
        self._stream = stream
        self._is_buffering = False

    @property
    def _host(self) -> Host:
        return self._stream._host

    def _direction(self) -> Direction:
        raise NotImplementedError

    def _is_bypassed(self) -> bool:
        raise NotImplementedError

    def _call(self, context: Context, name: str, *arguments: int) -> int | None:
        """The result of a callback; CONTINUE (0) without one. None if nothing is to be passed on."""
        host = self._host
        if host.has_failed:
            return self._failed(context)
        if not host.exports(name):
            return 0
        result = host.invoke(context, name, context.identifier, *arguments)
        status = self._status(context, result)
        host.finish()
        return status

    def _status(self, context: Context, result: int) -> int | None:
        """What the result of a callback means, once it returned."""
        if self._host.has_failed:
            return self._failed(context)
        return None if self._host.stop_iteration else result

    def _failed(self, context: Context) -> int | None:
        """The module failed (`CHECK_FAIL`)."""
        if context.plugin.failure_policy is FailurePolicy.DEPRECATED_OPEN:
            return 0
        if not context.has_failed_stream:
            context.has_failed_stream = True
            self._stream.fail_stream()
        return None

    def on_headers(self, headers: HeaderMap, *, end: bool) -> HeadersStatus:
        """See filterchain.Filter."""
        context = self._stream.context
        if context is None or self._is_bypassed():
            return HeadersStatus.CONTINUE
        context.maps[self.headers_map] = headers
        sizes = (len(headers),) if self._host.abi == "0.1.0" else (len(headers), int(end))
        status = _headers_status(self._call(context, self.names[0], *sizes), context)
        if status is HeadersStatus.CONTINUE:
            context.maps[self.headers_map] = None
        return status

    def on_data(self, data: bytearray, *, end: bool) -> DataStatus:
        """See filterchain.Filter."""
        context, direction = self._stream.context, self._direction()
        if context is None or self._is_bypassed():
            return DataStatus.CONTINUE
        if self._is_buffering and data is not direction.buffered:
            direction.buffer_now(data)
            if direction.is_aborted:
                return DataStatus.STOP_ITERATION_AND_BUFFER
        readable = direction.buffered if self._is_buffering else data
        context.bodies[self.body] = readable
        size = len(readable) if readable is not None else 0
        status = _data_status(self._call(context, self.names[1], size, int(end)))
        self._is_buffering = status is DataStatus.STOP_ITERATION_AND_BUFFER
        if status is DataStatus.CONTINUE:
            context.bodies[self.body] = None
        return status

    def on_trailers(self, trailers: HeaderMap) -> TrailersStatus:
        """See filterchain.Filter."""
        context = self._stream.context
        if context is None or self._is_bypassed():
            return TrailersStatus.CONTINUE
        context.maps[self.trailers_map] = trailers
        result = self._call(context, self.names[2], len(trailers))
        if result == TrailersStatus.CONTINUE:
            context.maps[self.trailers_map] = None
            return TrailersStatus.CONTINUE
        return TrailersStatus.STOP_ITERATION

    def on_too_large(self) -> None:
        """See filterchain.Filter."""
        self._stream.too_large(self._direction())


class _RequestFilter(_WasmFilter):
    headers_map = MapType.REQUEST_HEADERS
    trailers_map = MapType.REQUEST_TRAILERS
    body = BufferType.HTTP_REQUEST_BODY
    names = ("proxy_on_request_headers", "proxy_on_request_body", "proxy_on_request_trailers")

    def _direction(self) -> Direction:
        return self._stream.decoding

    def _is_bypassed(self) -> bool:
        return not self._stream.is_filtered

    def on_headers(self, headers: HeaderMap, *, end: bool) -> HeadersStatus:
        """Create the module's context first."""
        context, host = self._stream.context, self._host
        if context is None:
            if self._stream.is_filtered and host.has_failed:  # not even a context could be made
                self._stream.fail_stream()
                return HeadersStatus.STOP_ALL_ITERATION_AND_WATERMARK
            return HeadersStatus.CONTINUE
        host.callback(context, "proxy_on_context_create", context.identifier, context.parent)
        context.is_created = True
        return super().on_headers(headers, end=end)


class _ResponseFilter(_WasmFilter):
    headers_map = MapType.RESPONSE_HEADERS
    trailers_map = MapType.RESPONSE_TRAILERS
    body = BufferType.HTTP_RESPONSE_BODY
    names = ("proxy_on_response_headers", "proxy_on_response_body", "proxy_on_response_trailers")

    def _direction(self) -> Direction:
        return self._stream.encoding

    def _is_bypassed(self) -> bool:
        context = self._stream.context
        is_created = context is not None and context.is_created
        return not self._stream.is_filtered or not is_created or self._stream.has_failed


def _headers_status(result: int | None, context: Context) -> HeadersStatus:
    """What a headers callback returned, as Envoy reads it (`convertVmCallResultToFilterHeadersStatus`)."""
    if result is None or result > HeadersStatus.STOP_ALL_ITERATION_AND_WATERMARK:
        return HeadersStatus.STOP_ALL_ITERATION_AND_WATERMARK
    status = HeadersStatus(result)
    if status is HeadersStatus.CONTINUE_AND_END_STREAM:
        return HeadersStatus.CONTINUE
    if (
        status is HeadersStatus.STOP_ITERATION
        and not context.plugin.allow_on_headers_stop_iteration
    ):
        return HeadersStatus.STOP_ALL_ITERATION_AND_WATERMARK
    return status


def _data_status(result: int | None) -> DataStatus:
    if result is None or result > DataStatus.STOP_ITERATION_NO_BUFFER:
        return DataStatus.STOP_ITERATION_NO_BUFFER
    return DataStatus(result)


# --- what Envoy itself does to headers


_HOP_BY_HOP: Final = (
    *(b"connection", b"upgrade", b"keep-alive", b"proxy-connection", b"transfer-encoding"),
)
_INTERNAL: Final = (
    *(b"x-envoy-internal", b"x-envoy-retry-on", b"x-envoy-retry-grpc-on", b"x-envoy-max-retries"),
    *(b"x-envoy-retriable-status-codes", b"x-envoy-retriable-header-names"),
    *(b"x-envoy-upstream-alt-stat-name", b"x-envoy-upstream-rq-timeout-ms"),
    *(b"x-envoy-upstream-rq-per-try-timeout-ms", b"x-envoy-upstream-rq-timeout-alt-response"),
    *(b"x-envoy-expected-rq-timeout-ms", b"x-envoy-force-trace", b"x-envoy-ip-tags"),
    *(b"x-envoy-original-url", b"x-envoy-hedge-on-per-try-timeout"),
)
"""Headers that Envoy takes from internal clients only (`ConnectionManagerUtility::cleanInternalHeaders`)."""


def _arriving(request: Request, host: Host) -> HeaderMap:
    """The headers as the first filter sees them."""
    sent = HeaderMap(MapKind.REQUEST_HEADERS, encoded(request.headers))
    scheme = sent.get(b"x-forwarded-proto") or b""
    made = HeaderMap(MapKind.REQUEST_HEADERS)
    for name, value in encoded(
        [(":authority", request.authority), (":path", request.path), (":method", request.method)]
    ):
        made.add(name, value)
    made.add(b":scheme", scheme if scheme in (b"http", b"https") else request.scheme.encode())
    for name, value in sent:
        if name not in _HOP_BY_HOP and name not in _INTERNAL:
            made.add(name, value)
    if made.get(b"x-forwarded-proto") is None:
        made.add(b"x-forwarded-proto", request.scheme.encode())
    if made.get(b"x-request-id") is None:
        identifier = uuid.UUID(bytes=host.random.randbytes(16), version=4)
        made.add(b"x-request-id", str(identifier).encode())
    return made


def _sent(headers: HeaderMap, host: Host) -> None:
    """What the connection manager adds for the client."""
    for name in (b"connection", b"upgrade", b"transfer-encoding"):
        headers.remove(name)
    if headers.get(b"date") is None:
        headers.add(b"date", attributes.http_date(host.clock.now))
    headers.assign(b"server", b"envoy")


def _is_grpc(headers: HeaderMap) -> bool:
    kind = headers.get(b"content-type") or b""
    return kind == _GRPC or kind.startswith(_GRPC + b"+")


def _percent_encoded(text: bytes) -> bytes:
    return b"".join(
        bytes([byte]) if 0x20 <= byte < 0x7F and byte != 0x25 else b"%%%02X" % byte for byte in text
    )
