"""Layout: which layers of a manifest may hold the module, and in which order they are searched.

Not a reader of layers, and not the table (`variants.py`). Invariant: only layers whose media type is in the table are ever
downloaded.
"""

from dataclasses import dataclass
from typing import Literal

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.registry import media
from autowasm.registry.manifest import Descriptor, Manifest, shown_text, shown_types
from autowasm.registry.variants import PACKING, Packing

_SHOWN_CANDIDATES = 4


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
    # A layer that comes twice counts where it comes last.
    layers = tuple({layer.digest_text: layer for layer in reversed(manifest.layers or ())}.values())
    candidates = [
        Candidate(layer, PACKING[layer.media_type])
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
            reason="UnsupportedLayout",
        )
    return Layout("image", tuple(candidates))


def _ambiguous(modules: list[Descriptor]) -> ContentRejected:
    named = [_named(module) for module in modules[:_SHOWN_CANDIDATES]]
    if more := len(modules) - len(named):
        named.append(f"{more} more")
    return ContentRejected(
        f"the artifact holds {len(modules)} modules ({', '.join(named)}); push each under a name of its own",
        reason="AmbiguousModule",
    )


def _named(module: Descriptor) -> str:
    title = (module.annotations or {}).get(media.TITLE)
    return f"{shown_text(title)} {module.digest}" if title else str(module.digest)
