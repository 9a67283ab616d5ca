"""Packages: a module as the blobs and the manifest to push, in the layouts that other programs read.

Not the upload (see `client.py`). Invariant: the same module, ABI and annotations give the same bytes and so the same digest: no
times, no user names, nothing of the machine; the order of the annotations has no effect.

Sources: WASM OCI artifact specification of solo.io, `spec.md` (artifact: Istio and Envoy Gateway require exactly two layers,
the runtime config again and the module) and `spec-compat.md` (container image with `plugin.wasm`); the CNCF's "Wasm OCI
Artifact layout"; Kubewarden policy-fetcher `src/registry/mod.rs`; OCI image specification `manifest.md`, "Guidelines for
Artifact Usage".
"""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import msgspec

from autowasm.digest import Digest
from autowasm.registry import mediatypes
from autowasm.registry.manifest import Descriptor, Manifest

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


_RUNTIME: Final = "envoy_proxy"
_RUNTIME_CONFIG_NAME: Final = "runtime-config.json"
_MODULE_NAME: Final = "filter.wasm"
_EPOCH: Final = "1970-01-01T00:00:00Z"
_CHUNK: Final = 1024 * 1024

OWN_ANNOTATIONS: Final = frozenset(
    {mediatypes.RUNTIME_TYPE, mediatypes.RUNTIME_ABI, mediatypes.VARIANT}
)
"""Readers decide by these: users cannot set them."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A blob to upload. `size` in bytes; `content` is the bytes or a file."""

    media_type: str
    digest: Digest
    size: int
    content: bytes | Path = field(repr=False)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Package:
    """The upload of one push: `layers` and `config`, then `manifest`."""

    config: Layer
    layers: tuple[Layer, ...]
    manifest: bytes
    media_type: str

    @property
    def size(self) -> int:
        """Total bytes of the blobs."""
        blobs = {layer.digest: layer.size for layer in (*self.layers, self.config)}
        return sum(blobs.values())


def make_package(
    form: str,
    module: Path,
    *,
    abi: str | None,
    workdir: Path,
    annotations: Mapping[str, str] | None = None,
) -> Package:
    """The package in the format `form` of `wasmc push --format`: `artifact`, `image`, `cncf` or `kwctl`.

    `abi` is the module's proxy-wasm version (`0.2.1`), None if unknown; `annotations` are added to the manifest beside our
    own (`OWN_ANNOTATIONS` cannot be given). Layers that must be built are files in `workdir`, and must stay there until the
    upload. Reads the module; blocks. Raises OSError.
    """
    given = dict(annotations or {})
    if form == "artifact":
        return _artifact(module, abi, given)
    if form == "image":
        return _image(module, abi, workdir, given)
    if form == "cncf":
        return _cncf(module, given)
    if form == "kwctl":
        return _kwctl(module, given)
    raise ValueError(f"unknown form of a package: {form!r}")


def _artifact(module: Path, abi: str | None, given: dict[str, str]) -> Package:
    """solo.io's two-layer artifact."""
    runtime = _runtime_config(abi)
    config = _layer(mediatypes.WASM_CONFIG, runtime)
    layers = (
        _layer(mediatypes.WASM_CONFIG, runtime, title=_RUNTIME_CONFIG_NAME),
        _layer(mediatypes.WASM_CONTENT, module, title=_MODULE_NAME),
    )
    annotations = {mediatypes.RUNTIME_TYPE: _RUNTIME}
    if abi:
        annotations[mediatypes.RUNTIME_ABI] = f"v{abi}"
    return _package(config, layers, given | annotations, is_artifact=True)


def _image(module: Path, abi: str | None, workdir: Path, given: dict[str, str]) -> Package:
    """The `compat` container image: one layer with `plugin.wasm` and `runtime-config.json` at its root."""
    packed = workdir / "layer.tar.gz"
    diff_id = _pack(packed, {"plugin.wasm": module, _RUNTIME_CONFIG_NAME: _runtime_config(abi)})
    layer = _layer(mediatypes.OCI_LAYER_TAR_GZIP, packed)
    config = {
        # A container image must name a platform; readers choose this one by default.
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id)]},
    }
    return _package(
        _layer(mediatypes.OCI_IMAGE_CONFIG, msgspec.json.encode(config)),
        (layer,),
        given | {mediatypes.VARIANT: "compat"},
        is_artifact=False,
    )


def _cncf(module: Path, given: dict[str, str]) -> Package:
    """The CNCF's artifact, of a core module: config v0, one layer."""
    layer = _layer(mediatypes.CNCF_WASM, module, title=_MODULE_NAME)
    config = {
        # Readers (oci-wasm) require a time; the annotation's time keeps the bytes the same.
        "created": given.get(mediatypes.CREATED, _EPOCH),
        "architecture": "wasm",
        "os": "wasip1",
        "layerDigests": [str(layer.digest)],
    }
    encoded = _layer(mediatypes.CNCF_CONFIG_V0, msgspec.json.encode(config))
    return _package(encoded, (layer,), given, is_artifact=True)


def _kwctl(module: Path, given: dict[str, str]) -> Package:
    """The artifact that wasm-to-oci and Kubewarden push and pull."""
    layer = _layer(mediatypes.WASM_TO_OCI, module, title=_MODULE_NAME)
    return _package(_layer(mediatypes.CNCF_CONFIG_V1, b"{}"), (layer,), given, is_artifact=True)


def _runtime_config(abi: str | None) -> bytes:
    versions = [f"v{abi}"] if abi else []
    return msgspec.json.encode(
        {"type": _RUNTIME, "abiVersions": versions, "config": {"rootIds": []}}
    )


def _package(
    config: Layer, layers: tuple[Layer, ...], annotations: dict[str, str], *, is_artifact: bool
) -> Package:
    manifest = Manifest(
        schema_version=2,
        media_type=mediatypes.OCI_MANIFEST,
        # Registries display it and filter by it. A container image has none: its config has its type.
        artifact_type=config.media_type if is_artifact else None,
        config=_descriptor(config),
        layers=tuple(map(_descriptor, layers)),
        annotations=dict(sorted(annotations.items())) or None,
    )
    return Package(config, layers, msgspec.json.encode(manifest), mediatypes.OCI_MANIFEST)


def _descriptor(layer: Layer) -> Descriptor:
    return Descriptor(
        media_type=layer.media_type,
        digest_text=str(layer.digest),
        size=layer.size,
        annotations=dict(layer.annotations) or None,
    )


def _layer(media_type: str, content: bytes | Path, *, title: str | None = None) -> Layer:
    with _opened(content) as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
        size = stream.tell()
    annotations = {mediatypes.TITLE: title} if title else {}
    return Layer(media_type, Digest("sha256", digest.hexdigest()), size, content, annotations)


def _pack(target: Path, members: Mapping[str, bytes | Path]) -> Digest:
    """Write a tar+gzip. Returns the digest of the uncompressed tar: the layer's diff id."""
    with (
        target.open("wb") as file,
        _HashedGzip(file) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in members.items():
            with _opened(content) as stream:
                archive.addfile(_entry(name, size=_size(stream)), stream)
    return Digest("sha256", packed.hash.hexdigest())


class _HashedGzip(gzip.GzipFile):
    """Hashes the bytes before compression. No name and no time in the header: they would change the digest."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(filename="", mode="wb", fileobj=file, mtime=0)
        self.hash = hashlib.sha256()

    def write(self, data: "ReadableBuffer") -> int:
        self.hash.update(data)
        return super().write(data)


def _entry(name: str, *, size: int) -> tarfile.TarInfo:
    """A plain file that root owns, with the time of the epoch."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o644
    return entry


def _size(stream: BinaryIO) -> int:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return size


def _opened(content: bytes | Path) -> BinaryIO:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)
