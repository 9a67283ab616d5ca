"""Chooses the conversion for an object."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

from autowasm.convert import envoyfilters, envoygateway, istio
from autowasm.convert.conversion import Batch, Conversion, Document


class Converter(Protocol):
    """Converts one object to AutoWasms."""

    def __call__(self, source: Document, batch: Batch, /) -> Conversion:
        """`batch` has all objects, including this one."""


CONVERTERS: Final[Mapping[tuple[str, str], Converter]] = MappingProxyType(
    {
        ("extensions.istio.io", "WasmPlugin"): istio.wasm_plugin,
        ("extensions.istio.io", "TrafficExtension"): istio.traffic_extension,
        ("extensions.higress.io", "WasmPlugin"): istio.higress_plugin,
        ("gateway.envoyproxy.io", "EnvoyExtensionPolicy"): envoygateway.extension_policy,
        ("networking.istio.io", "EnvoyFilter"): envoyfilters.envoy_filter,
    }
)
"""By API group and kind: each version of a group has the same fields."""


def converter_of(source: Document) -> Converter | None:
    """None for an object of another kind, and for an EnvoyFilter without Wasm."""
    group = str(source.get("apiVersion") or "").partition("/")[0]
    found = CONVERTERS.get((group, str(source.get("kind"))))
    if found is envoyfilters.envoy_filter and not envoyfilters.has_wasm(source):
        return None
    return found
