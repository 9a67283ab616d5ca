"""Envoy's Wasm HTTP filter with its PluginConfig and VmConfig, for the EnvoyFilter of every AutoWasm, staged or not. Pure.

A staged rollout has a variant that the spec no longer describes, so filters are also read back. Invariant:
`read_filter` returns what `http_filter` wrote, whatever the settings.

Source: Envoy, api/envoy/extensions/wasm/v3/wasm.proto.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from autowasm.api.v1alpha1 import FailStrategy, PatchContext
from autowasm.api.variant import Variant
from autowasm.digest import Sha256Hex, sha256_hex
from autowasm.settings import EnvoyFetch

_TYPE = "type.googleapis.com/"
_URI_END = re.compile(r"/wasm/([0-9a-f]{64})(?:\?r=([0-9]{1,9}))?\Z")


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


def _again(resend: int) -> str:
    """The query of the n-th resend. wasmer ignores it; Envoy sees another configuration and fetches again (ADR 17)."""
    return f"?r={resend}" if resend else ""


def _duration(seconds: float) -> str:
    """A duration in protobuf's JSON form: no exponent, at most milliseconds."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def module_of(value: Mapping[str, Any]) -> Sha256Hex | None:
    """The module that an HTTP filter makes Envoy fetch; None for a filter that is not ours, or after a manual edit."""
    try:
        remote = value["typedConfig"]["value"]["config"]["vmConfig"]["code"]["remote"]
        return sha256_hex(remote["sha256"])
    except (KeyError, TypeError, ValueError):
        return None


def resend_of(value: Mapping[str, Any]) -> tuple[str, int] | None:
    """The module in the filter's uri, and the number of times that it was resent; None if there is no such uri."""
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

    A variant does not include how the module is fetched: that is rendered again from the current settings.
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
