"""The pushed image: accepted by other readers, the same bytes for the same module."""

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
from autowasm.limits import Limits
from autowasm.registry import mediatypes
from autowasm.registry.layouts import choose_layout, variant_of
from autowasm.registry.manifest import Manifest, parse_manifest
from autowasm.registry.package import Layer, Package, make_package

MODULE = b"\0asm\x01\0\0\0" + bytes(2_000_000)


@pytest.fixture
def module(tmp_path: Path) -> Path:
    file = tmp_path / "example.wasm"
    file.write_bytes(MODULE)
    return file


def bytes_of(layer: Layer) -> bytes:
    return layer.content.read_bytes() if isinstance(layer.content, Path) else layer.content


def check(package: Package) -> dict[str, Any]:
    """Assert that every descriptor is correct; returns the manifest as JSON."""
    manifest = parse_manifest(package.manifest, package.media_type, limits=Limits())
    assert isinstance(manifest, Manifest)
    assert manifest.layers is not None
    described = [manifest.config, *manifest.layers]
    for descriptor, layer in zip(described, [package.config, *package.layers], strict=True):
        data = bytes_of(layer)
        assert (descriptor.digest, descriptor.size) == (Digest.of(data), len(data))
        assert (layer.digest, layer.size) == (descriptor.digest, descriptor.size)
        assert descriptor.media_type == layer.media_type
    assert b":null" not in package.manifest, "registries refuse a field that is null"
    return json.loads(package.manifest)


def test_an_artifact_has_exactly_the_two_layers_that_istio_reads(module: Path) -> None:
    package = make_package("artifact", module, abi="0.2.1", workdir=module.parent)
    manifest = check(package)
    assert manifest["mediaType"] == mediatypes.OCI_MANIFEST
    assert manifest["config"]["mediaType"] == mediatypes.WASM_CONFIG
    assert [layer["mediaType"] for layer in manifest["layers"]] == [
        mediatypes.WASM_CONFIG,
        mediatypes.WASM_CONTENT,
    ]
    assert [layer["annotations"][mediatypes.TITLE] for layer in manifest["layers"]] == [
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
    package = make_package("artifact", module, abi=None, workdir=module.parent)
    assert check(package)["annotations"] == {"module.wasm.runtime/type": "envoy_proxy"}
    assert json.loads(bytes_of(package.config))["abiVersions"] == []


def test_an_image_is_a_compat_image(module: Path, tmp_path: Path) -> None:
    package = make_package("image", module, abi="0.2.0", workdir=tmp_path)
    manifest = check(package)
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert [layer["mediaType"] for layer in manifest["layers"]] == [mediatypes.OCI_LAYER_TAR_GZIP]
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


FORMS = ("artifact", "image", "cncf", "kwctl")


def test_a_cncf_artifact_has_the_form_that_oci_wasm_reads(module: Path, tmp_path: Path) -> None:
    package = make_package("cncf", module, abi="0.2.1", workdir=tmp_path)
    manifest = check(package)
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.wasm.config.v0+json"
    assert manifest["config"]["mediaType"] == "application/vnd.wasm.config.v0+json"
    assert [layer["mediaType"] for layer in manifest["layers"]] == ["application/wasm"]
    assert bytes_of(package.layers[0]) == MODULE
    assert json.loads(bytes_of(package.config)) == {
        "created": "1970-01-01T00:00:00Z",
        "architecture": "wasm",
        "os": "wasip1",
        "layerDigests": [str(Digest.of(MODULE))],
    }


def test_a_kwctl_artifact_has_the_form_that_policy_fetcher_reads(
    module: Path, tmp_path: Path
) -> None:
    package = make_package("kwctl", module, abi="0.2.1", workdir=tmp_path)
    manifest = check(package)
    assert manifest["config"]["mediaType"] == "application/vnd.wasm.config.v1+json"
    assert bytes_of(package.config) == b"{}"
    assert [layer["mediaType"] for layer in manifest["layers"]] == [
        "application/vnd.wasm.content.layer.v1+wasm"
    ]
    assert bytes_of(package.layers[0]) == MODULE


@pytest.mark.parametrize("form", FORMS)
def test_annotations_stand_beside_our_own_and_their_order_does_not_matter(
    form: str, module: Path, tmp_path: Path
) -> None:
    given = {
        "b": "2",
        "a": "1",
        mediatypes.CREATED: "2026-01-02T03:04:05Z",
        mediatypes.VERSION: "v1",
    }
    turned = dict(reversed(given.items()))
    packages = [
        make_package(form, module, abi="0.2.1", workdir=tmp_path, annotations=each)
        for each in (given, turned)
    ]
    assert packages[0].manifest == packages[1].manifest
    manifest = check(packages[0])
    assert manifest["annotations"].items() >= given.items()
    if form == "cncf":
        assert json.loads(bytes_of(packages[0].config))["created"] == "2026-01-02T03:04:05Z"


def test_a_container_image_has_no_artifact_type(module: Path, tmp_path: Path) -> None:
    for form in FORMS:
        manifest = check(make_package(form, module, abi="0.2.1", workdir=tmp_path))
        wanted = None if form == "image" else manifest["config"]["mediaType"]
        assert manifest.get("artifactType") == wanted


def test_manifest_does_not_depend_on_file_name_and_time(tmp_path: Path) -> None:
    packages = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        module = folder / f"{number}.wasm"
        module.write_bytes(MODULE)
        os.utime(module, (number, number))
        packages.append(
            [make_package(form, module, abi="0.2.1", workdir=folder).manifest for form in FORMS]
        )
    assert packages[0] == packages[1]


@pytest.mark.parametrize("form", FORMS)
def test_each_pushed_format_is_recognized_as_its_row_of_the_table(
    form: str, module: Path, tmp_path: Path
) -> None:
    package = make_package(form, module, abi=None, workdir=tmp_path)
    manifest = parse_manifest(package.manifest, package.media_type, limits=Limits())
    assert isinstance(manifest, Manifest)
    candidate = choose_layout(manifest, limits=Limits()).candidates[0]
    assert variant_of(manifest, candidate.descriptor).push_format == form
