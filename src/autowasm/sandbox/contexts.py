"""Contexts: the VM context (id 0), the plugin's root context, and one context for each stream, with the data that a module can access.

Invariant: a map or a buffer is accessible only while Envoy has it: in the callback to which it belongs, and afterwards while the filter holds the
stream there.

Sources: proxy-wasm-cpp-host include/proxy-wasm/context.h; envoy source/extensions/common/wasm/context.cc `getMap`,
`getConstMap`, `getBuffer`, `Buffer::copyFrom`, `findValue`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from autowasm.sandbox.clusteranswers import Callout
from autowasm.sandbox.headers import HeaderMap, Pairs
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.properties import Value
from autowasm.sandbox.protocol import BufferType, MapType, Result, StreamType


@dataclass(slots=True)
class Buffer:
    """The data that `get_buffer_bytes` reads. `mutable` is the body or data that `set_buffer_bytes` changes; None if it is read-only."""

    data: bytes = b""
    mutable: bytearray | None = None

    def __len__(self) -> int:
        return len(self.data if self.mutable is None else self.mutable)

    def slice(self, start: int, length: int) -> bytes:
        """A copy of some of the bytes."""
        return bytes((self.data if self.mutable is None else self.mutable)[start : start + length])

    def replace(self, start: int, length: int, data: bytes) -> Result:
        """Replace bytes at the beginning, or append; Envoy supports nothing in between."""
        if self.mutable is None:
            return Result.BAD_ARGUMENT
        if start == 0:
            self.mutable[:length] = data
        elif start >= len(self.mutable):
            self.mutable += data
        else:
            return Result.BAD_ARGUMENT
        return Result.OK


class Stream(Protocol):
    """The operations of a driver's stream (`http.py`, `tcp.py`) for its context. All but properties run after the call returns."""

    def continue_stream(self, stream: StreamType) -> None:
        """Resume."""

    def close_stream(self, stream: StreamType) -> None:
        """Reset."""

    def send_local_reply(
        self, status: int, body: bytes, headers: Pairs, grpc_status: int | None, details: str
    ) -> None:
        """Reply instead of the service."""

    def fail_stream(self) -> None:
        """End the stream because the module failed."""

    def added_trailers(self, kind: MapType) -> HeaderMap | None:
        """Trailers that the module adds in the last piece of a body; None at any other time."""

    def properties(self) -> Mapping[str, Value]:
        """The current properties of the stream, by the first part of the path."""

    def clear_route_cache(self) -> None:
        """Choose the route again."""


@dataclass(slots=True)
class Context:
    """One context. `parent` is the root context of a stream, 0 for a root context."""

    identifier: int
    parent: int
    plugin: Plugin
    stream: Stream | None = None
    is_created: bool = False
    is_destroyed: bool = False
    has_failed_stream: bool = False
    maps: dict[MapType, HeaderMap | None] = field(default_factory=dict)
    """The maps within reach. In the log callback `log_maps` replaces them, for reading."""
    log_maps: dict[MapType, HeaderMap | None] | None = None
    bodies: dict[BufferType, bytearray | None] = field(default_factory=dict)
    last: Buffer = field(default_factory=Buffer)
    """The data that was read last; `CALL_DATA` returns it again."""
    state: dict[bytes, bytes] = field(default_factory=dict)
    """The properties that the module set with `set_property`. Streams have their own."""
    http_callouts: dict[int, Callout] = field(default_factory=dict)
    grpc_calls: dict[int, Callout] = field(default_factory=dict)
    grpc_streams: dict[int, "GrpcStream"] = field(default_factory=dict)
    http_response: "CallResponse | None" = None
    grpc_message: bytes | None = None
    grpc_initial_metadata: HeaderMap | None = None
    grpc_trailing_metadata: HeaderMap | None = None
    status: tuple[int, bytes] = (0, b"")

    @property
    def is_root(self) -> bool:
        """Whether this is a root context, or the VM context."""
        return self.parent == 0

    @property
    def log_prefix(self) -> str:
        """The prefix that Envoy writes before a log line of the context."""
        return self.plugin.root_log_prefix if self.is_root else self.plugin.log_prefix

    def mutable_map(self, kind: MapType) -> HeaderMap | None:
        """The map, if the module may change it now."""
        if kind > MapType.RESPONSE_TRAILERS:
            return None
        found = self.maps.get(kind)
        if found is None and self.stream is not None and kind in _TRAILERS:
            found = self.maps[kind] = self.stream.added_trailers(kind)
        return found

    def const_map(self, kind: MapType, root: "Context") -> HeaderMap | None:
        """The map, if the module may read it now."""
        match kind:
            case MapType.GRPC_RECEIVE_INITIAL_METADATA:
                return root.grpc_initial_metadata
            case MapType.GRPC_RECEIVE_TRAILING_METADATA:
                return root.grpc_trailing_metadata
            case MapType.HTTP_CALL_RESPONSE_HEADERS:
                return root.http_response.headers if root.http_response else None
            case MapType.HTTP_CALL_RESPONSE_TRAILERS:
                return root.http_response.trailers if root.http_response else None
        return (self.maps if self.log_maps is None else self.log_maps).get(kind)

    def buffer(
        self, kind: BufferType, root: "Context", *, configuring: bool, vm: bytes
    ) -> Buffer | None:
        """The buffer; None if Envoy has none. `configuring`: the plugin's configuration is accessible; `vm` is the VM's."""
        match kind:
            case BufferType.VM_CONFIGURATION:
                self.last = Buffer(vm)
            case BufferType.PLUGIN_CONFIGURATION:
                if not configuring:
                    return None
                self.last = Buffer(self.plugin.configuration or b"")
            case BufferType.HTTP_CALL_RESPONSE_BODY:
                if root.http_response is None:
                    return None
                self.last = Buffer(root.http_response.body)
            case BufferType.GRPC_RECEIVE_BUFFER:
                message = root.grpc_message
                self.last = Buffer(mutable=None if message is None else bytearray(message))
            case BufferType.CALL_DATA:
                pass
            case _:
                self.last = Buffer(mutable=self.bodies.get(kind))
        return self.last

    def release(self) -> None:
        """Forget the maps and bodies of the request, as Envoy does when the module resumes a stream."""
        for kind in (MapType.REQUEST_HEADERS, MapType.REQUEST_TRAILERS):
            self.maps[kind] = None
        self.bodies[BufferType.HTTP_REQUEST_BODY] = None


_TRAILERS = (MapType.REQUEST_TRAILERS, MapType.RESPONSE_TRAILERS)


@dataclass(slots=True)
class CallResponse:
    """The response to a callout, during its callback."""

    headers: HeaderMap
    body: bytes
    trailers: HeaderMap | None


@dataclass(slots=True)
class GrpcStream:
    """An open gRPC stream."""

    callout: Callout
    is_local_closed: bool = False
    is_remote_closed: bool = False
