"""Packages: a module as the blobs and the manifest to push, in the two forms that others can read.

Not the upload (`client.py`). Invariant: the same module and ABI give the same bytes, so the same digest: no times, no user
names, nothing of the machine.

Sources: WASM OCI artifact specification of solo.io, `spec.md` (artifact: Istio and Envoy Gateway want exactly two layers,
the runtime config again and the module) and `spec-compat.md` (container image with `plugin.wasm`).
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
from autowasm.registry import media
from autowasm.registry.manifest import Descriptor, Manifest

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_RUNTIME: Final = "envoy_proxy"
_RUNTIME_CONFIG_NAME: Final = "runtime-config.json"
_CHUNK: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Layer:
    """A blob to upload. `size` in bytes; `content` is the bytes or the file that has them."""

    media_type: str
    digest: Digest
    size: int
    content: bytes | Path = field(repr=False)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Package:
    """All that one push uploads: `layers` and `config`, then `manifest`."""

    config: Layer
    layers: tuple[Layer, ...]
    manifest: bytes
    media_type: str

    @property
    def size(self) -> int:
        """Bytes of the blobs."""
        blobs = {layer.digest: layer.size for layer in (*self.layers, self.config)}
        return sum(blobs.values())


def artifact_package(module: Path, *, abi: str | None) -> Package:
    """The two-layer artifact. `abi` is the module's Proxy-Wasm version (`0.2.1`), None if it is not known.

    Reads the file once; blocks. Raises OSError.
    """
    runtime = _runtime_config(abi)
    config = _layer(media.WASM_CONFIG, runtime)
    layers = (
        _layer(media.WASM_CONFIG, runtime, title=_RUNTIME_CONFIG_NAME),
        _layer(media.WASM_CONTENT, module, title="filter.wasm"),
    )
    annotations = {media.RUNTIME_TYPE: _RUNTIME}
    if abi:
        annotations[media.RUNTIME_ABI] = f"v{abi}"
    return _package(config, layers, annotations)


def image_package(module: Path, *, abi: str | None, workdir: Path) -> Package:
    """The `compat` container image: one layer with `plugin.wasm` and `runtime-config.json` at its root.

    The layer is built as a file in `workdir`, where it must stay until it is uploaded. Blocks. Raises OSError.
    """
    packed = workdir / "layer.tar.gz"
    diff_id = _pack(packed, {"plugin.wasm": module, _RUNTIME_CONFIG_NAME: _runtime_config(abi)})
    layer = _layer(media.OCI_LAYER_TAR_GZIP, packed)
    config = {
        # A container image must name a platform; this is the one that readers look for by default.
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id)]},
    }
    return _package(
        _layer(media.OCI_IMAGE_CONFIG, msgspec.json.encode(config)),
        (layer,),
        {media.VARIANT: "compat"},
    )


def _runtime_config(abi: str | None) -> bytes:
    versions = [f"v{abi}"] if abi else []
    return msgspec.json.encode(
        {"type": _RUNTIME, "abiVersions": versions, "config": {"rootIds": []}}
    )


def _package(config: Layer, layers: tuple[Layer, ...], annotations: dict[str, str]) -> Package:
    manifest = Manifest(
        schema_version=2,
        media_type=media.OCI_MANIFEST,
        config=_descriptor(config),
        layers=tuple(map(_descriptor, layers)),
        annotations=annotations,
    )
    return Package(config, layers, msgspec.json.encode(manifest), media.OCI_MANIFEST)


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
    annotations = {media.TITLE: title} if title else {}
    return Layer(media_type, Digest("sha256", digest.hexdigest()), size, content, annotations)


def _pack(target: Path, members: Mapping[str, bytes | Path]) -> Digest:
    """Write a tar+gzip; returns the digest of the tar inside, the layer's diff id."""
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
    """Hashes what is written before packing it. No name and no time in the header: they would change the digest."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(filename="", mode="wb", fileobj=file, mtime=0)
        self.hash = hashlib.sha256()

    def write(self, data: "ReadableBuffer") -> int:
        self.hash.update(data)
        return super().write(data)


def _entry(name: str, *, size: int) -> tarfile.TarInfo:
    """A plain file of root's, from the epoch."""
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
