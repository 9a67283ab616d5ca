"""Manifests and indexes: typed values decoded from a registry's responses, and the order of an index's images.

The choice of a layer is in `layouts.py`. Invariants: every `Descriptor` has a well-formed digest and a size that is not
negative; a document that could be read as two kinds is refused (CVE-2021-41190).

Sources: OCI image specification `manifest.md`, `image-index.md`, `descriptor.md`; distribution `manifest/schema2`.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from autowasm.digest import Digest
from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.reasons import Reason
from autowasm.registry import mediatypes
from autowasm.units import format_size

_SHOWN_TYPES = 8
_SHOWN_LENGTH = 100


class _Wire(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """JSON names are camelCase; unknown fields are ignored, as the specification requires."""


class Platform(_Wire, frozen=True, kw_only=True):
    """The platform of an index entry."""

    architecture: str = ""
    os: str = ""


class Descriptor(_Wire, frozen=True, kw_only=True):
    """A reference to a blob or manifest. `size` in bytes."""

    media_type: str
    digest_text: str = msgspec.field(name="digest")
    size: int
    annotations: dict[str, str] | None = None
    platform: Platform | None = None
    artifact_type: str | None = None

    def __post_init__(self) -> None:
        Digest.parse(self.digest_text)
        if not 0 <= self.size < 2**63:  # int64 in the specification
            raise ValueError("size is negative or too large")

    @property
    def digest(self) -> Digest:
        """Of the content."""
        return Digest.parse(self.digest_text)


class Manifest(_Wire, frozen=True, kw_only=True):
    """One image or artifact: OCI manifest v1 or Docker schema 2."""

    schema_version: int
    media_type: str | None = None
    artifact_type: str | None = None
    config: Descriptor
    layers: tuple[Descriptor, ...] | None = ()
    annotations: dict[str, str] | None = None


class ImageIndex(_Wire, frozen=True, kw_only=True):
    """Several images under one name: OCI index or Docker manifest list."""

    schema_version: int
    media_type: str | None = None
    manifests: tuple[Descriptor, ...] | None = ()
    annotations: dict[str, str] | None = None


_ABSENT = msgspec.Raw()


class _Shape(_Wire, frozen=True, kw_only=True):
    """The fields that decide the kind of a document."""

    schema_version: int | None = None
    media_type: str | None = None
    config: msgspec.Raw = _ABSENT
    layers: msgspec.Raw = _ABSENT
    manifests: msgspec.Raw = _ABSENT
    fs_layers: msgspec.Raw = _ABSENT


# Made here and not at first use: msgspec 0.22 fills its table of a type while other threads can see it. Two fetches that
# read the first manifests of a process at the same time caused a segmentation fault (tests/unit/test_threads.py).
_AS_SHAPE: Final = msgspec.json.Decoder(_Shape)
_AS_MANIFEST: Final = msgspec.json.Decoder(Manifest)
_AS_INDEX: Final = msgspec.json.Decoder(ImageIndex)


def parse_manifest(data: bytes, media_type: str | None, *, limits: Limits) -> Manifest | ImageIndex:
    """Decode `data`; `media_type` is the Content-Type of the response, None if it had none.

    The document's own `mediaType` decides, then the Content-Type, then the shape. Raises ContentRejected: `TooLarge`,
    `ManifestInvalid`.
    """
    if len(data) > limits.manifest_bytes:
        raise ContentRejected(
            f"the manifest is larger than {format_size(limits.manifest_bytes)}",
            reason=Reason.TOO_LARGE,
        )
    if (quotes := data.count(b'"')) > limits.manifest_quotes:
        raise ContentRejected(
            f"the manifest has about {quotes // 2} strings; at most {limits.manifest_quotes // 2} are "
            "accepted: push an image with fewer layers and annotations",
            reason=Reason.TOO_LARGE,
        )
    if not data.strip():
        raise _invalid("empty")
    try:
        if not _is_index(_AS_SHAPE.decode(data), media_type):
            return _AS_MANIFEST.decode(data)
        index = _AS_INDEX.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(f"not readable: {error}") from error
    if len(index.manifests or ()) > limits.index_entries:
        raise _invalid(
            f"an index with {len(index.manifests or ())} entries; at most {limits.index_entries} are accepted"
        )
    return index


def children_by_preference(index: ImageIndex) -> list[Descriptor]:
    """The images of `index`, the preferred one first: an image marked as wasm, else linux/amd64, else the first.

    A module is the same on every platform, so any image that has it suffices. Attestations, signatures and nested indexes
    are skipped: an index is never followed into another, so there are no cycles. Raises ContentRejected
    (`ManifestInvalid`) if nothing is left.
    """
    entries = index.manifests or ()
    children = [child for child in entries if _is_runnable(child)]
    if children:
        return sorted(children, key=_rank)  # stable: equal ones keep their order
    problem = f"an index without a usable image; it holds {shown_types(entries)}"
    if any(child.media_type in mediatypes.INDEXES for child in entries):
        problem += ": an index in an index is not followed; reference the inner one by its digest"
    raise _invalid(problem)


def is_marked_wasm(found: Descriptor | Manifest) -> bool:
    """Whether an entry of an index, or the manifest of an entry, is marked as wasm.

    By its platform (`wasi/wasm`, `wasip1/wasm`, `js/wasm32`), its artifact type, its annotations, and for a manifest by the
    types of its config and layers.
    """
    if isinstance(found, Manifest):
        types = [found.config.media_type, *(layer.media_type for layer in found.layers or ())]
        if any("wasm" in kind.lower() for kind in types):
            return True
    elif found.platform is not None:
        platform = found.platform
        architecture, system = platform.architecture.lower(), platform.os.lower()
        if architecture.startswith("wasm") or system.startswith(("wasi", "wasm")):
            return True
    if "wasm" in (found.artifact_type or "").lower():
        return True
    annotations = found.annotations or {}
    return (
        any(name.startswith(mediatypes.WASM_ANNOTATIONS) for name in annotations)
        or annotations.get(mediatypes.TITLE, "").lower().endswith(".wasm")
        or "wasm" in annotations.get(mediatypes.OCI_HANDLER, "").lower()
    )


def shown_types(descriptors: Sequence[Descriptor]) -> str:
    """The distinct media types, for messages: quoted and cut, because the registry chooses them."""
    names = list(dict.fromkeys(descriptor.media_type for descriptor in descriptors))
    shown = [shown_text(name) for name in names[:_SHOWN_TYPES]]
    if len(names) > _SHOWN_TYPES:
        shown.append(f"{len(names) - _SHOWN_TYPES} more")
    return ", ".join(shown) or "nothing"


def shown_text(text: str) -> str:
    """A string from a registry, in quotes, on one line and cut."""
    return repr(text[:_SHOWN_LENGTH])


def _is_index(shape: _Shape, content_type: str | None) -> bool:
    config, layers, manifests, fs_layers = (
        raw not in (b"", b"null")
        for raw in map(bytes, (shape.config, shape.layers, shape.manifests, shape.fs_layers))
    )
    named = shape.media_type or ""
    if {named, content_type} & mediatypes.SCHEMA_1 or shape.schema_version == 1 or fs_layers:
        raise _invalid(
            "Docker schema 1, which is obsolete; push the image again with a current tool"
        )
    if manifests and (layers or config):
        raise _invalid("both an image and an index, which clients read differently")
    known = [
        kind for kind in (named, content_type) if kind in mediatypes.MANIFESTS | mediatypes.INDEXES
    ]
    if named and named not in known:
        raise _invalid(f"of an unsupported type: {named[:_SHOWN_LENGTH]!r}")
    kinds = {kind in mediatypes.INDEXES for kind in known}
    if len(kinds) > 1:
        raise _invalid("of type {} in its mediaType and {} in the Content-Type".format(*known))
    return kinds.pop() if kinds else manifests


def _is_runnable(child: Descriptor) -> bool:
    platform = child.platform or Platform()
    return (
        child.media_type in mediatypes.MANIFESTS
        and mediatypes.DOCKER_REFERENCE_TYPE not in (child.annotations or {})
        and "unknown" not in (platform.os, platform.architecture)
    )


def _rank(child: Descriptor) -> int:
    platform = child.platform or Platform()
    if is_marked_wasm(child):
        # Envoy does not run components (WASI 0.2 and later).
        return 1 if platform.os.lower() in {"wasip2", "wasip3"} else 0
    if child.artifact_type:
        return 4  # a signature, a list of parts
    return 2 if (platform.os, platform.architecture) == ("linux", "amd64") else 3


def _invalid(problem: str) -> ContentRejected:
    return ContentRejected(f"the manifest is {problem}", reason=Reason.MANIFEST_INVALID)
