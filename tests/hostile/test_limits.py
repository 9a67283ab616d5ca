"""Each hostile input reaches its limit, and the refusal names it. Memory and time are in test_bombs.py and test_stall.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from autowasm.errors import ContentRejected, SpecError
from autowasm.limits import Limits
from autowasm.registry.credentials import from_docker_config
from autowasm.registry.layouts import choose_layout
from autowasm.registry.manifest import ImageIndex, children_by_preference, parse_manifest
from autowasm.wasm.archive import extract_module
from autowasm.wasm.module import inspect_bytes
from tests.hostile import inputs

MIB = 1024 * 1024
LIMITS = Limits()


def annotated(count: int) -> bytes:
    whole = json.loads(inputs.manifest([]))
    return json.dumps({**whole, "annotations": {str(n): "v" for n in range(count)}}).encode()


def index(*kinds: str, times: int = 1) -> bytes:
    entries = [inputs.descriptor(b"x", kind) for kind in kinds] * times
    return json.dumps({"schemaVersion": 2, "manifests": entries}).encode()


INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE = "application/vnd.oci.image.manifest.v1+json"


@pytest.mark.parametrize(
    ("make", "reason", "says"),
    [
        (lambda: b"{" + b" " * (100 * MIB), "TooLarge", "larger than 4 MiB"),
        (lambda: inputs.many_layers(10_000), "TooLarge", "strings"),
        (lambda: inputs.many_layers(200), "", "layers"),
        (lambda: annotated(60_000), "TooLarge", "strings"),
        (lambda: index(INDEX), "ManifestInvalid", "not followed"),
        (lambda: index(IMAGE, times=1_001), "ManifestInvalid", "1000 are accepted"),
        (lambda: b"[" * 1_000_000, "ManifestInvalid", "not readable"),
        (lambda: b'{"other":' * 40_000, "ManifestInvalid", "not readable"),
        (lambda: b"\xff\xfe{}", "ManifestInvalid", "not readable"),
    ],
)
def test_a_hostile_manifest_is_refused(make: Callable[[], bytes], reason: str, says: str) -> None:
    with pytest.raises(ContentRejected, match=says) as caught:
        found = parse_manifest(make(), None, limits=LIMITS)
        children_by_preference(found)[0] if isinstance(found, ImageIndex) else choose_layout(
            found, limits=LIMITS
        )
    assert not reason or caught.value.reason == reason
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (inputs.gzip_bomb, "TooLarge"),
        (inputs.zstd_bomb, "TooLarge"),
        (inputs.zstd_window_bomb, "ArchiveInvalid"),
        (inputs.tar_bomb, "ArchiveTooLarge"),
        (inputs.nested_bomb, "TooLarge"),
        (inputs.million_entries, "ArchiveTooLarge"),
        (inputs.tar_with_claimed_size, "ArchiveTooLarge"),
        (inputs.tangled_archive, "ModuleNotFoundInArchive"),
    ],
)
def test_a_hostile_archive_is_refused(
    make: Callable[[], bytes], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(make())
    with pytest.raises(ContentRejected) as caught:
        extract_module(tmp_path / "source", tmp_path / "out", packing="detect", limits=LIMITS)
    assert caught.value.reason == reason
    assert str(caught.value).isprintable()
    assert sorted(file.name for file in tmp_path.iterdir()) in (["source"], ["out", "source"])


def exports(count: int, *, length: int) -> bytes:
    each = inputs.leb(length) + b"e" * (length - 6)
    names = b"".join(each + f"{number:06}".encode() + b"\0\0" for number in range(count))
    return (
        inputs.MODULE_START
        + inputs.section(1, b"\x01\x60\0\0")
        + inputs.section(3, b"\x01\x00")
        + inputs.section(7, inputs.leb(count) + names)
        + inputs.section(10, b"\x01\x02\0\x0b")
    )


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: inputs.with_declared_functions(2**32 - 1), "WasmInvalid"),
        (inputs.overlong_leb, "WasmInvalid"),
        (lambda: inputs.hello() + inputs.section(0, b"\x01a") * 10_000, "TooLarge"),
        (lambda: inputs.with_names(1_000_001, size=9 * MIB), "TooLarge"),
        (lambda: exports(100_000, length=120), "TooLarge"),
        (lambda: exports(100_001, length=20), "WasmInvalid|TooLarge"),
    ],
)
def test_a_hostile_module_is_refused(make: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(ContentRejected) as caught:
        inspect_bytes(make(), limits=LIMITS, allow_imports=frozenset())
    assert caught.value.reason in reason.split("|")
    assert str(caught.value).isprintable()


def test_a_docker_config_of_thousands_of_registries_is_refused_and_a_large_one_is_not() -> None:
    with pytest.raises(SpecError, match="at most 10000 are accepted"):
        from_docker_config(inputs.docker_config(6_000), host="r.example", repository="a")
    assert from_docker_config(inputs.docker_config(1_000), host="r.example", repository="a") is None
