"""The layouts in which an image holds a module, and the choice of the layers to search.

One table serves the choice, `wasmc inspect` and docs/layouts.md. Other readers' rules are in `consumers.py`; tests compare
the two. Invariants: a layer type is in the rows of one packing only, so the type alone decides how a layer is opened;
only layers whose media type is in the table are downloaded.

Sources: solo.io's `spec.md` and `spec-compat.md`; the CNCF's "Wasm OCI Artifact layout"; engineerd/wasm-to-oci; and the
readers of other projects: Istio `pkg/wasm/imagefetcher.go`, Envoy Gateway `internal/wasm/imagefetcher.go`, wasme
`pkg/pull/image.go`, Kubewarden policy-fetcher `src/registry/mod.rs`, rust-oci-wasm `src/client.rs`.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.reasons import Reason
from autowasm.registry import mediatypes
from autowasm.registry.manifest import Descriptor, Manifest, shown_text, shown_types

WASMER: Final = "wasmer"
ISTIO: Final = "Istio"
ENVOY_GATEWAY: Final = "Envoy Gateway"
WASME: Final = "wasme"
KWCTL: Final = "kwctl"
WKG: Final = "wkg"

CONSUMERS: Final[Mapping[str, str]] = {
    WASMER: "this program",
    ISTIO: "WasmPlugin, 1.12 and later",
    ENVOY_GATEWAY: "EnvoyExtensionPolicy, 1.1 and later",
    WASME: "solo.io's tool and operator",
    KWCTL: "Kubewarden",
    WKG: "wasm-pkg-tools",
}
"""The programs that pull images, and the product or version of each."""


class Packing(enum.Enum):
    """How a layer packs the module; the values are the `packing` of `autowasm.wasm.archive`."""

    RAW = "raw"
    TAR = "tar"
    TAR_GZIP = "tar+gzip"
    TAR_ZSTD = "tar+zstd"


def _always(_manifest: Manifest, _layer: Descriptor) -> bool:
    return True


def _has_two_layers(manifest: Manifest, _layer: Descriptor) -> bool:
    return len(manifest.layers or ()) == 2


def _is_last(manifest: Manifest, layer: Descriptor) -> bool:
    layers = manifest.layers or ()
    return bool(layers) and layers[-1].digest_text == layer.digest_text


def _is_last_of_docker(manifest: Manifest, layer: Descriptor) -> bool:
    return manifest.media_type == mediatypes.DOCKER_MANIFEST and _is_last(manifest, layer)


def _is_last_of_oci(manifest: Manifest, layer: Descriptor) -> bool:
    return manifest.media_type != mediatypes.DOCKER_MANIFEST and _is_last(manifest, layer)


def _has_config_v0(manifest: Manifest, _layer: Descriptor) -> bool:
    return manifest.config.media_type == mediatypes.CNCF_CONFIG_V0


@dataclass(frozen=True, slots=True)
class KnownLayout:
    """One row. `config` and `layers` are for people; `layer_types` with `holds` decide."""

    name: str
    config: str
    layers: str
    layer_types: tuple[str, ...]
    packing: Packing
    readers: tuple[str, ...]
    """The consumers that read it, if a tar layer holds the module as `plugin.wasm`."""
    holds: Callable[[Manifest, Descriptor], bool] = _always
    push_format: str = ""
    """Its name in `wasmc push --format`."""


VARIANTS: Final = (
    KnownLayout(
        "solo artifact, two layers",
        mediatypes.WASM_CONFIG,
        "the config again, and the bare module",
        (mediatypes.WASM_CONTENT,),
        Packing.RAW,
        (WASMER, ISTIO, ENVOY_GATEWAY, WASME),
        _has_two_layers,
        "artifact",
    ),
    KnownLayout(
        "solo artifact, another number of layers",
        "any",
        "the bare module, alone or with layers of other types",
        (mediatypes.WASM_CONTENT,),
        Packing.RAW,
        (WASMER, WASME),
    ),
    KnownLayout(
        "compat image, module in the last layer",
        mediatypes.OCI_IMAGE_CONFIG,
        "any; the last has plugin.wasm",
        (mediatypes.OCI_LAYER_TAR_GZIP,),
        Packing.TAR_GZIP,
        (WASMER, ISTIO, ENVOY_GATEWAY),
        _is_last_of_oci,
        "image",
    ),
    KnownLayout(
        "compat image, module in an earlier layer",
        mediatypes.OCI_IMAGE_CONFIG,
        "any; one has plugin.wasm, and no later layer deletes it",
        (mediatypes.OCI_LAYER_TAR_GZIP,),
        Packing.TAR_GZIP,
        (WASMER,),
    ),
    KnownLayout(
        "compat image, not compressed",
        mediatypes.OCI_IMAGE_CONFIG,
        "any; one has plugin.wasm",
        (mediatypes.OCI_LAYER_TAR,),
        Packing.TAR,
        (WASMER,),
    ),
    KnownLayout(
        "compat image, zstd",
        mediatypes.OCI_IMAGE_CONFIG,
        "any; one has plugin.wasm",
        (mediatypes.OCI_LAYER_TAR_ZSTD,),
        Packing.TAR_ZSTD,
        (WASMER,),
    ),
    KnownLayout(
        "Docker image, module in the last layer",
        mediatypes.DOCKER_IMAGE_CONFIG,
        "any; the last has plugin.wasm",
        (mediatypes.DOCKER_LAYER_TAR_GZIP,),
        Packing.TAR_GZIP,
        (WASMER, ISTIO, ENVOY_GATEWAY),
        _is_last_of_docker,
    ),
    KnownLayout(
        "Docker image, module in an earlier layer",
        mediatypes.DOCKER_IMAGE_CONFIG,
        "any; one has plugin.wasm, and no later layer deletes it",
        (mediatypes.DOCKER_LAYER_TAR_GZIP,),
        Packing.TAR_GZIP,
        (WASMER,),
    ),
    KnownLayout(
        "Docker image, not compressed",
        mediatypes.DOCKER_IMAGE_CONFIG,
        "any; one has plugin.wasm",
        (mediatypes.DOCKER_LAYER_TAR,),
        Packing.TAR,
        (WASMER,),
    ),
    KnownLayout(
        "Docker image, zstd",
        mediatypes.DOCKER_IMAGE_CONFIG,
        "any; one has plugin.wasm",
        (mediatypes.DOCKER_LAYER_TAR_ZSTD,),
        Packing.TAR_ZSTD,
        (WASMER,),
    ),
    KnownLayout(
        "CNCF artifact",
        mediatypes.CNCF_CONFIG_V0,
        "one: the bare module",
        (mediatypes.CNCF_WASM,),
        Packing.RAW,
        (WASMER, WKG),
        _has_config_v0,
        "cncf",
    ),
    KnownLayout(
        "CNCF artifact, another config",
        f"{mediatypes.CNCF_CONFIG_V1} or any",
        "one: the bare module",
        (mediatypes.CNCF_WASM,),
        Packing.RAW,
        (WASMER,),
    ),
    KnownLayout(
        "wasm-to-oci, Kubewarden",
        mediatypes.CNCF_CONFIG_V1,
        "one: the bare module",
        (mediatypes.WASM_TO_OCI,),
        Packing.RAW,
        (WASMER, KWCTL),
        _always,
        "kwctl",
    ),
)

PACKING: Final[Mapping[str, Packing]] = {
    layer_type: variant.packing for variant in VARIANTS for layer_type in variant.layer_types
}
"""Every layer type that is read. Other layers are ignored: configs, docs, icons."""


_LINUX_ENTRY: Final = "its linux/amd64 entry"

INDEX_READERS: Final[Mapping[str, str]] = {
    WASMER: "any image in it",
    ISTIO: _LINUX_ENTRY,
    ENVOY_GATEWAY: _LINUX_ENTRY,
    WASME: "no",
    KWCTL: _LINUX_ENTRY,
    WKG: _LINUX_ENTRY,
}
"""Which image of an index each consumer reads; the images have the layouts above."""


def variant_of(manifest: Manifest, layer: Descriptor) -> KnownLayout:
    """The row of an image whose module is in `layer`. The type of `layer` is in `PACKING`."""
    return next(
        variant
        for variant in VARIANTS
        if layer.media_type in variant.layer_types and variant.holds(manifest, layer)
    )


def table() -> str:
    """The table in docs/layouts.md, as Markdown."""
    heads = ["Layout", "Type of the layer with the module", "Layers", "Config", *CONSUMERS, "push"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for variant in VARIANTS:
        cells = [
            variant.name,
            "<br>".join(f"`{layer_type}`" for layer_type in variant.layer_types),
            variant.layers,
            " or ".join(
                f"`{part}`" if "/" in part else part for part in variant.config.split(" or ")
            ),
            *("yes" if consumer in variant.readers else "no" for consumer in CONSUMERS),
            f"`{variant.push_format}`" if variant.push_format else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    types = "<br>".join(f"`{index_type}`" for index_type in sorted(mediatypes.INDEXES))
    taken = [INDEX_READERS[consumer] for consumer in CONSUMERS]
    cells = ["image index", types, "attestations are skipped", "", *taken, ""]
    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_SHOWN_CANDIDATES = 4


@dataclass(frozen=True, slots=True)
class LayerCandidate:
    """A layer that may hold the module."""

    descriptor: Descriptor
    packing: Packing


@dataclass(frozen=True, slots=True)
class Layout:
    """`artifact`: one candidate, which is the module. `image`: tar layers, in the order to search."""

    kind: Literal["artifact", "image"]
    candidates: tuple[LayerCandidate, ...]


def choose_layout(manifest: Manifest, *, limits: Limits) -> Layout:
    """The layers to search. The type of the config is not used: clients write many, and the layer types suffice.

    Layers of an image are searched from the last to the first: the last one was added last, and the specification of
    `compat` images puts the module there. Raises ContentRejected: `UnsupportedLayout` (naming the media types found),
    `AmbiguousModule`, `TooLarge`.
    """
    if len(manifest.layers or ()) > limits.image_layers:
        raise ContentRejected(
            f"the image has {len(manifest.layers or ())} layers; at most {limits.image_layers} are accepted",
            reason=Reason.TOO_LARGE,
        )
    # A repeated layer counts at its last position.
    layers = tuple({layer.digest_text: layer for layer in reversed(manifest.layers or ())}.values())
    candidates = [
        LayerCandidate(layer, PACKING[layer.media_type])
        for layer in layers
        if layer.media_type in PACKING
    ]
    modules = [candidate for candidate in candidates if candidate.packing is Packing.RAW]
    if len(modules) > 1:
        raise _ambiguous([module.descriptor for module in reversed(modules)])
    if modules:
        return Layout("artifact", tuple(modules))
    if not candidates:
        raise ContentRejected(
            f"no layer of a type that can hold a module: the layers are {shown_types(layers)}, "
            f"the config is {shown_types([manifest.config])}; push the module with `wasmc push`",
            reason=Reason.UNSUPPORTED_LAYOUT,
        )
    return Layout("image", tuple(candidates))


def _ambiguous(modules: list[Descriptor]) -> ContentRejected:
    named = [_named(module) for module in modules[:_SHOWN_CANDIDATES]]
    if more := len(modules) - len(named):
        named.append(f"{more} more")
    return ContentRejected(
        f"the artifact holds {len(modules)} modules ({', '.join(named)}); push each under its own name",
        reason=Reason.AMBIGUOUS_MODULE,
    )


def _named(module: Descriptor) -> str:
    title = (module.annotations or {}).get(mediatypes.TITLE)
    return f"{shown_text(title)} {module.digest}" if title else str(module.digest)
