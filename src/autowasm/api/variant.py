"""Variant: one form of the filter (module, configuration, environment, where), and the HTTP filter that Envoy gets. Pure.

A staged rollout (ADR 39) has two variants in one EnvoyFilter, and the spec describes only the newer one, so a variant is also
read back. Invariants: `read_filter` returns what `http_filter` wrote, whatever the settings; the digest changes with
everything that a module or a request can notice, and with nothing else.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct

from autowasm.api import pluginconfig
from autowasm.api.record import Record
from autowasm.api.v1alpha1 import AutoWasm, FailStrategy, Filter, PatchContext, Position
from autowasm.digest import Sha256Hex, sha256_hex
from autowasm.settings import EnvoyFetch

VM_ID_DIGEST_LENGTH = 12
DIGEST_LENGTH: Final = 16
"""Hexadecimal digits of a variant's digest."""

_TYPE = "type.googleapis.com/"
_URI_END = re.compile(r"/wasm/([0-9a-f]{64})(?:\?r=([0-9]{1,9}))?\Z")


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
    """What the source resolved to; None if an EnvoyFilter does not say it. Not in the digest: a source may move."""
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
    """The plugin's name during staged rollouts: Envoy's statistics `wasm.<name>.*` then tell which variant it runs."""
    return plugin_name_of(autowasm, variant.digest)


def plugin_name_of(autowasm: AutoWasm, digest: str) -> str:
    """The same, by the variant's digest."""
    return f"{autowasm.metadata.name}-{digest}"


def http_filter(
    variant: Variant, settings: EnvoyFetch, *, name: str, plugin_name: str
) -> dict[str, Any]:
    """The HTTP filter, keys in sorted order. `name` is the filter's, for istiod; `plugin_name` the plugin's, for Envoy."""
    config: dict[str, Any] = {}
    if variant.allow_on_headers_stop_iteration:
        config["allowOnHeadersStopIteration"] = True
    if variant.configuration is not None:
        # Always a StringValue: of other messages, also of a Struct, the filter receives protobuf's wire format.
        # Source: Envoy `MessageUtil::anyToBytes`, which unwraps StringValue and BytesValue only.
        config["configuration"] = {
            "@type": f"{_TYPE}google.protobuf.StringValue",
            "value": variant.configuration,
        }
    if variant.fail_strategy is FailStrategy.FAIL_OPEN:
        config["failOpen"] = True  # Envoy before 1.33 silently ignores failurePolicy
    elif variant.fail_strategy is FailStrategy.FAIL_RELOAD:
        config["failurePolicy"] = "FAIL_RELOAD"
    config["name"] = plugin_name
    if variant.root_id is not None:
        config["rootId"] = variant.root_id
    config["vmConfig"] = _vm_config(variant, settings)
    return {
        "name": name,
        "typedConfig": {
            "@type": f"{_TYPE}udpa.type.v1.TypedStruct",
            "typeUrl": f"{_TYPE}envoy.extensions.filters.http.wasm.v3.Wasm",
            "value": {"config": config},
        },
    }


def _vm_config(variant: Variant, settings: EnvoyFetch) -> dict[str, Any]:
    config: dict[str, Any] = {
        "code": {
            "remote": {
                "httpUri": {
                    "cluster": settings.cluster,
                    "timeout": _duration(settings.timeout),
                    "uri": f"{settings.authority}/wasm/{variant.sha256}{_again(variant.resend)}",
                },
                "retryPolicy": {
                    "numRetries": settings.retries,
                    "retryBackOff": {"baseInterval": "1s", "maxInterval": "5s"},
                },
                "sha256": variant.sha256,
            }
        }
    }
    if variant.env:
        config["environmentVariables"] = {"keyValues": dict(variant.env)}
    config["runtime"] = "envoy.wasm.runtime.v8"
    config["vmId"] = variant.vm_id
    return config


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


def _again(resend: int) -> str:
    """The query of the n-th resend. wasmer ignores it; Envoy sees another configuration and fetches again (ADR 17)."""
    return f"?r={resend}" if resend else ""


def _duration(seconds: float) -> str:
    """A duration in protobuf's JSON form: no exponent, at most milliseconds."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def module_of(value: Mapping[str, Any]) -> Sha256Hex | None:
    """The module that an HTTP filter makes Envoy fetch; None for a filter that is not ours, and after a manual edit."""
    try:
        remote = value["typedConfig"]["value"]["config"]["vmConfig"]["code"]["remote"]
        return sha256_hex(remote["sha256"])
    except (KeyError, TypeError, ValueError):
        return None


def resend_of(value: Mapping[str, Any]) -> tuple[str, int] | None:
    """The module in the filter's uri, and how many times it was resent; None if there is no such uri."""
    try:
        config = value["typedConfig"]["value"]["config"]
        uri = config["vmConfig"]["code"]["remote"]["httpUri"]["uri"]
    except (KeyError, TypeError):
        return None
    found = _URI_END.search(uri) if isinstance(uri, str) else None
    return (found[1], int(found[2] or 0)) if found else None


class _Configuration(Struct):
    value: str


class _KeyValues(Struct, rename="camel"):
    key_values: dict[str, str]


class _VmConfig(Struct, rename="camel"):
    vm_id: str
    environment_variables: _KeyValues | None = None


class _PluginConfig(Struct, rename="camel"):
    vm_config: _VmConfig
    root_id: str | None = None
    configuration: _Configuration | None = None
    allow_on_headers_stop_iteration: bool = False
    fail_open: bool = False
    failure_policy: str = ""


# Made here, not at first use: see registry/manifest.py.
_PLUGIN_CONFIG: Final = msgspec.json.Decoder(_PluginConfig)


def read_filter(
    value: Mapping[str, Any], *, context: PatchContext, ports: tuple[int, ...] | None
) -> Variant | None:
    """The variant of an HTTP filter, without its record. None if it is not in our form: another filter, or a manual edit.

    How the module is fetched is not part of a variant: it is rendered again from the current settings.
    """
    sha256, resent = module_of(value), resend_of(value)
    if sha256 is None:
        return None
    try:
        config = msgspec.convert(value["typedConfig"]["value"]["config"], _PLUGIN_CONFIG.type)
    except msgspec.ValidationError:
        return None
    variables = config.vm_config.environment_variables
    strategy = FailStrategy.FAIL_CLOSE
    if config.fail_open:
        strategy = FailStrategy.FAIL_OPEN
    elif config.failure_policy == FailStrategy.FAIL_RELOAD.value:
        strategy = FailStrategy.FAIL_RELOAD
    return Variant(
        sha256=sha256,
        vm_id=config.vm_config.vm_id,
        root_id=config.root_id,
        configuration=config.configuration.value if config.configuration else None,
        env=tuple(sorted(variables.key_values.items())) if variables else (),
        fail_strategy=strategy,
        context=context,
        ports=ports,
        allow_on_headers_stop_iteration=config.allow_on_headers_stop_iteration,
        resend=resent[1] if resent and resent[0] == sha256 else 0,
    )
