"""What is pushed: bytes that others' readers accept, the same for the same module."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from autowasm.digest import Digest
from autowasm.registry import media
from autowasm.registry.layout import Packing, choose_layout
from autowasm.registry.manifest import Manifest, parse_manifest
from autowasm.registry.push import Layer, Package, artifact_package, image_package
from autowasm.settings import Limits

MODULE = b"\0asm\x01\0\0\0" + bytes(2_000_000)


@pytest.fixture
def module(tmp_path: Path) -> Path:
    file = tmp_path / "example.wasm"
    file.write_bytes(MODULE)
    return file


def bytes_of(layer: Layer) -> bytes:
    return layer.content.read_bytes() if isinstance(layer.content, Path) else layer.content


def check(package: Package) -> dict[str, Any]:
    """Every descriptor says the truth; returns the manifest as JSON."""
    manifest = parse_manifest(package.manifest, package.media_type, limits=Limits())
    assert isinstance(manifest, Manifest)
    assert manifest.layers is not None
    described = [manifest.config, *manifest.layers]
    for descriptor, layer in zip(described, [package.config, *package.layers], strict=True):
        data = bytes_of(layer)
        assert (descriptor.digest, descriptor.size) == (Digest.of(data), len(data))
        assert (layer.digest, layer.size) == (descriptor.digest, descriptor.size)
        assert descriptor.media_type == layer.media_type
    return json.loads(package.manifest)


def test_an_artifact_has_exactly_the_two_layers_that_istio_reads(module: Path) -> None:
    package = artifact_package(module, abi="0.2.1")
    manifest = check(package)
    assert manifest["mediaType"] == media.OCI_MANIFEST
    assert manifest["config"]["mediaType"] == media.WASM_CONFIG
    assert [layer["mediaType"] for layer in manifest["layers"]] == [
        media.WASM_CONFIG,
        media.WASM_CONTENT,
    ]
    assert [layer["annotations"][media.TITLE] for layer in manifest["layers"]] == [
        "runtime-config.json",
        "filter.wasm",
    ]
    assert manifest["annotations"] == {
        "module.wasm.runtime/type": "envoy_proxy",
        "module.wasm.runtime/abi_version": "v0.2.1",
    }
    assert json.loads(bytes_of(package.config)) == {
        "type": "envoy_proxy",
        "abiVersions": ["v0.2.1"],
        "config": {"rootIds": []},
    }
    assert package.layers[1].digest == Digest.of(MODULE)
    assert package.size == len(MODULE) + package.config.size


def test_an_unknown_abi_is_left_out(module: Path) -> None:
    package = artifact_package(module, abi=None)
    assert check(package)["annotations"] == {"module.wasm.runtime/type": "envoy_proxy"}
    assert json.loads(bytes_of(package.config))["abiVersions"] == []


def test_an_image_is_a_compat_image(module: Path, tmp_path: Path) -> None:
    package = image_package(module, abi="0.2.0", workdir=tmp_path)
    manifest = check(package)
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert [layer["mediaType"] for layer in manifest["layers"]] == [media.OCI_LAYER_TAR_GZIP]
    assert manifest["annotations"] == {"module.wasm.image/variant": "compat"}

    unpacked = gzip.decompress(bytes_of(package.layers[0]))
    config = json.loads(bytes_of(package.config))
    assert config["rootfs"] == {
        "type": "layers",
        "diff_ids": [f"sha256:{hashlib.sha256(unpacked).hexdigest()}"],
    }
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        assert archive.getnames() == ["plugin.wasm", "runtime-config.json"]
        plugin = archive.extractfile("plugin.wasm")
        assert plugin is not None
        assert plugin.read() == MODULE
        for entry in archive:
            assert (entry.uid, entry.gid, entry.mtime, entry.mode) == (0, 0, 0, 0o644)


def test_the_same_module_gives_the_same_bytes_whatever_its_name_and_time(tmp_path: Path) -> None:
    packages = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        module = folder / f"{number}.wasm"
        module.write_bytes(MODULE)
        os.utime(module, (number, number))
        packages.append(
            (
                artifact_package(module, abi="0.2.1").manifest,
                image_package(module, abi="0.2.1", workdir=folder).manifest,
            )
        )
    assert packages[0] == packages[1]


def test_we_read_what_we_push(module: Path, tmp_path: Path) -> None:
    packings = []
    for package in (
        artifact_package(module, abi=None),
        image_package(module, abi=None, workdir=tmp_path),
    ):
        manifest = parse_manifest(package.manifest, package.media_type, limits=Limits())
        assert isinstance(manifest, Manifest)
        packings.append(choose_layout(manifest, limits=Limits()).candidates[0].packing)
    assert packings == [Packing.RAW, Packing.TAR_GZIP]
