"""The EnvoyFilter of an AutoWasm with `spec.rollout`: two variants of the filter, and which proxies have the newer one. Pure.

Istio has no "all but" match: the stable variant is inserted in every proxy, and a REPLACE puts the target variant in its place if
a proxy's node metadata match (ADR 39). Invariants: the same input gives the same bytes; `variants_of` returns the variants that
`render` wrote; the filter's name is unique to the AutoWasm, because REPLACE changes the first filter with a name, even one of another vendor.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from autowasm.api import patches
from autowasm.api import record as records
from autowasm.api.envoyfilter import (
    Variant,
    envoyfilter,
    http_filter,
    plugin_config,
    read_filter,
    records_of,
    staged_plugin_name,
)
from autowasm.api.patches import Metadata, Patch, Placed
from autowasm.api.status import MAX_STAGED
from autowasm.api.v1alpha1 import AutoWasm, PatchContext, Position
from autowasm.digest import Sha256Hex
from autowasm.settings import EnvoyFetch

MAX_BYTES: Final = 1024 * 1024
"""Of the patches; etcd refuses objects above 1.5 MiB."""
MAX_VALUES: Final = 40_000
"""In the patches: an object of more than 50 000 is truncated when read (`KubeLimits.object_values`)."""
_ESCAPED: Final = {"<": 5, ">": 5, "&": 5, "\u2028": 3, "\u2029": 3, "\\b": 4, "\\f": 4}
"""Additional bytes for each in JSON: the API server stores escapes of six bytes (`pluginconfig.py`)."""


def filter_name(autowasm: AutoWasm) -> str:
    """The name of the HTTP filter in istiod's configuration."""
    return f"autowasm/{autowasm.metadata.namespace}.{autowasm.metadata.name}"


def render(
    autowasm: AutoWasm,
    settings: EnvoyFetch,
    *,
    stable: Variant | None,
    target: Variant | None,
    proxies: Sequence[Metadata] | None = (),
) -> dict[str, Any]:
    """The whole object, keys in sorted order.

    Every proxy gets `stable`, except that `proxies` (None: all proxies) get `target`. Selector, priority and owner are the
    AutoWasm's. There are no patches if both are absent, or if `stable` is absent and `proxies` is empty.
    """
    if not proxies and proxies is not None:
        target = None
    placed = [_placed(autowasm, variant, settings) for variant in (stable, target)]
    return envoyfilter(
        autowasm,
        settings,
        patches_=patches.staged_patches(placed[0], placed[1], proxies),
        annotations=_annotations(stable, target),
    )


def _placed(autowasm: AutoWasm, variant: Variant | None, settings: EnvoyFetch) -> Placed | None:
    if variant is None:
        return None
    plugin = staged_plugin_name(autowasm, variant)
    value = http_filter(variant, settings, name=filter_name(autowasm), plugin_name=plugin)
    return Placed(variant.context, variant.ports, value, variant.position)


def _annotations(stable: Variant | None, target: Variant | None) -> dict[str, str]:
    newest = target or stable
    annotations = {}
    if newest is not None and newest.record is not None:
        annotations[records.ANNOTATION] = records.dump(newest.record)
        if stable is not None and stable.record is not None and stable.record != newest.record:
            annotations[records.STABLE_ANNOTATION] = records.dump(stable.record)
    return annotations


@dataclass(frozen=True, slots=True)
class Variants:
    """The variants in an EnvoyFilter. Without a rollout, and after one, there is only `base`."""

    base: Variant | None = None
    """In every proxy that has no other."""
    override: Variant | None = None
    """In the proxies that patches name, or in all."""

    def find(self, digest: str) -> Variant | None:
        """The variant with this digest."""
        both = (self.base, self.override)
        return next((one for one in both if one is not None and one.digest == digest), None)


@dataclass(frozen=True, slots=True)
class Overridden:
    """The plugin configurations in the patches of an EnvoyFilter, and the proxies that have the second one."""

    base: Mapping[str, Any] | None
    override: Mapping[str, Any] | None
    proxies: frozenset[frozenset[tuple[str, str]]] | None
    """The node metadata that the patches name; None: all proxies."""

    def has(self, *metadata: Metadata) -> bool:
        """Whether a proxy with one of these values has the override."""
        if self.proxies is None:
            return self.override is not None
        return any(frozenset(one.items()) in self.proxies for one in metadata)


def overridden(document: Mapping[str, Any]) -> Overridden:
    """Read the configuration of each proxy. The EnvoyFilter may have been written without a rollout."""
    found = [each for each in patches.patches_of(document) if not _is_of_tunnel(each)]
    base = plugin_config(each.value for each in found if not _is_override(each))
    others = [each for each in found if _is_override(each)]
    override = plugin_config(each.value for each in others)
    if any(each.proxy is None for each in others):
        return Overridden(base, override, None)
    return Overridden(base, override, frozenset(map(_metadata, others)))


def _metadata(patch: Patch) -> frozenset[tuple[str, str]]:
    """The node metadata that it matches; empty, which matches no proxy, after a manual edit of another form."""
    metadata = (patch.proxy or {}).get("metadata")
    items = metadata.items() if isinstance(metadata, Mapping) else ()
    return frozenset((str(name), str(value)) for name, value in items)


def variants_of(document: Mapping[str, Any]) -> Variants:
    """Read the variants back. The EnvoyFilter may have been written without a rollout.

    Patches that another client changed into another form are skipped; the caller compares the digests with those of the status.
    """
    found = [each for each in patches.patches_of(document) if not _is_of_tunnel(each)]
    first = next((i for i, each in enumerate(found) if _is_override(each)), len(found))
    newest_first = records_of(document)
    # Two sources may have the same module: the newest record is the override's.
    base = _variant(found[:first], {one.sha256: one for one in newest_first})
    override = _variant(found[first:], {one.sha256: one for one in reversed(newest_first)})
    if override is not None and base is not None and _is_replaced(found[first]):
        override = msgspec.structs.replace(
            override, context=base.context, ports=base.ports, position=base.position
        )
    return Variants(base, override)


def _is_of_tunnel(patch: Patch) -> bool:
    return patch.listener.get("name") == patches.TUNNEL


def _is_override(patch: Patch) -> bool:
    return patch.proxy is not None or patch.operation == "REPLACE"


def _is_replaced(patch: Patch) -> bool:
    """Whether the target replaces the stable filter, and so has the same listeners."""
    return (
        patch.operation == "REPLACE"
        and read_filter(patch.value, context=PatchContext.SIDECAR_INBOUND, ports=None) is not None
    )


def _variant(found: Sequence[Patch], known: Mapping[Sha256Hex, records.Record]) -> Variant | None:
    """The variant of the first filter in our form, with the ports of all patches that insert it."""
    ports: dict[int, None] = {}
    first: Variant | None = None
    for patch in found:
        try:
            context = PatchContext(patch.context)
        except ValueError:
            continue
        one = read_filter(patch.value, context=context, ports=None)
        if one is None:
            continue
        if patch.operation == "INSERT_FIRST":
            one = msgspec.structs.replace(one, position=Position.FIRST)
        first = first or one
        port = patch.listener.get("portNumber")
        if isinstance(port, int):
            ports[port] = None
    if first is None:
        return None
    return msgspec.structs.replace(
        first, ports=tuple(ports) or None, record=known.get(first.sha256)
    )


def capacity(
    autowasm: AutoWasm,
    settings: EnvoyFetch,
    *,
    stable: Variant | None,
    target: Variant,
    proxies: Iterable[Metadata],
) -> int:
    """The number of `proxies` that patches can name in one EnvoyFilter that is stored and read whole; at most `MAX_STAGED`."""
    longest = max(proxies, key=lambda one: sum(map(len, one.values())), default={"NAME": ""})
    placed, next_ = _placed(autowasm, stable, settings), _placed(autowasm, target, settings)
    for_all: list[tuple[int, int]] = []  # sizes of the patches that occur once
    for_each: list[tuple[int, int]] = []  # sizes of the patches that each name adds
    for patch in patches.staged_patches(placed, next_, (longest,)):
        (for_each if "proxy" in patch["match"] else for_all).append(_costs(patch))
    fits = MAX_STAGED
    for most, empty, once, each in zip(
        (MAX_BYTES, MAX_VALUES), _costs([]), _sums(for_all), _sums(for_each), strict=True
    ):
        fits = min(fits, (most - max(empty, once)) // each)
    return max(0, fits)


def _sums(costs: list[tuple[int, int]]) -> tuple[int, int]:
    """The size of patches in a list: a comma or a bracket precedes each."""
    return sum(size + 1 for size, _ in costs), sum(values + 1 for _, values in costs)


def _costs(part: dict[str, Any] | list[Any]) -> tuple[int, int]:
    """Bytes in etcd, and an upper bound of the number of values."""
    text = msgspec.json.encode(part).decode()
    escapes = sum(more * text.count(each) for each, more in _ESCAPED.items())
    return len(text.encode()) + escapes, sum(map(text.count, ",{["))
