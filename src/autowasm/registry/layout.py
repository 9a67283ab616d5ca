"""Layout: which layers of a manifest may hold the module, and how each is packed. One table.

Not a reader of layers. Invariant: only layers whose media type is in the table are ever downloaded.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from autowasm.errors import ContentRejected
from autowasm.registry import media
from autowasm.registry.manifest import Descriptor, Manifest, shown_types
from autowasm.settings import Limits


class Packing(enum.Enum):
    """How the bytes of a layer hold the module; the values are what `autowasm.wasm.archive` takes."""

    RAW = "raw"
    TAR = "tar"
    TAR_GZIP = "tar+gzip"
    TAR_ZSTD = "tar+zstd"


PACKING: Final[Mapping[str, Packing]] = {
    media.WASM_CONTENT: Packing.RAW,
    media.OCI_LAYER_TAR: Packing.TAR,
    media.OCI_LAYER_TAR_GZIP: Packing.TAR_GZIP,
    media.OCI_LAYER_TAR_ZSTD: Packing.TAR_ZSTD,
    media.DOCKER_LAYER_TAR: Packing.TAR,
    media.DOCKER_LAYER_TAR_GZIP: Packing.TAR_GZIP,
    media.DOCKER_LAYER_TAR_ZSTD: Packing.TAR_ZSTD,
}
"""Every layer that is understood. A layer that is not here is passed over: configs, docs, icons."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layer that may hold the module."""

    descriptor: Descriptor
    packing: Packing


@dataclass(frozen=True, slots=True)
class Layout:
    """`artifact`: one candidate, which is the module. `image`: tar layers, in the order to search."""

    kind: Literal["artifact", "image"]
    candidates: tuple[Candidate, ...]


def choose_layout(manifest: Manifest, *, limits: Limits) -> Layout:
    """Where to look. The type of the config is not asked: clients write many, and the layers say enough.

    Layers of an image are searched from the last to the first: the last one is what was added last, and where the
    specification of `compat` images wants the module. Raises ContentRejected: `UnsupportedLayout` (naming the media types
    found), `AmbiguousModule`, `TooLarge`.
    """
    if len(manifest.layers or ()) > limits.image_layers:
        raise ContentRejected(
            f"the image has {len(manifest.layers or ())} layers; at most {limits.image_layers} are accepted",
            reason="TooLarge",
        )
    layers = tuple({layer.digest_text: layer for layer in manifest.layers or ()}.values())
    candidates = [
        Candidate(layer, PACKING[layer.media_type])
        for layer in layers
        if layer.media_type in PACKING
    ]
    modules = [candidate for candidate in candidates if candidate.packing is Packing.RAW]
    if len(modules) > 1:
        digests = ", ".join(str(module.descriptor.digest) for module in modules[:4])
        raise ContentRejected(
            f"the artifact holds {len(modules)} modules ({digests}); push each under a name of its own",
            reason="AmbiguousModule",
        )
    if modules:
        return Layout("artifact", tuple(modules))
    if not candidates:
        raise ContentRejected(
            f"no layer of a type that can hold a module: the layers are {shown_types(layers)}, "
            f"the config is {shown_types([manifest.config])}",
            reason="UnsupportedLayout",
        )
    return Layout("image", tuple(reversed(candidates)))
