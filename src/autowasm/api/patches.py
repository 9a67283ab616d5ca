"""The `configPatches` of an EnvoyFilter: which HTTP connection managers of a proxy get the filter. Pure.

Invariants, for a proxy of any mesh (ADR 27, with the table of what istiod renders): the filter is exactly once in every
inbound HTTP chain of every selected port; it is never in the tunnel of a mesh with the ambient profile; other filters keep
their place in that tunnel; without such a tunnel, only the first patch of a port has an effect.
Source: istio.io/istio, pilot/pkg/networking/core/envoyfilter/listener_patch.go and core/listener_inbound.go.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from autowasm.api.v1alpha1 import Filter, PatchContext

MANAGER: Final = "envoy.filters.network.http_connection_manager"
ROUTER: Final = "envoy.filters.http.router"
FILTER: Final = "envoy.filters.http.wasm"
"""The name of our filter and of most other Wasm filters: a patch that matches it matches those, too."""

TUNNEL: Final = "connect_terminate"
"""The listener on port 15008, which terminates mutual TLS and CONNECT of ambient workloads. Only the tunnel's requests pass it."""
INNER: Final = "main_internal"
"""The internal listener to which the tunnel leads: one chain for each port, as in the listener of captured connections."""
TUNNEL_PORT: Final = 15008

_ANCHOR: Final = {
    "name": ROUTER,
    "typedConfig": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"},
}
"""Has the router's name while istiod applies our patches. An older istiod removes filters before it inserts any, so it sends
this one to the proxy; a CORS filter without a policy has no effect (ADR 27)."""
_REMOVED: Final = "autowasm.removed"
"""No other filter has this name, so a REMOVE by name is safe."""


def config_patches(filter_: Filter, value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The patches that insert the HTTP filter `value` where `filter_` selects. istiod applies them to each listener in order."""
    context, ports = filter_.context, filter_.apply_ports or (None,)
    if context is not PatchContext.SIDECAR_INBOUND:
        return [_insert(context, value, port_number=port) for port in ports]
    inserted = [_insert(context, value, port_number=port) for port in ports]
    inserted += [_insert_inner(context, value, port) for port in ports if port is not None]
    if None in ports or TUNNEL_PORT in ports:  # the first patch matches the tunnel's listener, too
        return [_tunnel(context, "INSERT_FIRST", ROUTER, _ANCHOR), *inserted, *_cleared(context)]
    return inserted


def copies(filter_: Filter) -> int:
    """The number of patches that hold the filter, and so its configuration."""
    ports = len(filter_.apply_ports or ())
    inbound = filter_.context is PatchContext.SIDECAR_INBOUND
    return max(1, 2 * ports if inbound else ports)


def filters_of(envoyfilter: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The HTTP filters that its patches insert, in order. Parts of another form (a manual edit) are skipped."""
    spec = envoyfilter.get("spec")
    patches = spec.get("configPatches") if isinstance(spec, Mapping) else None
    for each in patches if isinstance(patches, list) else ():
        patch = each.get("patch") if isinstance(each, Mapping) else None
        value = patch.get("value") if isinstance(patch, Mapping) else None
        if isinstance(value, Mapping):
            yield value


def _insert(
    context: PatchContext, value: Mapping[str, Any], *, port_number: int | None
) -> dict[str, Any]:
    """The patch of the reference sample. Without a port it matches every listener of the context."""
    listener: dict[str, Any] = {"filterChain": _chain(ROUTER)}
    if port_number is not None:
        listener["portNumber"] = port_number
    return _patch(context, listener, "INSERT_BEFORE", value)


def _insert_inner(context: PatchContext, value: Mapping[str, Any], port: int) -> dict[str, Any]:
    """Matches by `destinationPort`: `portNumber` never matches an internal listener, which has no address."""
    listener = {"filterChain": {"destinationPort": port, **_chain(ROUTER)}, "name": INNER}
    return _patch(context, listener, "INSERT_BEFORE", value)


def _cleared(context: PatchContext) -> list[dict[str, Any]]:
    """Remove our filter and the anchor from the tunnel, where they are the first two.

    REMOVE removes every filter of a name; REPLACE changes only the first one. So REPLACE first gives both a unique name.
    """
    removed = {**_ANCHOR, "name": _REMOVED}
    return [
        _tunnel(context, "REPLACE", FILTER, removed),
        _tunnel(context, "REPLACE", ROUTER, removed),
        _tunnel(context, "REMOVE", _REMOVED),
    ]


def _tunnel(
    context: PatchContext, operation: str, name: str, value: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return _patch(context, {"filterChain": _chain(name), "name": TUNNEL}, operation, value)


def _chain(name: str) -> dict[str, Any]:
    return {"filter": {"name": MANAGER, "subFilter": {"name": name}}}


def _patch(
    context: PatchContext,
    listener: Mapping[str, Any],
    operation: str,
    value: Mapping[str, Any] | None,
) -> dict[str, Any]:
    patch: dict[str, Any] = {"operation": operation}
    if value is not None:
        patch["value"] = value
    return {
        "applyTo": "HTTP_FILTER",
        "match": {"context": context.value, "listener": dict(listener)},
        "patch": patch,
    }
