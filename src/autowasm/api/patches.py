"""The `configPatches` of an EnvoyFilter: which HTTP connection managers of a proxy get the filter. Pure.

Invariants, for a proxy of any mesh (ADR 27, with the table of what istiod renders): the filter is exactly once in every
inbound HTTP chain of every selected port; it is never in the tunnel of a mesh with the ambient profile; other filters keep
their place in that tunnel; without such a tunnel, only the first patch for a port has an effect.
During a staged rollout (ADR 39), the named proxies get another filter: `staged_patches`. Invariant: of the two filters, a
proxy has at most one, and a selected proxy has exactly one.
Source: istio.io/istio, pilot/pkg/networking/core/envoyfilter/listener_patch.go and core/listener_inbound.go.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from autowasm.api.v1alpha1 import Filter, PatchContext, Position

MANAGER: Final = "envoy.filters.network.http_connection_manager"
ROUTER: Final = "envoy.filters.http.router"
FILTER: Final = "envoy.filters.http.wasm"
"""The name of our filter and of most other Wasm filters: a patch that matches it matches those, too."""

TUNNEL: Final = "connect_terminate"
"""The listener on port 15008, which terminates HBONE (mutual TLS and CONNECT) of ambient workloads. Only the tunnel's requests pass it."""
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


Metadata = Mapping[str, str]
"""Values that a proxy's node metadata must have (`NAME`, `NAMESPACE`, `NODE_NAME`, `WORKLOAD_NAME`); strings only match strings."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An HTTP filter, and the listeners in which it is inserted."""

    context: PatchContext
    ports: tuple[int, ...] | None
    value: Mapping[str, Any]
    position: Position = Position.BEFORE_ROUTER

    @property
    def name(self) -> str:
        """The filter's name."""
        name: str = self.value["name"]
        return name

    @property
    def is_in_tunnel(self) -> bool:
        """Whether its patches also match the tunnel's listener, from which it must be removed."""
        inbound = self.context is PatchContext.SIDECAR_INBOUND
        return inbound and (self.ports is None or TUNNEL_PORT in self.ports)

    def is_beside(self, other: "Placed") -> bool:
        """Whether the other filter has the same place in the same listeners."""
        mine, theirs = set(self.ports or (None,)), set(other.ports or (None,))
        return (self.context, self.position, mine) == (other.context, other.position, theirs)


def config_patches(placed: Placed) -> list[dict[str, Any]]:
    """The patches that insert the filter in its listeners. istiod applies them to each listener in order."""
    return staged_patches(placed, None, ())


def staged_patches(
    stable: Placed | None, target: Placed | None, proxies: Sequence[Metadata] | None
) -> list[dict[str, Any]]:
    """The patches that insert `stable` in every proxy but `target`, which has the same name, in `proxies` (None: in all proxies).

    A REPLACE changes the first filter with a name, even one that another EnvoyFilter inserted, so the name must be unique. It has an
    effect only after the INSERT. Without `stable`, `target` is inserted in `proxies` only.
    """
    patches = _inserted(stable, None) if stable is not None else []
    if target is not None:
        for proxy in proxies if proxies is not None else (None,):
            if stable is None:
                patches += _inserted(target, proxy)
            elif target.is_beside(stable):
                patches.append(_named(target.context, "REPLACE", target.name, target.value, proxy))
            else:
                patches += _taken_out(stable, proxy) + _inserted(target, proxy)
    filters = [each for each in (stable, target) if each is not None and each.is_in_tunnel]
    if not filters or not patches:
        return patches
    context = PatchContext.SIDECAR_INBOUND
    anchor = _tunnel(context, "INSERT_FIRST", ROUTER, _ANCHOR)
    return [anchor, *patches, *_cleared(context, filters[0].name)]


def copies(filter_: Filter) -> int:
    """The number of patches that contain the filter and its configuration."""
    ports = len(filter_.apply_ports or ())
    inbound = filter_.context is PatchContext.SIDECAR_INBOUND
    return max(1, 2 * ports if inbound else ports)


def filters_of(envoyfilter: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The HTTP filters that its patches insert, in order. Parts of another form (a manual edit) are skipped."""
    return (patch.value for patch in patches_of(envoyfilter))


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch with a value, as found in an EnvoyFilter."""

    operation: str
    context: str
    listener: Mapping[str, Any]
    proxy: Mapping[str, Any] | None
    value: Mapping[str, Any]


def patches_of(envoyfilter: Mapping[str, Any]) -> Iterator[Patch]:
    """Its patches that have a value, in order. Parts of another form (a manual edit) are skipped."""
    spec = envoyfilter.get("spec")
    patches = spec.get("configPatches") if isinstance(spec, Mapping) else None
    for each in patches if isinstance(patches, list) else ():
        if not isinstance(each, Mapping):
            continue
        patch, match = _mapping(each, "patch"), _mapping(each, "match")
        if not isinstance(value := patch.get("value"), Mapping):
            continue
        yield Patch(
            operation=str(patch.get("operation")),
            context=str(match.get("context")),
            listener=_mapping(match, "listener"),
            proxy=_mapping(match, "proxy") if "proxy" in match else None,
            value=value,
        )


def _mapping(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = parent.get(name)
    return found if isinstance(found, Mapping) else {}


def _inserted(placed: Placed, proxy: Metadata | None) -> list[dict[str, Any]]:
    ports = placed.ports or (None,)
    inserted = [_insert(placed, port_number=port, proxy=proxy) for port in ports]
    if placed.context is not PatchContext.SIDECAR_INBOUND:
        return inserted
    return inserted + [_insert_inner(placed, port, proxy) for port in ports if port is not None]


def _taken_out(placed: Placed, proxy: Metadata | None) -> list[dict[str, Any]]:
    """Remove the filter from all listeners of a proxy, because the next one is for other listeners.

    An older istiod removes filters before it inserts any. With it, a filter without effect stays, as in the tunnel.
    """
    removed = {**_ANCHOR, "name": _REMOVED}
    return [
        _named(placed.context, "REPLACE", placed.name, removed, proxy),
        _named(placed.context, "REMOVE", _REMOVED, None, proxy),
    ]


def _insert(placed: Placed, *, port_number: int | None, proxy: Metadata | None) -> dict[str, Any]:
    """The patch of the reference sample. Without a port it matches every listener of the context."""
    chain, operation = _anchor(placed)
    listener: dict[str, Any] = {"filterChain": chain}
    if port_number is not None:
        listener["portNumber"] = port_number
    return _patch(placed.context, listener, operation, placed.value, proxy)


def _insert_inner(placed: Placed, port: int, proxy: Metadata | None) -> dict[str, Any]:
    """Matches by `destinationPort`: `portNumber` never matches an internal listener, which has no address."""
    chain, operation = _anchor(placed)
    listener = {"filterChain": {"destinationPort": port, **chain}, "name": INNER}
    return _patch(placed.context, listener, operation, placed.value, proxy)


def _anchor(placed: Placed) -> tuple[dict[str, Any], str]:
    """The filter chain and the operation of the patch that inserts the filter.

    If the match named another filter, INSERT_FIRST would have no effect in chains without that filter.
    """
    if placed.position is Position.FIRST:
        return {"filter": {"name": MANAGER}}, "INSERT_FIRST"
    return _chain(ROUTER), "INSERT_BEFORE"


def _cleared(context: PatchContext, name: str) -> list[dict[str, Any]]:
    """Remove our filter and the anchor from the tunnel, where they are the first two.

    REMOVE removes every filter of a name; REPLACE changes only the first one. So REPLACE first gives both a unique name.
    """
    removed = {**_ANCHOR, "name": _REMOVED}
    return [
        _tunnel(context, "REPLACE", name, removed),
        _tunnel(context, "REPLACE", ROUTER, removed),
        _tunnel(context, "REMOVE", _REMOVED),
    ]


def _tunnel(
    context: PatchContext, operation: str, name: str, value: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return _patch(context, {"filterChain": _chain(name), "name": TUNNEL}, operation, value, None)


def _named(
    context: PatchContext,
    operation: str,
    name: str,
    value: Mapping[str, Any] | None,
    proxy: Metadata | None,
) -> dict[str, Any]:
    """A patch of the first filter of this name, in every listener of the context."""
    return _patch(context, {"filterChain": _chain(name)}, operation, value, proxy)


def _chain(name: str) -> dict[str, Any]:
    return {"filter": {"name": MANAGER, "subFilter": {"name": name}}}


def _patch(
    context: PatchContext,
    listener: Mapping[str, Any],
    operation: str,
    value: Mapping[str, Any] | None,
    proxy: Metadata | None,
) -> dict[str, Any]:
    match: dict[str, Any] = {"context": context.value, "listener": dict(listener)}
    if proxy is not None:
        match["proxy"] = {"metadata": dict(sorted(proxy.items()))}
    patch: dict[str, Any] = {"operation": operation}
    if value is not None:
        patch["value"] = value
    return {"applyTo": "HTTP_FILTER", "match": match, "patch": patch}
