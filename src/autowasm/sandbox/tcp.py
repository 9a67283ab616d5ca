"""One TCP connection through the filter, as Envoy's network filter manager drives it before a TCP proxy.

The caller defines the data that the client and the service send, and its order. Invariants: whatever the module does, `converse`
returns; bytes that the filter holds back are passed to it again, together with later ones, and stay with the filter until then.

Sources: envoy source/extensions/common/wasm/context.cc `onNewConnection`, `onData`, `onWrite`, `onEvent`, `onCloseTCP`;
source/common/network/filter_manager_impl.cc `onContinueReading`, `onWrite`; source/common/tcp_proxy/tcp_proxy.cc.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from autowasm.sandbox import attributes
from autowasm.sandbox.clusteranswers import Callout
from autowasm.sandbox.contexts import Context
from autowasm.sandbox.errors import ModuleFailed
from autowasm.sandbox.headers import HeaderMap, Pairs
from autowasm.sandbox.host import Host
from autowasm.sandbox.plugin import FailurePolicy
from autowasm.sandbox.properties import Value, merged
from autowasm.sandbox.protocol import BufferType, CloseType, MapType, StreamType
from autowasm.sandbox.state import LogLine, Metric
from autowasm.sandbox.vm import Failure, Vm

_DRAIN_SECONDS: Final = 60.0
_NO_PROPERTIES: Final[Mapping[str, Value]] = {}
_CONTINUE: Final = 0


class Side(StrEnum):
    """One side of the connection."""

    CLIENT = "client"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes that one side sends, `delay` seconds of virtual time after the previous ones; with `end`, its last ones."""

    side: Side
    data: bytes = b""
    end: bool = False
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Conversation:
    """The result of a connection.

    `to_service` and `to_client` are the bytes that each side received, `service_ended` and `client_ended` whether it received the end. `is_closed`:
    the filter closed the connection. `is_held`: the filter never let Envoy connect to the service. `is_filtered`: False if the filter failed before and fails open. Else as `http.Exchange`.
    """

    to_service: bytes
    to_client: bytes
    service_ended: bool
    client_ended: bool
    is_closed: bool
    is_held: bool
    is_filtered: bool
    failure: Failure | None
    log: tuple[LogLine, ...]
    metrics: tuple[Metric, ...]
    callouts: tuple[Callout, ...]
    doubts: tuple[str, ...]
    fuel: int


def converse(
    vm: Vm, sent: Sequence[Sent], *, properties: Mapping[str, Value] = _NO_PROPERTIES
) -> Conversation:
    """Pass a connection through the filter.

    `sent`: the data of both sides, in order; then the client ends the connection, and the service. `properties` replace those of the connection
    itself. Blocks; bounded by `limits.exchange_fuel` and `limits.seconds`. Raises UsageError before `vm.start`.
    """
    vm.reload_if_failed()
    host = vm.host
    host.instance.refuel(vm.limits.exchange_fuel)
    written, called, known = vm.log.written, len(host.callouts), len(host.doubts)
    connection = _Connection(vm, properties)
    connection.run(sent)
    return Conversation(
        to_service=bytes(connection.to_service),
        to_client=bytes(connection.to_client),
        service_ended=connection.service_ended,
        client_ended=connection.client_ended,
        is_closed=connection.is_closed,
        is_held=connection.is_held,
        is_filtered=connection.is_filtered,
        failure=Failure.of(host.failure),
        log=vm.log.since(written),
        metrics=tuple(host.metrics),
        callouts=tuple(host.callouts[called:]),
        doubts=tuple(host.doubts)[known:],
        fuel=vm.limits.exchange_fuel - host.instance.fuel,
    )


class _Connection:
    """A connection and its context."""

    def __init__(self, vm: Vm, properties: Mapping[str, Value]) -> None:
        self._vm = vm
        self._host: Host = vm.host
        self._given = properties
        self._context: Context | None = None
        self._reading = bytearray()
        """Bytes of the client that were not passed on."""
        self._writing = bytearray()
        """Bytes of the service that were not passed on."""
        self._ended: list[Side] = []
        """The sides that sent their last bytes, in order."""
        self._is_connected = False
        self._is_ending = False
        self._is_upstream_closed = False
        self.to_service = bytearray()
        self.to_client = bytearray()
        self.service_ended = False
        self.client_ended = False
        self.is_closed = False
        self.is_filtered = True

    def run(self, sent: Sequence[Sent]) -> None:
        """Drive the connection to its end: once all data is sent, the client and then the service end it."""
        host = self._host
        if not host.has_failed:
            self._open()
        elif self._vm.plugin.fail_open:
            self.is_filtered = False
            self._is_connected = True
        else:
            self.is_closed = True
        for each in sent:
            self._pass_time(each.delay)
            self._pass(each)
        host.run_until(self._is_over, deadline=self._deadline())
        for side in Side:
            self._pass(Sent(side, end=True))
        if self.is_closed or self._is_connected:
            self._close()
        host.run_until(lambda: not host.has_events, deadline=self._deadline())

    def _is_over(self) -> bool:
        return self.is_closed or not self._host.has_events

    @property
    def is_held(self) -> bool:
        """Whether the filter never let Envoy connect to the service."""
        return not self._is_connected and not self.is_closed

    def _pass_time(self, seconds: float) -> None:
        if seconds and not self.is_closed:
            host = self._host
            deadline = host.clock.now + int(seconds * 1e9)
            host.run_until(self._was_closed, deadline=deadline)
            host.clock.advance_to(deadline)

    def _was_closed(self) -> bool:
        return self.is_closed

    def _pass(self, sent: Sent) -> None:
        """Deliver the data that a side sends. Envoy reads nothing before it is connected to the service."""
        if self.is_closed or sent.side in self._ended:
            return
        if sent.end:
            self._ended.append(sent.side)
        if sent.side is Side.CLIENT:
            self._reading += sent.data
            if self._is_connected:
                self._read()
        elif self._is_connected:
            self._write(sent.data, end=sent.end)

    def _deadline(self) -> int:
        return self._host.clock.now + int(_DRAIN_SECONDS * 1e9)

    def _open(self) -> None:
        host = self._host
        try:
            context = self._context = host.new_context(self._vm.root.identifier)
        except ModuleFailed as failure:
            host.fail(failure)
            self.is_closed = True
            return
        context.stream = self
        host.callback(context, "proxy_on_context_create", context.identifier, context.parent)
        context.is_created = True
        if self._call(context, "proxy_on_new_connection"):
            self._is_connected = True

    def _read(self) -> None:
        """Pass the filter all bytes of the client that were not passed on."""
        context = self._context
        if context is None:
            self._pass_to_service()
            return
        context.bodies[BufferType.NETWORK_DOWNSTREAM_DATA] = self._reading
        size = len(self._reading)
        if self._call(context, "proxy_on_downstream_data", size, int(Side.CLIENT in self._ended)):
            context.bodies[BufferType.NETWORK_DOWNSTREAM_DATA] = None
            self._pass_to_service()

    def _pass_to_service(self) -> None:
        self.to_service += self._reading
        self._reading.clear()
        self.service_ended = Side.CLIENT in self._ended

    def _write(self, data: bytes, *, end: bool) -> None:
        self._writing += data
        context = self._context
        passes = True
        if context is not None:
            context.bodies[BufferType.NETWORK_UPSTREAM_DATA] = self._writing
            passes = self._call(context, "proxy_on_upstream_data", len(self._writing), int(end))
            if passes:
                context.bodies[BufferType.NETWORK_UPSTREAM_DATA] = None
        if passes:
            self.to_client += self._writing
            self._writing.clear()
            self.client_ended = self.client_ended or end
        if end and context is not None and not self._is_upstream_closed:
            self._is_upstream_closed = True
            name = "proxy_on_upstream_connection_close"
            self._host.callback(context, name, context.identifier, CloseType.UNKNOWN)

    def _call(self, context: Context, name: str, *arguments: int) -> bool:
        """Whether the data that arrived is passed on."""
        host = self._host
        if host.has_failed:
            return self._passes_failed(context)
        if not host.exports(name):
            return True
        result = host.invoke(context, name, context.identifier, *arguments)
        passes = self._passes(context, result)
        host.finish()
        return passes and not self.is_closed

    def _passes(self, context: Context, result: int) -> bool:
        return self._passes_failed(context) if self._host.has_failed else result == _CONTINUE

    def _passes_failed(self, context: Context) -> bool:
        if context.plugin.failure_policy is FailurePolicy.DEPRECATED_OPEN:
            return True
        self.fail_stream()
        return False

    def _close(self) -> None:
        context, host = self._context, self._host
        if context is None:
            return
        is_by_client = not self.is_closed and self._ended[-1:] == [Side.CLIENT]
        kind = CloseType.REMOTE if is_by_client else CloseType.LOCAL
        self._context = None
        number = context.identifier
        host.callback(context, "proxy_on_downstream_connection_close", number, kind)
        self._is_ending = True
        host.callback(context, "proxy_on_done", number)
        host.callback(context, "proxy_on_log", number)
        host.callback(context, "proxy_on_delete", number)
        host.drop_context(context)

    # --- contexts.Stream

    def continue_stream(self, stream: StreamType) -> None:
        """See contexts.Stream."""
        if stream is not StreamType.DOWNSTREAM or self.is_closed:
            return
        if self._is_connected:
            self._pass_to_service()
        else:
            self._is_connected = True
            if self._reading or self._ended:
                self._read()

    def close_stream(self, stream: StreamType) -> None:
        """See contexts.Stream."""
        if stream in (StreamType.DOWNSTREAM, StreamType.UPSTREAM) and not self._is_ending:
            self.is_closed = True

    def send_local_reply(
        self, status: int, body: bytes, headers: Pairs, grpc_status: int | None, details: str
    ) -> None:
        """See contexts.Stream. A TCP connection has no reply."""

    def fail_stream(self) -> None:
        """See contexts.Stream."""
        self.is_closed = True

    def added_trailers(self, kind: MapType) -> HeaderMap | None:
        """See contexts.Stream."""

    def properties(self) -> Mapping[str, Value]:
        """See contexts.Stream."""
        state = self._context.state if self._context is not None else {}
        found = merged(
            attributes.of_tcp(state, is_connected=self._is_connected),
            self._host.environment.properties,
        )
        return merged(found, self._given)

    def clear_route_cache(self) -> None:
        """See contexts.Stream."""
