"""The filter in the chain: calls of the module's HTTP callbacks, and the data that it can access then.

Invariant: after the module has failed, no callback reaches it, and the plugin's failure policy decides.

Sources: envoy source/extensions/common/wasm/context.cc `decodeHeaders` to `encodeTrailers`; proxy-wasm-cpp-host src/context.cc
`onRequestHeaders` and its like, `CHECK_FAIL`, `convertVmCallResultToFilterHeadersStatus`.
"""

from abc import ABC, abstractmethod
from typing import Protocol

from autowasm.sandbox.contexts import Buffer, Context
from autowasm.sandbox.filterchain import Direction
from autowasm.sandbox.headers import HeaderMap
from autowasm.sandbox.host import Host
from autowasm.sandbox.plugin import FailurePolicy
from autowasm.sandbox.protocol import (
    BufferType,
    DataStatus,
    HeadersStatus,
    MapType,
    TrailersStatus,
)


class FilteredStream(Protocol):
    """The stream of a filter."""

    host: Host
    context: Context | None
    decoding: Direction
    encoding: Direction
    is_filtered: bool
    has_failed: bool
    """Whether it was answered because the module failed."""

    def fail_stream(self) -> None:
        """Reply, because the module failed."""

    def too_large(self, direction: Direction) -> None:
        """The filter keeps too much of a body."""

    def end_twice(self, direction: Direction) -> None:
        """See filterchain.Filter."""

    def trailers_twice(self, direction: Direction, *, is_resumed: bool) -> None:
        """See filterchain.Filter."""


class WasmFilter(ABC):
    """The base of both directions: calls of filter callbacks, and the handling of failures."""

    headers_map: MapType
    trailers_map: MapType
    body: BufferType
    names: tuple[str, str, str]

    def __init__(self, stream: FilteredStream) -> None:
        self._stream = stream
        self._is_buffering = False

    @property
    def _host(self) -> Host:
        return self._stream.host

    @abstractmethod
    def _direction(self) -> Direction:
        """The direction of the stream that contains this filter."""

    @abstractmethod
    def _is_bypassed(self) -> bool:
        """Whether the module is no longer called, or was never called."""

    def _call(self, context: Context, name: str, *arguments: int) -> int | None:
        """The result of a callback; CONTINUE (0) if there is no callback. None if nothing may be passed on."""
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
        """The meaning of a callback's result, once it has returned."""
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
        context.last = Buffer(mutable=readable)  # Envoy reads its size
        size = len(readable) if readable is not None else 0
        status = _data_status(self._call(context, self.names[1], size, int(end)))
        self._is_buffering = status is DataStatus.STOP_ITERATION_AND_BUFFER
        if self._is_buffering:  # the kept bytes stay accessible, with this piece
            context.bodies[self.body] = direction.keep()
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

    def on_end_twice(self) -> None:
        """See filterchain.Filter."""
        self._stream.end_twice(self._direction())

    def on_trailers_twice(self, *, is_resumed: bool) -> None:
        """See filterchain.Filter."""
        self._stream.trailers_twice(self._direction(), is_resumed=is_resumed)


class RequestFilter(WasmFilter):
    """The filter for the request."""

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
            if self._stream.is_filtered and host.has_failed:  # not even a context could be created
                self._stream.fail_stream()
                return HeadersStatus.STOP_ALL_ITERATION_AND_WATERMARK
            return HeadersStatus.CONTINUE
        host.callback(context, "proxy_on_context_create", context.identifier, context.parent)
        context.is_created = True
        return super().on_headers(headers, end=end)


class ResponseFilter(WasmFilter):
    """The filter for the response."""

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
    """The result of a headers callback, as Envoy interprets it (`convertVmCallResultToFilterHeadersStatus`)."""
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
