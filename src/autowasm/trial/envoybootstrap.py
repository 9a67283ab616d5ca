"""The bootstrap of an Envoy with one listener, one filter before the router, a service and clusters. Pure.

Invariant: every socket is on the loopback address, at ports that are given or that the kernel chooses.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from autowasm.sandbox.plugin import FailurePolicy, Plugin

LOOPBACK: Final = "127.0.0.1"
SERVICE: Final = "service"
_EXTENSIONS: Final = "type.googleapis.com/envoy.extensions"
_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def bootstrap(
    plugin: Plugin, module: Path, clusters: Mapping[str, int], *, idle_seconds: float
) -> dict[str, Any]:
    """`clusters`: ports by name, with one for SERVICE. `idle_seconds`: how long the filter may hold a stream."""
    manager = {
        "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "wasmc",
        "stream_idle_timeout": f"{idle_seconds}s",
        "http_protocol_options": {"enable_trailers": True},
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": SERVICE}}],
                }
            ],
        },
        "http_filters": [
            {
                "name": "wasm",
                "typed_config": {
                    "@type": f"{_EXTENSIONS}.filters.http.wasm.v3.Wasm",
                    "config": plugin_config(plugin, module),
                },
            },
            {
                "name": "router",
                "typed_config": {"@type": f"{_EXTENSIONS}.filters.http.router.v3.Router"},
            },
        ],
    }
    filter_ = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": manager,
    }
    listener = {
        "name": "wasmc",
        "address": _address(0),
        "filter_chains": [{"filters": [filter_]}],
    }
    return {
        "node": {"id": "wasmc", "cluster": "wasmc"},
        "admin": {"address": _address(0)},
        "static_resources": {
            "listeners": [listener],
            "clusters": [_cluster(name, port) for name, port in clusters.items()],
        },
    }


def plugin_config(plugin: Plugin, module: Path) -> dict[str, Any]:
    """The `PluginConfig` of a plugin whose module is in a local file."""
    vm: dict[str, Any] = {
        "vm_id": plugin.vm_id,
        "runtime": "envoy.wasm.runtime.v8",
        "code": {"local": {"filename": str(module)}},
    }
    if plugin.vm_configuration is not None:
        vm["configuration"] = _bytes(plugin.vm_configuration)
    if plugin.environment:
        vm["environment_variables"] = {"key_values": dict(plugin.environment)}
    found: dict[str, Any] = {"name": plugin.name, "root_id": plugin.root_id, "vm_config": vm}
    if plugin.failure_policy is FailurePolicy.DEPRECATED_OPEN:
        found["fail_open"] = True
    else:
        found["failure_policy"] = plugin.failure_policy.value
    if plugin.configuration is not None:
        found["configuration"] = _bytes(plugin.configuration)
    return found


def _bytes(value: bytes) -> dict[str, str]:
    """Envoy unwraps a BytesValue as it does a StringValue, and a file may hold any bytes."""
    encoded = base64.b64encode(value).decode()
    return {"@type": "type.googleapis.com/google.protobuf.BytesValue", "value": encoded}


def _cluster(name: str, port: int) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address(port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            _OPTIONS: {
                "@type": f"type.googleapis.com/{_OPTIONS}",
                "explicit_http_config": {"http_protocol_options": {"enable_trailers": True}},
            }
        },
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": LOOPBACK, "port_value": port}}
