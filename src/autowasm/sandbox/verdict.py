"""The verdict on a plugin: whether Envoy can start the module with this configuration.

Invariant: `Outcome.REFUSED` is given only if every Envoy would refuse, too. It is never given for a limit of the sandbox, nor after
the module requested something that only the user's Envoy has (a cluster, a property of the node, shared data): that is
`DOUBTFUL`. A verdict is JSON, because it crosses a process boundary.
"""

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Final

import msgspec

from autowasm.envoyversion import OLDEST_ENVOY, EnvoyVersion
from autowasm.sandbox.engine import Compiled
from autowasm.sandbox.errors import CannotCompile, FailureKind, SandboxError
from autowasm.sandbox.http import exchange
from autowasm.sandbox.message import Request, Response
from autowasm.sandbox.plugin import ENVOY_MEMORY_BYTES, Plugin, SandboxLimits
from autowasm.sandbox.state import START_NANOSECONDS
from autowasm.sandbox.vm import Started, StartFailure, Vm

_LIMITS: Final = SandboxLimits()


class Outcome(StrEnum):
    """The result of the start in the sandbox. The values are stable."""

    STARTS = "Starts"
    REFUSED = "Refused"
    """Every sidecar would answer 503, or pass requests without the filter if it fails open; or it would crash."""
    DOUBTFUL = "Doubtful"
    """It may work in Envoy or not."""


class Doubt(StrEnum):
    """The reason why a verdict is `DOUBTFUL`. The values are stable."""

    REQUEST_FAILED = "request failed"
    """The module starts, and fails on a request."""
    REQUEST_HELD = "request held"
    """The module starts, and holds a request forever."""
    CALLOUT = "callout"
    """The module called a cluster, and its behaviour depends on the answer."""
    ENVIRONMENT = "environment"
    """The module refused after it asked for something else that only the user's Envoy knows."""
    LIMIT = "limit"
    """Fuel, time, memory or another bound of the sandbox was used up."""
    UNSUPPORTED = "unsupported"
    """The sandbox lacks a feature that the module needs."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of `judge`.

    `message` is one sentence, empty for STARTS. `phase` and `kind` show where and how the module failed (values of
    `StartPhase`, or "request", and of `FailureKind`); `log` holds its last log lines, made printable; `asked` holds its requests
    to its environment; `fuel` is in units.
    """

    outcome: Outcome
    message: str = ""
    doubt: Doubt | None = None
    phase: str = ""
    kind: FailureKind | None = None
    frames: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    fuel: int = 0

    def to_json(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(asdict(self))

    @staticmethod
    def from_json(data: bytes) -> "Verdict":
        """From JSON. Raises SandboxError for anything that `to_json` does not write."""
        try:
            return _VERDICT.decode(data)
        except msgspec.MsgspecError as error:
            raise SandboxError(f"not a verdict: {error}") from error


_VERDICT: Final = msgspec.json.Decoder(Verdict)


def judge(
    compiled: Compiled,
    plugin: Plugin,
    *,
    limits: SandboxLimits = _LIMITS,
    envoy: EnvoyVersion = OLDEST_ENVOY,
    extra_imports: frozenset[str] = frozenset(),
    started_at: int = START_NANOSECONDS,
    smoke_request: bool = True,
) -> Verdict:
    """Start the module with the plugin's configuration, and with `smoke_request` pass one request through it.

    Blocks, for at most `limits.seconds` for each of two starts and a request. `envoy` is the oldest Envoy, `started_at`
    the time of its clock, in nanoseconds since 1970: a module may refuse expired data. Raises nothing of
    its own, whatever the module does.
    """

    def vm(limits: SandboxLimits) -> Vm:
        return Vm(
            compiled,
            plugin,
            limits=limits,
            envoy=envoy,
            started_at=started_at,
            extra_imports=extra_imports,
        )

    first = vm(limits)
    started = first.start()
    if isinstance(started, Started):
        return _of_started(first, started, smoke_request=smoke_request)
    verdict = _of_failure(started)
    if verdict.outcome is Outcome.REFUSED and limits.memory_bytes < ENVOY_MEMORY_BYTES:
        again = vm(replace(limits, memory_bytes=ENVOY_MEMORY_BYTES)).start()
        if not _is_same(verdict, again):  # it may have lacked memory
            return replace(verdict, outcome=Outcome.DOUBTFUL, doubt=Doubt.LIMIT)
    return verdict


def _of_started(vm: Vm, started: Started, *, smoke_request: bool) -> Verdict:
    verdict = Verdict(Outcome.STARTS, asked=started.doubts, fuel=started.fuel)
    if not smoke_request:
        return verdict
    found = exchange(vm, _REQUEST, _RESPONSE, idle_seconds=_IDLE_SECONDS)
    asked = tuple(dict.fromkeys((*started.doubts, *found.doubts)))
    verdict = replace(verdict, asked=asked, fuel=started.fuel + found.fuel)
    failure = found.failure
    if failure is not None:
        doubt = _DOUBTS.get(failure.kind, Doubt.REQUEST_FAILED)
        return replace(
            verdict,
            outcome=Outcome.DOUBTFUL,
            message=f"the first request: {failure.message}",
            doubt=doubt,
            phase=REQUEST,
            kind=failure.kind,
            frames=failure.frames,
            log=vm.log.last(),
        )
    clusters = [each for each in asked if each.startswith(_CLUSTER)]
    if clusters:
        message = f"its behaviour depends on the answer of {', '.join(clusters[:5])}"
        return replace(verdict, outcome=Outcome.DOUBTFUL, message=message, doubt=Doubt.CALLOUT)
    if found.has_timed_out:
        message = f"it held the first request for {_IDLE_SECONDS:g} seconds and did not resume it"
        return replace(verdict, outcome=Outcome.DOUBTFUL, message=message, doubt=Doubt.REQUEST_HELD)
    return verdict


_CLUSTER: Final = "the cluster "
REQUEST: Final = "request"
"""The phase of a verdict on a module that starts and fails in the first request."""
_IDLE_SECONDS: Final = 60.0
_REQUEST: Final = Request(
    "GET", "/", "example.com", headers=(("user-agent", "sandbox"), ("accept", "*/*"))
)
_RESPONSE: Final = Response(
    200, (("content-type", "text/plain"), ("content-length", "3")), (b"ok\n",)
)
_DOUBTS: Final = {
    FailureKind.LIMIT: Doubt.LIMIT,
    FailureKind.UNSUPPORTED: Doubt.UNSUPPORTED,
}


def of_uncompilable(error: CannotCompile) -> Verdict:
    """The verdict on a module that the engine cannot compile but Envoy may run, such as one with legacy exception handling."""
    return Verdict(Outcome.DOUBTFUL, str(error), doubt=Doubt.UNSUPPORTED)


def _is_same(verdict: Verdict, again: Started | StartFailure) -> bool:
    if isinstance(again, Started):
        return False
    other = _of_failure(again)
    return (other.outcome, other.phase, other.kind) == (
        verdict.outcome,
        verdict.phase,
        verdict.kind,
    )


def _of_failure(failure: StartFailure) -> Verdict:
    verdict = Verdict(
        Outcome.REFUSED,
        failure.message,
        phase=failure.phase,
        kind=failure.kind,
        frames=failure.frames,
        log=failure.log,
        asked=failure.doubts,
        fuel=failure.fuel,
    )
    if failure.kind in _DOUBTS:
        return replace(verdict, outcome=Outcome.DOUBTFUL, doubt=_DOUBTS[failure.kind])
    if failure.doubts:
        asked_cluster = any(each.startswith(_CLUSTER) for each in failure.doubts)
        return replace(
            verdict,
            outcome=Outcome.DOUBTFUL,
            doubt=Doubt.CALLOUT if asked_cluster else Doubt.ENVIRONMENT,
            message=f"{failure.message}, after it asked for {', '.join(failure.doubts[:5])}",
        )
    return verdict
