"""One HTTP stream through the filter, as Envoy's connection manager and filter manager drive it.

The chain is the filter and the router. The caller provides the request, the response of the service, and the answers of
clusters; time is virtual. Invariants: whatever the module does, `exchange` returns, and its result is the one that Envoy would
pass on; a stream that the filter never resumes ends with Envoy's idle timeout.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from autowasm.sandbox.clusteranswers import Callout
from autowasm.sandbox.httpstream import HttpStream
from autowasm.sandbox.message import Message, Request, Response
from autowasm.sandbox.properties import Value
from autowasm.sandbox.state import LogLine, Metric
from autowasm.sandbox.vm import Failure, Vm

IDLE_SECONDS: Final = 300.0
"""Envoy's `stream_idle_timeout`: how long a filter may hold a stream back."""
_NO_PROPERTIES: Final[Mapping[str, Value]] = {}


@dataclass(frozen=True, slots=True)
class Exchange:
    """The result of a stream.

    `request`: as the service received it, None if it received nothing; `response`: as the client received it, None if the stream was reset before.
    `details` are Envoy's response code details (`%RESPONSE_CODE_DETAILS%`). `has_timed_out`: the filter did not resume the
    stream. `is_filtered`: the filter saw the request; False if it had failed before and fails open. `warnings` are sentences about
    actions of the filter that Envoy handles badly. `log`, `callouts` and `doubts`
    are those of this stream, `metrics` all those of the module; `fuel` in units.
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
        """The status that the client received; 0 if the stream was reset before."""
        return self.response.status if self.response is not None else 0


def exchange(
    vm: Vm,
    request: Request,
    response: Response,
    *,
    properties: Mapping[str, Value] = _NO_PROPERTIES,
    idle_seconds: float = IDLE_SECONDS,
) -> Exchange:
    """Pass a request through the filter, and the service's response back.

    `properties` override those of the stream itself, by the parts of their paths. If the filter did not start or has
    failed, the plugin's failure policy decides about the request. Blocks; bounded by `limits.exchange_fuel` and
    `limits.seconds`. Raises UsageError before `vm.start`.
    """
    vm.reload_if_failed()
    host = vm.host
    host.instance.refuel(vm.limits.exchange_fuel)
    written, called = vm.log.written, len(host.callouts)
    known = len(host.doubts)
    stream = HttpStream(vm, request, response, properties)
    stream.run(idle_seconds)
    return Exchange(
        request=stream.service.message(),
        response=stream.client.message(),
        is_local_reply=stream.is_local_reply,
        details=stream.details,
        has_timed_out=stream.has_timed_out,
        is_filtered=stream.is_filtered,
        failure=Failure.of(host.failure),
        warnings=tuple(stream.warnings),
        log=vm.log.since(written),
        metrics=tuple(host.metrics),
        callouts=tuple(host.callouts[called:]),
        doubts=tuple(host.doubts)[known:],
        fuel=vm.limits.exchange_fuel - host.instance.fuel,
    )
