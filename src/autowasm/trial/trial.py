"""Trial: a module with a plugin's configuration in the sandbox, and the requests and connections that pass through it.

Invariant: equal trials give equal results: no clock, no randomness and no environment of this machine reaches the module.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from autowasm.envoyversion import OLDEST_ENVOY, EnvoyVersion
from autowasm.sandbox.clusteranswers import Answering
from autowasm.sandbox.engine import Compiled, Engine, compile_module
from autowasm.sandbox.errors import FailureKind
from autowasm.sandbox.http import Exchange, exchange
from autowasm.sandbox.message import Request, Response
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.properties import Value
from autowasm.sandbox.protocol import LogLevel
from autowasm.sandbox.tcp import Conversation, Sent, converse
from autowasm.sandbox.verdict import Doubt, Outcome, Verdict
from autowasm.sandbox.vm import Started, StartFailure, Vm

UNKNOWN_TO_ENVOY: Final = frozenset({FailureKind.LIMIT, FailureKind.UNSUPPORTED})
"""Failures that say nothing about Envoy: a limit of the sandbox, or a feature that it lacks."""
REQUEST_ID: Final = "00000000-0000-4000-8000-000000000001"
"""`x-request-id` of a request that has none: Envoy generates one, which would differ from run to run."""
_OUTSIDE_STREAMS: Final = frozenset({"node", "xds"})
"""Properties that a module can read while it starts, too."""
_PASSING: Final = """
(module (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 0)))
"""
"""A filter that changes nothing."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Everything that determines how a filter starts. `extra_imports` are as in `--allow-import`."""

    compiled: Compiled
    plugin: Plugin
    envoy: EnvoyVersion = OLDEST_ENVOY
    extra_imports: frozenset[str] = frozenset()
    clusters: Mapping[str, Answering] = field(default_factory=dict)
    properties: Mapping[str, Value] = field(default_factory=dict)
    log_level: LogLevel = LogLevel.INFO


class Trial:
    """A filter that was started: `started` is the result. Requests pass one after the other. Blocks, within the sandbox's limits."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._vm = Vm(
            subject.compiled,
            subject.plugin,
            envoy=subject.envoy,
            clusters=subject.clusters,
            properties={
                name: value
                for name, value in subject.properties.items()
                if name in _OUTSIDE_STREAMS
            },
            log_level=subject.log_level,
            extra_imports=subject.extra_imports,
        )
        self.started: Started | StartFailure = self._vm.start()
        self.start_log = self._vm.log.since(0)

    def send(self, request: Request, response: Response) -> Exchange:
        """Pass a request through, and the service's response back."""
        return exchange(self._vm, identified(request), response, properties=self.subject.properties)

    def converse(self, sent: Sequence[Sent]) -> Conversation:
        """Pass a TCP connection through."""
        return converse(self._vm, sent, properties=self.subject.properties)


def identified(request: Request) -> Request:
    """The request with the headers that Envoy would generate, in the position in which it adds them."""
    names = {name.lower() for name, _ in request.headers}
    added = [
        (name, value)
        for name, value in (("x-forwarded-proto", request.scheme), ("x-request-id", REQUEST_ID))
        if name not in names
    ]
    return replace(request, headers=(*request.headers, *added))


def without_filter(
    request: Request, response: Response, *, envoy: EnvoyVersion, engine: Engine
) -> Exchange:
    """The same request and response through an Envoy without the filter, to compare with: the difference is the effect of the filter."""
    from wasmtime import wat2wasm  # noqa: PLC0415  # heavy, as in sandbox/engine.py

    passing = compile_module(engine, bytes(wat2wasm(_PASSING)))
    return Trial(Subject(passing, Plugin(), envoy=envoy)).send(request, response)


def verdict_of(started: Started | StartFailure) -> Verdict:
    """The result of a start as a verdict: DOUBTFUL if it does not apply to the user's Envoy."""
    if isinstance(started, Started):
        return Verdict(Outcome.STARTS, asked=started.doubts, fuel=started.fuel)
    doubt, message = None, started.message
    if started.kind in UNKNOWN_TO_ENVOY:
        doubt = Doubt.LIMIT if started.kind is FailureKind.LIMIT else Doubt.UNSUPPORTED
    elif started.doubts:
        doubt = Doubt.ENVIRONMENT
        message = f"{message}, after it asked for {', '.join(started.doubts[:5])}"
    return Verdict(
        Outcome.REFUSED if doubt is None else Outcome.DOUBTFUL,
        message,
        doubt=doubt,
        phase=started.phase,
        kind=started.kind,
        frames=started.frames,
        log=started.log,
        asked=started.doubts,
        fuel=started.fuel,
    )
