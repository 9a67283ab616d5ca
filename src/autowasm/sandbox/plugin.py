"""Envoy's configuration of one filter (`PluginConfig` and `VmConfig`), and the bounds of the sandbox.

Invariant: equal values give an equal run: no clock, random number or environment variable of this process is used.

Sources: envoy api/envoy/extensions/wasm/v3/wasm.proto; proxy-wasm-cpp-host include/proxy-wasm/context.h `PluginBase`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from autowasm.limits import MIB

ENVOY_MEMORY_BYTES: Final = 1024 * MIB
"""Envoy's V8 runs with `--wasm_max_mem_pages=16384` (proxy-wasm-cpp-host src/v8/v8.cc `engine`)."""

_NO_ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType({})


class FailurePolicy(StrEnum):
    """How Envoy handles requests while the filter is not usable: the values of `failure_policy`, and one more."""

    CLOSED = "FAIL_CLOSED"
    """Requests are answered with 503."""
    OPEN = "FAIL_OPEN"
    """Requests pass without the filter, except the one in which it fails, which gets 503."""
    RELOAD = "FAIL_RELOAD"
    """The request in which the filter fails gets 503, the next one a new virtual machine."""
    DEPRECATED_OPEN = "fail_open"
    """The older field `fail_open: true`: the request in which the filter fails passes, too."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """One configured filter.

    `configuration` and `vm_configuration` are the bytes that Envoy passes on: of a StringValue or BytesValue its value, of a
    Struct its JSON text; None where there is none, which a module cannot distinguish from an empty value. `environment` are the variables of
    `vm_config.environment_variables` with their values.
    """

    name: str = ""
    root_id: str = ""
    vm_id: str = ""
    configuration: bytes | None = None
    vm_configuration: bytes | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: _NO_ENVIRONMENT)
    failure_policy: FailurePolicy = FailurePolicy.CLOSED
    allow_on_headers_stop_iteration: bool = False
    """`StopIteration` from a headers callback holds back the headers only, not the body as well."""

    @property
    def fail_open(self) -> bool:
        """Whether requests pass without the filter once it has failed."""
        return self.failure_policy in (FailurePolicy.OPEN, FailurePolicy.DEPRECATED_OPEN)

    @property
    def log_prefix(self) -> str:
        """The prefix of a stream's log lines in Envoy (`PluginBase::makeLogPrefix`), with a space before each part."""
        return "".join(f" {part}" for part in (self.name, self.root_id, self.vm_id) if part)

    @property
    def root_log_prefix(self) -> str:
        """The prefix of the root context's log lines in Envoy (`ContextBase::makeRootLogPrefix`)."""
        return "".join(f" {part}" for part in (self.root_id, self.vm_id) if part)


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Bounds of one virtual machine. Envoy has none of them unless otherwise noted."""

    start_fuel: int = 500_000_000
    """Units for everything up to the end of configuration: an endless loop ends after about a second. Real filters use up to
    4 million."""
    exchange_fuel: int = 500_000_000
    """Units for one stream with its callouts and timers."""
    call_fuel: int = 10_000
    """Units for a call of a host function, besides one for each byte that it copies: about the time of as many instructions."""
    seconds: float = 10.0
    """Elapsed time for the start, and again for each stream. It limits work that costs no fuel. Fuel should run out first."""
    memory_bytes: int = ENVOY_MEMORY_BYTES
    """Memory of the module; `memory.grow` beyond it returns -1, as it does in Envoy at 1 GiB."""
    table_elements: int = 10_000_000
    """As V8's limit."""
    copy_bytes: int = 64 * MIB
    """Bytes that one host function may copy."""
    state_bytes: int = 64 * MIB
    """Bytes that the host keeps for the module: headers, bodies, shared data, queues, metrics, properties."""
    log_bytes: int = 256 * 1024
    """Bytes of log lines that are kept; older ones are dropped and counted."""
    log_line_bytes: int = 16 * 1024
    """Bytes of one line that are kept."""
    contexts: int = 10_000
    """Streams that are open at a time."""
    callouts: int = 1_000
    """Calls to clusters in one stream."""
    body_bytes: int = MIB
    """Bytes of a body that Envoy buffers for a filter (`per_connection_buffer_limit_bytes`, by default 1 MiB). Beyond it, Envoy answers
    413 for a request, 500 for a response."""
