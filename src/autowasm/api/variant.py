"""Variant: one form of the filter: module, configuration, environment, and where it is inserted. Pure.

A staged rollout (ADR 39) has two variants in one EnvoyFilter. `variant_of` makes the one that the spec describes;
`wasmfilter.py` writes a variant as Envoy's HTTP filter, and reads it back. Invariant: the digest changes with everything that can affect a module or
a request, and with nothing else.
"""

import hashlib
import json
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct

from autowasm.api import pluginconfig
from autowasm.api.record import Record
from autowasm.api.v1alpha1 import AutoWasm, FailStrategy, Filter, PatchContext, Position
from autowasm.digest import Sha256Hex

VM_ID_DIGEST_LENGTH = 12
DIGEST_LENGTH: Final = 16
"""Hexadecimal digits of a variant's digest."""


class Variant(Struct, frozen=True, kw_only=True):
    """One form of an AutoWasm's filter."""

    sha256: Sha256Hex
    vm_id: str
    """As Envoy gets it."""
    root_id: str | None = None
    configuration: str | None = None
    """The text that the filter receives."""
    env: tuple[tuple[str, str], ...] = ()
    """Sorted by name."""
    fail_strategy: FailStrategy = FailStrategy.FAIL_CLOSE
    context: PatchContext = PatchContext.SIDECAR_INBOUND
    ports: tuple[int, ...] | None = None
    position: Position = Position.BEFORE_ROUTER
    allow_on_headers_stop_iteration: bool = False
    record: Record | None = None
    """The result of resolving the source; None if an EnvoyFilter does not have it. Not in the digest: a source may move."""
    resend: int = 0
    """How many times the module was resent (ADR 17). Not in the digest."""

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over everything but the record and the resends. The order of ports has no meaning."""
        ports = sorted(self.ports) if self.ports is not None else None
        values: list[Any] = [
            self.sha256,
            self.vm_id,
            self.root_id,
            self.configuration,
            self.env,
            self.fail_strategy.value,
            self.context.value,
            ports,
        ]
        # Defaults are omitted: filters without these fields keep their digest, which the status of a rollout has.
        if self.position is not Position.BEFORE_ROUTER or self.allow_on_headers_stop_iteration:
            values += [self.position.value, self.allow_on_headers_stop_iteration]
        return hashlib.sha256(msgspec.json.encode(values)).hexdigest()[:DIGEST_LENGTH]


def variant_of(autowasm: AutoWasm, record: Record, *, resend: int = 0) -> Variant:
    """The variant that the spec describes, with the module of `record`."""
    filter_ = autowasm.spec.filter
    config = filter_.plugin_config
    return Variant(
        sha256=record.sha256,
        vm_id=_vm_id(autowasm, record),
        root_id=filter_.root_id,
        configuration=None if config is UNSET else pluginconfig.as_text(config),
        env=tuple(sorted(_environment(filter_).items())),
        fail_strategy=filter_.fail_strategy,
        context=filter_.context,
        ports=filter_.apply_ports,
        position=filter_.position,
        allow_on_headers_stop_iteration=filter_.allow_on_headers_stop_iteration,
        record=record,
        resend=resend,
    )


def staged_plugin_name(autowasm: AutoWasm, variant: Variant) -> str:
    """The plugin's name during staged rollouts: Envoy's statistics `wasm.<name>.*` then show which variant it runs."""
    return plugin_name_of(autowasm, variant.digest)


def plugin_name_of(autowasm: AutoWasm, digest: str) -> str:
    """The same, by the variant's digest."""
    return f"{autowasm.metadata.name}-{digest}"


def _vm_id(autowasm: AutoWasm, record: Record) -> str:
    """The part of Envoy's VM key that wasmer chooses. It has everything in which two VMs can differ.

    Envoy makes the key of vmId, the VM's own configuration (wasmer sets none) and the code, which is empty while Envoy
    fetches the module. Envoy reuses a VM with the same key as it is, with the code and the environment of its start. On
    Envoy 1.36 this includes the failure policy, because the plugin's key has only name, direction, rootID and
    configuration. Sources: `createWasm` in Envoy's wasm.cc, `makeVmKey` and `makePluginKey` in proxy-wasm-cpp-host.

    With `spec.rollout` each variant has VMs of its own: their number proves that it started (`pods/runstate.py`).
    """
    filter_ = autowasm.spec.filter
    base = filter_.vm_id or f"{autowasm.metadata.namespace}.{autowasm.metadata.name}"
    parts = [base, record.sha256[:VM_ID_DIGEST_LENGTH]]
    # Defaults are omitted: objects without these fields keep the id of earlier versions.
    more: dict[str, Any] = {}
    if filter_.env:
        more["env"] = _environment(filter_)
    if filter_.fail_strategy is not FailStrategy.FAIL_CLOSE:
        more["failStrategy"] = filter_.fail_strategy.value
    if filter_.allow_on_headers_stop_iteration:
        more["allowOnHeadersStopIteration"] = True
    if autowasm.spec.rollout is not None:
        config = filter_.plugin_config
        more["configuration"] = None if config is UNSET else pluginconfig.as_text(config)
        more["of"] = [autowasm.metadata.namespace, autowasm.metadata.name, filter_.root_id]
    if more:
        text = json.dumps(more, sort_keys=True).encode()
        parts.append(hashlib.sha256(text).hexdigest()[:VM_ID_DIGEST_LENGTH])
    return "-".join(parts)


def _environment(filter_: Filter) -> dict[str, str]:
    return {variable.name: variable.value for variable in filter_.env}
