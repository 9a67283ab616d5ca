"""A virtual machine with one plugin: starts and configures the module as Envoy does.

Envoy does this several times: in a canary that it discards, then in each worker. Here it is done once. Invariant:
`start` gives a result for any module, and never an exception.

Source: proxy-wasm-cpp-host src/wasm.cc `initialize`, `startVm`, `start`, `canary`, src/context.cc `onStart`, `onConfigure`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from autowasm.envoyversion import OLDEST_ENVOY, EnvoyVersion
from autowasm.sandbox.clusteranswers import Answering, Clusters
from autowasm.sandbox.contexts import Context
from autowasm.sandbox.engine import Compiled
from autowasm.sandbox.errors import FailureKind, ModuleFailed, UsageError
from autowasm.sandbox.host import NEWER_LIBRARY, Environment, Host
from autowasm.sandbox.hostcalls import HOST_CALLS
from autowasm.sandbox.plugin import FailurePolicy, Plugin, SandboxLimits
from autowasm.sandbox.properties import Value
from autowasm.sandbox.protocol import LogLevel
from autowasm.sandbox.state import START_NANOSECONDS, Log, LogLine, Metrics, Shared
from autowasm.text import shown

_LIMITS: Final = SandboxLimits()
_NO_CLUSTERS: Final[Mapping[str, Answering]] = {}
_NO_PROPERTIES: Final[Mapping[str, Value]] = {}


class StartPhase(StrEnum):
    """Parts of a start, in order. The values are stable: they cross a process boundary."""

    INSTANTIATE = "instantiate"
    """Imports, exports, memory, and the start function of the WebAssembly module."""
    START = "start"
    """`_initialize` with `main`, or `_start`."""
    CONTEXT_CREATE = "context_create"
    """`proxy_on_context_create` of the root context. Envoy does not notice a failure here, and then answers 503."""
    VM_START = "vm_start"
    """`proxy_on_vm_start`."""
    CONFIGURE = "configure"
    """`proxy_on_configure`."""


@dataclass(frozen=True, slots=True)
class Started:
    """The module started and accepted its configuration.

    `doubts` are requests that only the user's Envoy can answer, such as those for clusters and properties of the node.
    """

    fuel: int
    memory_bytes: int
    doubts: tuple[str, ...]
    log: tuple[LogLine, ...]


@dataclass(frozen=True, slots=True)
class StartFailure:
    """The module does not start, or refuses its configuration.

    `message` is one sentence, `frames` are the names of the functions that were running, innermost first, `log` are the last
    log lines, made printable.
    """

    phase: StartPhase
    kind: FailureKind
    message: str
    frames: tuple[str, ...]
    doubts: tuple[str, ...]
    log: tuple[str, ...]
    fuel: int


@dataclass(frozen=True, slots=True)
class Failure:
    """How the module failed in a stream. `message` is one sentence; `frames` are function names, innermost first."""

    kind: FailureKind
    message: str
    frames: tuple[str, ...]

    @classmethod
    def of(cls, failure: ModuleFailed | None) -> Self | None:
        """The failure that ended the module, if there is one."""
        return cls(failure.kind, _explained(failure), failure.frames) if failure else None


class Vm:
    """A virtual machine. Not thread-safe; nothing in it runs between two calls.

    `clusters` are those that the module may call, with their answers. `shared` is the shared data of other virtual machines.
    `properties` are those outside streams. `started_at` is the first time of the clock, in nanoseconds since 1970. `extra_imports` are functions of
    Envoy extensions; a call of one ends the module.
    """

    def __init__(
        self,
        compiled: Compiled,
        plugin: Plugin,
        *,
        limits: SandboxLimits = _LIMITS,
        envoy: EnvoyVersion = OLDEST_ENVOY,
        clusters: Mapping[str, Answering] = _NO_CLUSTERS,
        shared: Shared | None = None,
        properties: Mapping[str, Value] = _NO_PROPERTIES,
        seed: int = 0,
        started_at: int = START_NANOSECONDS,
        log_level: LogLevel = LogLevel.INFO,
        extra_imports: frozenset[str] = frozenset(),
    ) -> None:
        self.plugin = plugin
        self.limits = limits
        self.log = Log(limits)
        self._compiled = compiled
        self._environment = Environment(
            envoy=envoy,
            clusters=Clusters(clusters),
            shared=shared or Shared(),
            seed=seed,
            started_at=started_at,
            log_level=log_level,
            extra_imports=extra_imports,
            properties=properties,
        )
        self._host: Host | None = None
        self._root: Context | None = None

    @property
    def host(self) -> Host:
        """The host, once the module is instantiated. Raises UsageError before."""
        if self._host is None:
            raise UsageError("the virtual machine was not started")
        return self._host

    @property
    def root(self) -> Context:
        """The root context. Raises UsageError before the start."""
        if self._root is None:
            raise UsageError("the virtual machine was not started")
        return self._root

    @property
    def metrics(self) -> Metrics:
        """The metrics that the module defined."""
        return self.host.metrics

    def start(self) -> Started | StartFailure:
        """Instantiate, start and configure the module. Call it once; the log continues after a reload.

        Bounded by `limits.start_fuel` and `limits.seconds`. Raises UsageError when called again.
        """
        if self._host is not None:
            raise UsageError("the virtual machine was started before")
        host = self._host = Host(
            self._compiled,
            self.plugin,
            calls=HOST_CALLS,
            limits=self.limits,
            environment=self._environment,
            log=self.log,
        )
        try:
            host.instantiate(self._compiled)
        except ModuleFailed as failure:
            host.fail(failure)
            return self._failed(StartPhase.INSTANTIATE, failure)
        return (
            self._start_module(host)
            or self._start_plugin(host)
            or Started(
                self.limits.start_fuel - host.instance.fuel,
                host.instance.memory_bytes,
                tuple(host.doubts),
                self.log.since(0),
            )
        )

    def reload_if_failed(self) -> None:
        """Start again with a new virtual machine, if the module failed and the plugin has the policy FAIL_RELOAD."""
        if self.host.has_failed and self.plugin.failure_policy is FailurePolicy.RELOAD:
            self._host = self._root = None
            self.start()

    def stop(self) -> None:
        """End the plugin: `proxy_on_done` and `proxy_on_delete` of the root context."""
        if not self.host.has_failed and self.root.identifier in self.host.contexts:
            self.host.instance.refuel(self.limits.exchange_fuel)
            self.host.end_root(self.root)

    def _start_module(self, host: Host) -> StartFailure | None:
        if host.exports("_initialize"):
            names = ["_initialize"]
            if host.exports("main"):
                names.append("main")
            elif host.exports("__main_void") and self._environment.envoy >= NEWER_LIBRARY:
                names.append("__main_void")
        else:
            names = ["_start"] if host.exports("_start") else []
        for name in names:
            host.run_start(name, *((0, 0) if name == "main" else ()))
            if host.failure is not None:
                return self._failed(StartPhase.START, host.failure)
        return None

    def _start_plugin(self, host: Host) -> StartFailure | None:
        root = self._root = host.new_context(0)
        number = root.identifier
        host.callback(root, "proxy_on_context_create", number, 0)
        root.is_created = True
        if host.failure is not None:
            return self._failed(StartPhase.CONTEXT_CREATE, host.failure)
        plugin = self.plugin
        vm_size = len(plugin.vm_configuration or b"")
        if not self._accepts(host, "proxy_on_vm_start", number, vm_size):
            return self._failed(StartPhase.VM_START, host.failure)
        host.configuring = True
        accepted = self._accepts(
            host, "proxy_on_configure", number, len(plugin.configuration or b"")
        )
        host.configuring = False
        return None if accepted else self._failed(StartPhase.CONFIGURE, host.failure)

    def _accepts(self, host: Host, name: str, *arguments: int) -> bool:
        """Whether the callback returns true, or the module has none."""
        if not host.exports(name):
            return True
        return bool(host.callback(self.root, name, *arguments)) and not host.has_failed

    def _failed(self, phase: StartPhase, failure: ModuleFailed | None) -> StartFailure:
        host = self.host
        if failure is None:
            failure = ModuleFailed(FailureKind.RETURNED_FALSE, _REFUSALS[phase])
            host.fail(failure)
        return StartFailure(
            phase,
            failure.kind,
            _explained(failure),
            failure.frames,
            tuple(host.doubts),
            self.log.last(),
            self.limits.start_fuel - host.instance.fuel,
        )


_REFUSALS: Final = {
    StartPhase.VM_START: "proxy_on_vm_start returned 0: the module refuses to start",
    StartPhase.CONFIGURE: "proxy_on_configure returned 0: the module refuses its configuration",
}


def _explained(failure: ModuleFailed) -> str:
    """One sentence about a failure."""
    if failure.kind is FailureKind.RETURNED_FALSE or not failure.function:
        return str(failure)
    return f"{shown(failure.function)} failed: {failure}"
