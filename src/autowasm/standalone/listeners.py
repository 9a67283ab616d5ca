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
_LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
# A listener without a direction takes both: a plain Envoy is a sidecar without Istio, or a gateway.
_UNDIRECTED = frozenset({"SIDECAR_INBOUND", "GATEWAY"})
_INBOUND = frozenset({"SIDECAR_INBOUND"})
_OUTBOUND = frozenset({"SIDECAR_OUTBOUND"})
_CONTEXTS: dict[object, frozenset[str]] = {
    None: _UNDIRECTED,
    "UNSPECIFIED": _UNDIRECTED,
    "INBOUND": _INBOUND,
    "OUTBOUND": _OUTBOUND,
    # The enum's numbers, which Envoy reads too.
    0: _UNDIRECTED,
    1: _INBOUND,
    2: _OUTBOUND,
}


def check_template(template: object) -> None:
    """Raises UsageError unless `template` is an LDS document (see `lds_document`) with a place for every filter."""
    for listener, path in _listeners(lds_document(template)):
        _check_listener(listener, path)
        for manager, manager_path in _managers(listener, path):
            _router_index(manager, manager_path)


def lds_document(template: object) -> dict[str, Any]:
    """`template` as an LDS document: a bare listener, or a list of them, becomes its `resources`. Raises UsageError.

    Envoy asks for an `@type` in each and tells only its log if there is none: it is added.
    """
    wrong = "must be an LDS document: `resources:`, a list of listeners"
    if isinstance(template, Mapping) and "resources" in template:
        document = dict(template)
    elif isinstance(template, list):
        document = {"resources": template}
    elif isinstance(template, Mapping) and _get(template, "filter_chains") is not None:
        document = {"resources": [template]}
    elif isinstance(template, Mapping) and _get(template, "static_resources") is not None:
        raise UsageError(f"{wrong}, not a whole bootstrap; take what is under static_resources")
    else:
        raise UsageError(wrong)
    if not isinstance(document["resources"], list) or not document["resources"]:
        raise UsageError(f"{wrong}, at least one")
    document["resources"] = [
        {"@type": _LISTENER, **each} if isinstance(each, Mapping) else each
        for each in document["resources"]
    ]
    return document


def inject(
    template: Mapping[str, Any], envoyfilters: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """An LDS document: `template` with each EnvoyFilter's HTTP filter before the router, where its match fits.

    Order as in Istio: priority ascending, then namespace and name (files have no creation time); the first stands
    farthest from the router. `workloadSelector` is not evaluated: there is one Envoy.
    Raises UsageError, as `check_template`.
    """
    result = copy.deepcopy(lds_document(template))
    ordered = sorted(envoyfilters, key=_order)
    for listener, path in _listeners(result):
        filters = [value for each in ordered for value in _values_for(listener, each)]
        if not filters:
            continue
        for manager, manager_path in _managers(listener, path):
            index = _router_index(manager, manager_path)
            _get(manager, "http_filters")[index:index] = copy.deepcopy(filters)
    return result


def check_envoyfilter(envoyfilter: Mapping[str, Any]) -> None:
    """Raises ValueError unless `inject` can take it: it may come from a file that somebody edited."""
    try:
        name, namespace, priority = _order_parts(envoyfilter)
        matches = [
            (each["match"]["context"], each["match"]["listener"], each["patch"]["value"])
            for each in envoyfilter["spec"]["configPatches"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an EnvoyFilter of ours: {error!r}") from error
    good = isinstance(name, str) and isinstance(namespace, str) and type(priority) is int
    if not good or not all(
        isinstance(context, str) and isinstance(listener, dict) and isinstance(value, dict)
        for context, listener, value in matches
    ):
        raise ValueError("not an EnvoyFilter of ours: a field has another type")


def _order(envoyfilter: Mapping[str, Any]) -> tuple[int, str, str]:
    name, namespace, priority = _order_parts(envoyfilter)
    return priority, namespace, name


def _order_parts(envoyfilter: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    metadata = envoyfilter["metadata"]
    return metadata["name"], metadata.get("namespace", ""), envoyfilter["spec"].get("priority", 0)


def _values_for(
    listener: Mapping[str, Any], envoyfilter: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    contexts = _CONTEXTS[_get(listener, "traffic_direction")]
    port = _port(listener)
    for patch in envoyfilter["spec"]["configPatches"]:
        match = patch["match"]
        wanted = match["listener"].get("portNumber")
        if match["context"] in contexts and wanted in {None, port}:
            yield patch["patch"]["value"]


def _listeners(document: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for number, listener in enumerate(document["resources"]):
        path = f"resources[{number}]"
        if not isinstance(listener, dict):
            raise UsageError(f"{path}: must be a listener")
        yield listener, path


def _check_listener(listener: Mapping[str, Any], path: str) -> None:
    if listener["@type"] != _LISTENER:
        raise UsageError(f"{path}.@type: must be {_LISTENER}")
    direction = _get(listener, "traffic_direction")
    if not isinstance(direction, str | int | None) or direction not in _CONTEXTS:
        raise UsageError(f"{path}.traffic_direction: must be INBOUND, OUTBOUND or UNSPECIFIED")
    address = listener.get("address")
    # A listener on a pipe or inside Envoy has no port; only filters for all ports go there.
    by_port = _get(address, "socket_address") is not None if isinstance(address, dict) else True
    portless = any(
        _get(listener, name) is not None for name in ("internal_listener", "api_listener")
    )
    if by_port and not portless and _port(listener) is None:
        raise UsageError(f"{path}: has no address.socket_address.port_value")


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
    if isinstance(port, str) and port.isascii() and port.isdecimal():
        return int(port)  # protobuf's JSON takes numbers in quotes
    return port if isinstance(port, int) and not isinstance(port, bool) else None


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
