"""The rules by which other programs pull an image: Istio, Envoy Gateway, wasme, kwctl, wkg.

Our own rules are in `layouts.py`; whether Envoy then loads the module is not decided here. Invariant: a verdict follows the
reader's source, including the order of its attempts; data that a reader ignores has no effect. Tests compare the verdicts
with the table in `layouts.py` and, where the reader is available, with the reader itself.

Sources: Istio `pkg/wasm/imagefetcher.go` and its copy in Envoy Gateway `internal/wasm/`; go-containerregistry
`pkg/v1/remote/index.go` (which child of an index); wasme `pkg/pull/image.go`; Kubewarden policy-fetcher
`src/registry/mod.rs` and rust-oci-wasm `src/client.rs`, both over oci-client `validate_layers` (every layer must have the
requested type).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from autowasm.registry import mediatypes
from autowasm.registry.layouts import (
    ENVOY_GATEWAY,
    INDEX_READERS,
    ISTIO,
    KWCTL,
    PACKING,
    WASME,
    WKG,
    Packing,
)
from autowasm.registry.manifest import Descriptor, ImageIndex, Manifest, shown_text, shown_types


@dataclass(frozen=True, slots=True)
class LastLayer:
    """The last layer, if it is a tar archive: Istio and Envoy Gateway open no other."""

    is_gzip: bool
    """Detected by its first bytes."""
    plugin: bool | None
    """Whether the first entry named plugin.wasm, in any folder, is a module; None if there is no such entry."""


@dataclass(frozen=True, slots=True)
class ConsumerVerdict:
    """Whether a consumer can pull the module; if not, `why` has the required form."""

    reads: bool
    why: str = ""


_YES: Final = ConsumerVerdict(reads=True)
_DEFAULT_PLATFORM: Final = ("linux", "amd64")


def index_child(consumer: str, index: ImageIndex) -> Descriptor | ConsumerVerdict:
    """The image of `index` that a consumer pulls, or why it pulls none.

    The consumers' libraries choose the first entry for their own platform; linux/amd64 is assumed.
    """
    if INDEX_READERS[consumer] == "no":
        return _no("does not read an image index; reference the image in it by its digest")
    for child in index.manifests or ():
        # For go-containerregistry an entry without a platform is linux/amd64; oci-client ignores such an entry.
        if child.platform is None:
            matches = consumer in (ISTIO, ENVOY_GATEWAY)
        else:
            matches = (child.platform.os, child.platform.architecture) == _DEFAULT_PLATFORM
        if matches:
            return child
    return _no("pulls the linux/amd64 image of an index, but there is none")


def answers(manifest: Manifest, last: LastLayer | None) -> Mapping[str, ConsumerVerdict]:
    """The verdict by the consumer's name. `last` is needed if the media type of the last layer is a tar+gzip one."""
    return {consumer: rule(manifest, last) for consumer, rule in _RULES.items()}


def _istio(manifest: Manifest, last: LastLayer | None) -> ConsumerVerdict:
    layers = manifest.layers or ()
    # go-containerregistry, `pkg/v1/hash.go`: it refuses a manifest with a single digest of another algorithm.
    if any(each.digest.algorithm != "sha256" for each in (manifest.config, *layers)):
        return _no("supports sha256 digests only, but the image has another")
    if manifest.media_type == mediatypes.DOCKER_MANIFEST:
        return _compat(layers, last, wanted=mediatypes.DOCKER_LAYER_TAR_GZIP)
    compat = _compat(layers, last, wanted=mediatypes.OCI_LAYER_TAR_GZIP)
    if compat.reads:
        return compat
    modules = [layer for layer in layers if layer.media_type == mediatypes.WASM_CONTENT]
    if modules and len(layers) == 2:
        return _YES
    if modules:
        return _no(f"requires exactly two layers in an artifact, but there {_are(len(layers))}")
    if PACKING.get(layers[-1].media_type if layers else "", Packing.RAW) is Packing.RAW:
        return _no(
            f"requires a layer of type {mediatypes.WASM_CONTENT}, or a last one of type {mediatypes.OCI_LAYER_TAR_GZIP}; "
            f"the layers are {shown_types(layers)}"
        )
    return compat


def _compat(
    layers: tuple[Descriptor, ...], last: LastLayer | None, *, wanted: str
) -> ConsumerVerdict:
    if not layers:
        return _no("requires at least one layer")
    found = layers[-1].media_type
    if found != wanted:
        return _no(f"requires a last layer of type {wanted}, but it is {shown_text(found)}")
    if last is None or not last.is_gzip:
        return _no("requires a last layer compressed with gzip, but it is not")
    if last.plugin is None:
        return _no("requires plugin.wasm in the last layer, but it is missing")
    if not last.plugin:
        return _no("uses the first plugin.wasm of the last layer, which is not a module")
    return _YES


def _wasme(manifest: Manifest, _last: LastLayer | None) -> ConsumerVerdict:
    layers = manifest.layers or ()
    if any(layer.media_type == mediatypes.WASM_CONTENT for layer in layers):
        return _YES
    return _no(
        f"requires a layer of type {mediatypes.WASM_CONTENT}; the layers are {shown_types(layers)}"
    )


def _kwctl(manifest: Manifest, _last: LastLayer | None) -> ConsumerVerdict:
    return _all_of_type(manifest, mediatypes.WASM_TO_OCI)


def _wkg(manifest: Manifest, _last: LastLayer | None) -> ConsumerVerdict:
    answer = _all_of_type(manifest, mediatypes.CNCF_WASM)
    if not answer.reads:
        return answer
    layers = manifest.layers or ()
    if len(layers) != 1:
        return _no(f"requires exactly one layer, but there {_are(len(layers))}")
    config = manifest.config.media_type
    if config != mediatypes.CNCF_CONFIG_V0:
        return _no(
            f"requires a config of type {mediatypes.CNCF_CONFIG_V0}, but it is {shown_text(config)}"
        )
    return _YES


def _all_of_type(manifest: Manifest, wanted: str) -> ConsumerVerdict:
    layers = manifest.layers or ()
    if not layers:
        return _no("requires at least one layer")
    if any(layer.media_type != wanted for layer in layers):
        return _no(
            f"requires all layers to be of type {wanted}; the layers are {shown_types(layers)}"
        )
    return _YES


_RULES: Final[Mapping[str, Callable[[Manifest, LastLayer | None], ConsumerVerdict]]] = {
    ISTIO: _istio,
    ENVOY_GATEWAY: _istio,
    WASME: _wasme,
    KWCTL: _kwctl,
    WKG: _wkg,
}
"""Envoy Gateway's reader is a copy of Istio's."""


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"


def _no(why: str) -> ConsumerVerdict:
    return ConsumerVerdict(reads=False, why=why)
