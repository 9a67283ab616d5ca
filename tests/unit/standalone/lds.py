"""Listener templates and EnvoyFilters for tests."""

import copy
from collections.abc import Sequence
from typing import Any

import yaml

from autowasm.standalone.listeners import ListenerTemplate

ROUTER = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
}
LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
MANAGER = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3."
    "HttpConnectionManager"
)


def chain(*names: str) -> dict[str, Any]:
    """A filter chain with HTTP filters of these names, the router last."""
    filters = [{"name": name} for name in names] + [copy.deepcopy(ROUTER)]
    config = {"@type": MANAGER, "stat_prefix": "x", "http_filters": filters}
    name = "envoy.filters.network.http_connection_manager"
    return {"filters": [{"name": name, "typed_config": config}]}


def listener(port: int = 9080, *chains: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A listener, by default with one chain."""
    return {
        "@type": LISTENER,
        "name": f"on-{port}",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": list(chains) or [chain()],
        **fields,
    }


def envoyfilter(
    name: str = "test",
    *ports: int,
    namespace: str = "default",
    context: str = "SIDECAR_INBOUND",
    priority: int | None = None,
) -> dict[str, Any]:
    """Of our shape; the HTTP filter's name is `namespace/name`. No ports: one patch for all."""
    patches = [
        {
            "applyTo": "HTTP_FILTER",
            "match": {
                "context": context,
                "listener": {"filterChain": {}, **({"portNumber": port} if port else {})},
            },
            "patch": {"operation": "INSERT_BEFORE", "value": {"name": f"{namespace}/{name}"}},
        }
        for port in ports or (0,)
    ]
    spec: dict[str, Any] = {"configPatches": patches}
    if priority is not None:
        spec["priority"] = priority
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def names(chain: dict[str, Any]) -> list[str]:
    """Of the HTTP filters in the first network filter of a chain, the router as `router`."""
    network = chain["filters"][0]
    config = network.get("typed_config") or network["typedConfig"]
    filters = config.get("http_filters") or config["httpFilters"]
    return [each["name"].replace("envoy.filters.http.", "") for each in filters]


def inject(template: Any, envoyfilters: Sequence[dict[str, Any]]) -> Any:
    """The data of the listener file made from a template that was written as YAML."""
    return yaml.safe_load(ListenerTemplate(as_text(template)).inject(envoyfilters))


def as_text(template: Any) -> str:
    """In block style, in the order of the document."""
    return yaml.safe_dump(template, sort_keys=False)
