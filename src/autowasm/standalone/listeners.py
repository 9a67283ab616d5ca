"""ListenerTemplate: a listener template with the filters inserted. Pure.

For a plain Envoy, it applies an EnvoyFilter of our form as istiod does, and implements no other part of Istio. `workloadSelector`
is not evaluated: there is one Envoy. `template.py` inserts into the author's text and changes nothing else. Invariants: the
template's own filters stay, in their order; the same input gives the same output.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autowasm.errors import UsageError
from autowasm.manifests import nodes
from autowasm.standalone import template
from autowasm.standalone.template import Place, Template, Tree

_MANAGER = "envoy.filters.network.http_connection_manager"
_ROUTER = "envoy.filters.http.router"
_LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
# A listener without a direction takes both: a plain Envoy is a sidecar without Istio, or a gateway.
_UNDIRECTED = frozenset({"SIDECAR_INBOUND", "GATEWAY"})
_INBOUND = frozenset({"SIDECAR_INBOUND"})
_OUTBOUND = frozenset({"SIDECAR_OUTBOUND"})
_CONTEXTS: dict[str | None, frozenset[str]] = {
    None: _UNDIRECTED,
    "UNSPECIFIED": _UNDIRECTED,
    "INBOUND": _INBOUND,
    "OUTBOUND": _OUTBOUND,
    # The enum's numbers, which Envoy also accepts.
    "0": _UNDIRECTED,
    "1": _INBOUND,
    "2": _OUTBOUND,
}


_FIRST = "INSERT_FIRST"


@dataclass(frozen=True, slots=True)
class _Slot:
    """A place for filters in a listener: for first filters, for filters before the router, or for both if the places are the same."""

    listener: Tree
    place: Place
    takes_first: bool
    takes_last: bool


class ListenerTemplate:
    """An LDS document for Envoy's filesystem subscription, as YAML or JSON."""

    def __init__(self, text: str) -> None:
        """`text` is an LDS document, a list of listeners, or one listener; the latter two become `resources`.

        Envoy requires an `@type` in each and only logs a missing one, so it is added. Raises UsageError for an invalid listener
        or a connection manager without a router, and Unreadable if the text is not YAML.
        """
        bare = text.removeprefix("\ufeff")  # libyaml counts from the position after it
        self._mark = text[: len(text) - len(bare)]
        text = _with_types(_with_resources(template.as_yaml(bare)))
        self._template = Template(text, _places)
        tree = self._template.tree()
        for listener, path in _listeners(tree):
            _check_listener(listener, path)
        _places(tree)

    def inject(self, envoyfilters: Sequence[Mapping[str, Any]]) -> str:
        """The template with each EnvoyFilter's HTTP filter first or before the router, where its match fits.

        As in Istio, filters are inserted by priority, then by namespace and name (files have no creation time). So among filters
        before the router, the lowest priority is farthest from it; among first filters, the highest priority is first.
        """
        ordered = sorted(envoyfilters, key=_order)
        wanted = []
        for slot in _slots(self._template.tree()):
            first = (
                [*_values_for(slot.listener, ordered, is_first=True)] if slot.takes_first else []
            )
            last = [*_values_for(slot.listener, ordered, is_first=False)] if slot.takes_last else []
            wanted.append([*reversed(first), *last])
        return self._mark + self._template.insert(wanted)


def check_envoyfilter(envoyfilter: Mapping[str, Any]) -> None:
    """Raises ValueError unless `inject` can use the EnvoyFilter, whose file may have been edited."""
    try:
        name, namespace, priority = _order_parts(envoyfilter)
        matches = [
            (each["match"]["context"], each["match"]["listener"], each["patch"]["value"])
            for each in envoyfilter["spec"]["configPatches"]
            if not _is_istios(each)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an EnvoyFilter written by wasmer: {error!r}") from error
    good = isinstance(name, str) and isinstance(namespace, str) and type(priority) is int
    if not good or not all(
        isinstance(context, str) and isinstance(listener, dict) and isinstance(value, dict)
        for context, listener, value in matches
    ):
        raise ValueError("not an EnvoyFilter written by wasmer: a field has another type")


def _order(envoyfilter: Mapping[str, Any]) -> tuple[int, str, str]:
    name, namespace, priority = _order_parts(envoyfilter)
    return priority, namespace, name


def _order_parts(envoyfilter: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    metadata = envoyfilter["metadata"]
    return metadata["name"], metadata.get("namespace", ""), envoyfilter["spec"].get("priority", 0)


def _values_for(
    listener: Tree, envoyfilters: Sequence[Mapping[str, Any]], *, is_first: bool
) -> Iterator[Mapping[str, Any]]:
    direction = listener.get("traffic_direction")
    contexts = _CONTEXTS[direction.scalar if direction is not None else None]
    port = _port(listener)
    for patch in (each for one in envoyfilters for each in one["spec"]["configPatches"]):
        match = patch["match"]
        if _is_istios(patch) or (patch["patch"].get("operation") == _FIRST) is not is_first:
            continue
        wanted = match["listener"].get("portNumber")
        if match["context"] in contexts and wanted in {None, port}:
            yield patch["patch"]["value"]


def _is_istios(patch: Mapping[str, Any]) -> bool:
    """Whether the patch is for a listener that only istiod makes (`api/patches.py`): its match has the listener's name."""
    return "name" in patch["match"]["listener"]


def _with_resources(text: str) -> str:
    """The text as an LDS document. Raises UsageError, Unreadable."""
    wrong = "must be an LDS document: `resources:`, a list of listeners"
    found, _ = nodes.first_document(text)
    if found is None:
        raise UsageError(wrong)
    root = template.expand(found)
    start, end = found.start.index, found.end.index
    line_end = "\r\n" if "\r\n" in text else "\n"
    line = " " * found.start.column
    if root.has("resources"):
        resources = root.get("resources")
        if resources is None or not resources.items:
            raise UsageError(f"{wrong}, at least one")
        return text
    if root.items is not None and isinstance(found, nodes.Sequence):
        if not root.items:
            raise UsageError(f"{wrong}, at least one")
        listeners = root
        edits = [(start, "{resources: "), (end, "}")]
        if not found.flow:
            edits = [(start, f"resources:{line_end}{line}")]
    elif root.get("filter_chains") is not None and isinstance(found, nodes.Mapping):
        listeners = Tree(None, items=[root])
        edits = [(start, "{resources: ["), (end, "]}")]
        if not found.flow:
            first = [(start, f"resources:{line_end}{line}- ")]
            edits = first + [(index, "  ") for index in _line_starts(text, start, end)]
    elif root.get("static_resources") is not None:
        raise UsageError(f"{wrong}, not a whole bootstrap; use the content of static_resources")
    else:
        raise UsageError(wrong)
    wrapped = Tree(None, pairs=[(template.tree_of("resources"), listeners)])
    return template.edited(text, edits, wrapped)


def _line_starts(text: str, start: int, end: int) -> Iterator[int]:
    """Starts of the lines after that of `start`, up to `end`, without empty lines."""
    index = text.find("\n", start) + 1
    while 0 < index < end:
        if text[index : index + 1] not in {"\r", "\n"}:
            yield index
        index = text.find("\n", index) + 1


def _with_types(text: str) -> str:
    """The text with an `@type` in every listener. Raises UsageError, Unreadable."""
    found, _ = nodes.first_document(text)
    if found is None:  # pragma: no cover  # the text has resources
        return text
    root = template.expand(found)
    edits: dict[int, str] = {}
    pair = (template.tree_of("@type"), template.tree_of(_LISTENER))
    line_end = "\r\n" if "\r\n" in text else "\n"
    for listener, _path in _listeners(root):
        if listener.has("@type") or not isinstance(listener.source, nodes.Mapping):
            continue
        if listener.pairs:
            place = listener.source.pairs[0][0].start
            after = ", " if listener.source.flow else line_end + " " * place.column
            edits[place.index] = f'"@type": {_LISTENER}{after}'
        else:
            edits[listener.source.start.index] = ""  # `{}`: written from the tree
        listener.pairs = [pair, *(listener.pairs or [])]
    return template.edited(text, edits.items(), root) if edits else text


def _slots(document: Tree) -> list[_Slot]:
    """The places in every HTTP connection manager of every listener."""
    found = []
    for listener, path in _listeners(document):
        for manager, manager_path in _managers(listener, path):
            last = _before_router(manager, manager_path)
            is_one = last.index == 0
            if not is_one:
                found.append(_Slot(listener, Place(last.sequence, 0), True, False))
            found.append(_Slot(listener, last, is_one, True))
    return found


def _places(document: Tree) -> list[Place]:
    return [slot.place for slot in _slots(document)]


def _listeners(document: Tree) -> Iterator[tuple[Tree, str]]:
    for number, listener in enumerate(_list(document, "resources", "")):
        path = f"resources[{number}]"
        if listener.pairs is None:
            raise UsageError(f"{path}: must be a listener")
        yield listener, path


def _check_listener(listener: Tree, path: str) -> None:
    kind = listener.get("@type")
    if kind is None or kind.scalar != _LISTENER:
        raise UsageError(f"{path}.@type: must be {_LISTENER}")
    direction = listener.get("traffic_direction")
    if direction is not None and (direction.scalar is None or direction.scalar not in _CONTEXTS):
        raise UsageError(f"{path}.traffic_direction: must be INBOUND, OUTBOUND or UNSPECIFIED")
    address = listener.get("address")
    # A listener on a pipe or inside Envoy has no port; it gets only filters for all ports.
    by_port = address is None or address.pairs is None or address.get("socket_address") is not None
    portless = any(listener.get(name) is not None for name in ("internal_listener", "api_listener"))
    if by_port and not portless and _port(listener) is None:
        raise UsageError(f"{path}: has no address.socket_address.port_value")


def _managers(listener: Tree, path: str) -> Iterator[tuple[Tree, str]]:
    """Every HTTP connection manager of the listener."""
    for chain, chain_path in _chains(listener, path):
        for number, filter_ in enumerate(_list(chain, "filters", chain_path)):
            filter_path = f"{chain_path}.filters[{number}]"
            if filter_.pairs is None:
                raise UsageError(f"{filter_path}: must be a filter")
            config = filter_.get("typed_config")
            if _text(filter_, "name") == _MANAGER or _kind(config).endswith(
                ".HttpConnectionManager"
            ):
                if config is None or config.pairs is None:
                    raise UsageError(f"{filter_path}.typed_config: is missing")
                yield config, f"{filter_path}.typed_config"


def _chains(listener: Tree, path: str) -> Iterator[tuple[Tree, str]]:
    chains = [
        (chain, f"{path}.filter_chains[{number}]")
        for number, chain in enumerate(_list(listener, "filter_chains", path))
    ]
    default = listener.get("default_filter_chain")
    if default is not None:
        chains.append((default, f"{path}.default_filter_chain"))
    for chain, chain_path in chains:
        if chain.pairs is None:
            raise UsageError(f"{chain_path}: must be a filter chain")
        yield chain, chain_path


def _before_router(manager: Tree, path: str) -> Place:
    for number, filter_ in enumerate(_list(manager, "http_filters", path)):
        kind = _kind(filter_.get("typed_config"))
        if _text(filter_, "name") == _ROUTER or kind.endswith("router.v3.Router"):
            filters = manager.get("http_filters")
            assert filters is not None  # noqa: S101  # for mypy: `_list` has just read it
            return Place(filters, number)
    raise UsageError(f"{path}.http_filters: no {_ROUTER}, before which filters are inserted")


def _port(listener: Tree) -> int | None:
    address = listener.get("address")
    socket_address = address.get("socket_address") if address is not None else None
    port = socket_address.get("port_value") if socket_address is not None else None
    return port.integer if port is not None else None


def _kind(config: Tree | None) -> str:
    return _text(config, "@type") or "" if config is not None else ""


def _text(tree: Tree, name: str) -> str | None:
    value = tree.get(name)
    return value.scalar if value is not None else None


def _list(tree: Tree, name: str, path: str) -> list[Tree]:
    value = tree.get(name)
    if value is None:
        return []
    if value.items is None:
        raise UsageError(f"{path}.{name}: must be a list")
    return value.items
