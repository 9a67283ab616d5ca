"""inject(): the listener template with the filters put in. Pure.

What istiod does with an EnvoyFilter of our shape, for a plain Envoy; nothing else of Istio. Selectors are not evaluated:
there is one Envoy. Invariants: the template's own filters stay, in their order; the same input gives the same output.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autowasm.errors import UsageError

_MANAGER = "envoy.filters.network.http_connection_manager"
_ROUTER = "envoy.filters.http.router"
_CONTEXTS = {
    "INBOUND": frozenset({"SIDECAR_INBOUND"}),
    "OUTBOUND": frozenset({"SIDECAR_OUTBOUND"}),
}
_UNDIRECTED = frozenset({"SIDECAR_INBOUND", "GATEWAY"})
"""What a listener without a traffic direction takes: a plain Envoy is a sidecar without Istio, or a gateway."""


def check_template(template: object) -> None:
    """Raises UsageError unless `template` is an LDS document in which every filter has its place."""
    for listener, path in _listeners(template):
        if _port(listener) is None:
            raise UsageError(f"{path}: has no address.socket_address.port_value")
        for manager, manager_path in _managers(listener, path):
            _router_index(manager, manager_path)


def inject(
    template: Mapping[str, Any], envoyfilters: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """An LDS document: `template` with each EnvoyFilter's HTTP filter before the router, where its match fits.

    Order as in Istio: priority ascending, then namespace and name (files have no creation time); the first stands
    farthest from the router. Raises UsageError, as `check_template`.
    """
    result: dict[str, Any] = copy.deepcopy(dict(template))
    ordered = sorted(envoyfilters, key=_order)
    for listener, path in _listeners(result):
        filters = [value for each in ordered for value in _values_for(listener, each)]
        if not filters:
            continue
        for manager, manager_path in _managers(listener, path):
            index = _router_index(manager, manager_path)
            _get(manager, "http_filters")[index:index] = copy.deepcopy(filters)
    return result


def _order(envoyfilter: Mapping[str, Any]) -> tuple[int, str, str]:
    metadata = envoyfilter["metadata"]
    return (envoyfilter["spec"].get("priority", 0), metadata.get("namespace", ""), metadata["name"])


def _values_for(
    listener: Mapping[str, Any], envoyfilter: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    contexts = _CONTEXTS.get(str(_get(listener, "traffic_direction")), _UNDIRECTED)
    port = _port(listener)
    for patch in envoyfilter["spec"]["configPatches"]:
        match = patch["match"]
        wanted = match["listener"].get("portNumber")
        if match["context"] in contexts and wanted in {None, port}:
            yield patch["patch"]["value"]


def _listeners(template: object) -> Iterator[tuple[dict[str, Any], str]]:
    resources = template.get("resources") if isinstance(template, Mapping) else None
    if not isinstance(resources, list) or not resources:
        raise UsageError("the template must be an LDS document: `resources:`, a list of listeners")
    for number, listener in enumerate(resources):
        path = f"resources[{number}]"
        if not isinstance(listener, dict):
            raise UsageError(f"{path}: must be a listener")
        yield listener, path


def _managers(listener: Mapping[str, Any], path: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Every HTTP connection manager of the listener."""
    for chain, chain_path in _chains(listener, path):
        for number, filter_ in enumerate(_list(chain, "filters", chain_path)):
            filter_path = f"{chain_path}.filters[{number}]"
            if not isinstance(filter_, dict):
                raise UsageError(f"{filter_path}: must be a filter")
            config = _get(filter_, "typed_config")
            kind = str(config.get("@type", "")) if isinstance(config, dict) else ""
            if filter_.get("name") == _MANAGER or kind.endswith(".HttpConnectionManager"):
                if not isinstance(config, dict):
                    raise UsageError(f"{filter_path}.typed_config: is missing")
                yield config, f"{filter_path}.typed_config"


def _chains(listener: Mapping[str, Any], path: str) -> Iterator[tuple[dict[str, Any], str]]:
    chains = [
        (chain, f"{path}.filter_chains[{number}]")
        for number, chain in enumerate(_list(listener, "filter_chains", path))
    ]
    default = _get(listener, "default_filter_chain")
    if default is not None:
        chains.append((default, f"{path}.default_filter_chain"))
    for chain, chain_path in chains:
        if not isinstance(chain, dict):
            raise UsageError(f"{chain_path}: must be a filter chain")
        yield chain, chain_path


def _router_index(manager: Mapping[str, Any], path: str) -> int:
    for number, filter_ in enumerate(_list(manager, "http_filters", path)):
        config = _get(filter_, "typed_config") if isinstance(filter_, dict) else None
        kind = str(config.get("@type", "")) if isinstance(config, dict) else ""
        if isinstance(filter_, dict) and (
            filter_.get("name") == _ROUTER or kind.endswith("router.v3.Router")
        ):
            return number
    raise UsageError(f"{path}.http_filters: there is no {_ROUTER}, so no place for a filter")


def _port(listener: Mapping[str, Any]) -> int | None:
    address = listener.get("address")
    socket_address = _get(address, "socket_address") if isinstance(address, dict) else None
    port = _get(socket_address, "port_value") if isinstance(socket_address, dict) else None
    return port if isinstance(port, int) else None


def _get(document: Mapping[str, Any], name: str) -> Any:
    """A field by its proto name or its JSON name: Envoy reads both."""
    if name in document:
        return document[name]
    first, *rest = name.split("_")
    return document.get(first + "".join(part.title() for part in rest))


def _list(document: Mapping[str, Any], name: str, path: str) -> list[Any]:
    value = _get(document, name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise UsageError(f"{path}.{name}: must be a list")
    return value
