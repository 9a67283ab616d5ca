"""Who else could pull an image, by their own rules: Istio, Envoy Gateway, wasme, kwctl, wkg.

Not our rules (`layouts.py`), and nothing about whether Envoy then loads the module. Invariant: an answer follows the reader's
source, down to the order in which it tries; what a reader does not look at plays no part. Tests compare the answers with
the table in `layouts.py` and, where the reader can be had, with the reader itself.

Sources: Istio `pkg/wasm/imagefetcher.go` and its copy in Envoy Gateway `internal/wasm/`; go-containerregistry
`pkg/v1/remote/index.go` (which child of an index); wasme `pkg/pull/image.go`; Kubewarden policy-fetcher
`src/registry/mod.rs` and rust-oci-wasm `src/client.rs`, both over oci-client `validate_layers` (every layer must have the
type that was asked for).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from autowasm.registry import media
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
    """What the last layer holds, where it is a tar archive: the only one that Istio and Envoy Gateway open."""

    is_gzip: bool
    """By its first bytes."""
    plugin: bool | None
    """Whether the first entry named plugin.wasm, in any folder, is a module; None if there is no such entry."""


@dataclass(frozen=True, slots=True)
class ConsumerVerdict:
    """Whether a consumer can pull the module; if not, `why` says what it wants instead."""

    reads: bool
    why: str = ""


_YES: Final = ConsumerVerdict(reads=True)
_DEFAULT_PLATFORM: Final = ("linux", "amd64")


def index_child(consumer: str, index: ImageIndex) -> Descriptor | ConsumerVerdict:
    """The image of `index` that a consumer takes, or why it takes none.

    Their libraries take the first entry for their own platform, which is taken to be linux/amd64.
    """
    if INDEX_READERS[consumer] == "no":
        return _no("reads no image index; name the image in it by its digest")
    for child in index.manifests or ():
        # go-containerregistry takes an entry without a platform for linux/amd64; oci-client takes none such.
        if child.platform is None:
            matches = consumer in (ISTIO, ENVOY_GATEWAY)
        else:
            matches = (child.platform.os, child.platform.architecture) == _DEFAULT_PLATFORM
        if matches:
            return child
    return _no("takes the linux/amd64 image of an index, and there is none")


def answers(manifest: Manifest, last: LastLayer | None) -> Mapping[str, ConsumerVerdict]:
    """By the consumer's name. `last` is needed where the last layer is a tar+gzip by its type."""
    return {consumer: rule(manifest, last) for consumer, rule in _RULES.items()}


def _istio(manifest: Manifest, last: LastLayer | None) -> ConsumerVerdict:
    layers = manifest.layers or ()
    # go-containerregistry, `pkg/v1/hash.go`: one such digest anywhere, and the manifest is not read.
    if any(each.digest.algorithm != "sha256" for each in (manifest.config, *layers)):
        return _no("knows digests by sha256 only, and the image has another")
    if manifest.media_type == media.DOCKER_MANIFEST:
        return _compat(layers, last, wanted=media.DOCKER_LAYER_TAR_GZIP)
    compat = _compat(layers, last, wanted=media.OCI_LAYER_TAR_GZIP)
    if compat.reads:
        return compat
    modules = [layer for layer in layers if layer.media_type == media.WASM_CONTENT]
    if modules and len(layers) == 2:
        return _YES
    if modules:
        return _no(f"wants exactly two layers in an artifact, and there {_are(len(layers))}")
    if PACKING.get(layers[-1].media_type if layers else "", Packing.RAW) is Packing.RAW:
        return _no(
            f"wants a layer of type {media.WASM_CONTENT}, or a last one of type {media.OCI_LAYER_TAR_GZIP}; "
            f"the layers are {shown_types(layers)}"
        )
    return compat


def _compat(
    layers: tuple[Descriptor, ...], last: LastLayer | None, *, wanted: str
) -> ConsumerVerdict:
    if not layers:
        return _no("wants at least one layer")
    found = layers[-1].media_type
    if found != wanted:
        return _no(f"wants a last layer of type {wanted}, and it is {shown_text(found)}")
    if last is None or not last.is_gzip:
        return _no("wants the last layer compressed by gzip, and it is not")
    if last.plugin is None:
        return _no("wants plugin.wasm in the last layer, and it is not there")
    if not last.plugin:
        return _no("takes the first plugin.wasm of the last layer, which is not a module")
    return _YES


def _wasme(manifest: Manifest, _last: LastLayer | None) -> ConsumerVerdict:
    layers = manifest.layers or ()
    if any(layer.media_type == media.WASM_CONTENT for layer in layers):
        return _YES
    return _no(f"wants a layer of type {media.WASM_CONTENT}; the layers are {shown_types(layers)}")


def _kwctl(manifest: Manifest, _last: LastLayer | None) -> ConsumerVerdict:
    return _all_of_type(manifest, media.WASM_TO_OCI)


def _wkg(manifest: Manifest, _last: LastLayer | None) -> ConsumerVerdict:
    answer = _all_of_type(manifest, media.CNCF_WASM)
    if not answer.reads:
        return answer
    layers = manifest.layers or ()
    if len(layers) != 1:
        return _no(f"wants exactly one layer, and there {_are(len(layers))}")
    config = manifest.config.media_type
    if config != media.CNCF_CONFIG_V0:
        return _no(f"wants a config of type {media.CNCF_CONFIG_V0}, and it is {shown_text(config)}")
    return _YES


def _all_of_type(manifest: Manifest, wanted: str) -> ConsumerVerdict:
    layers = manifest.layers or ()
    if not layers:
        return _no("wants at least one layer")
    if any(layer.media_type != wanted for layer in layers):
        return _no(f"wants only layers of type {wanted}; the layers are {shown_types(layers)}")
    return _YES


_RULES: Final[Mapping[str, Callable[[Manifest, LastLayer | None], ConsumerVerdict]]] = {
    ISTIO: _istio,
    ENVOY_GATEWAY: _istio,
    WASME: _wasme,
    KWCTL: _kwctl,
    WKG: _wkg,
}
"""Envoy Gateway's reader is Istio's, copied."""


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"


def _no(why: str) -> ConsumerVerdict:
    return ConsumerVerdict(reads=False, why=why)
