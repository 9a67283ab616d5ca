"""Manifests and indexes as registries send them, and as they should not."""

import json
from typing import Any

import pytest

from autowasm.digest import Digest
from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.registry import media
from autowasm.registry.manifest import (
    Index,
    Manifest,
    children_by_preference,
    parse_manifest,
)

LIMITS = Limits()


def descriptor(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "mediaType": media.OCI_MANIFEST,
        "digest": str(Digest.of(name.encode())),
        "size": len(name),
        **fields,
    }


def image(**fields: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "config": descriptor("config", mediaType=media.OCI_IMAGE_CONFIG),
        "layers": [descriptor("layer", mediaType=media.OCI_LAYER_TAR_GZIP)],
        **fields,
    }


def index(*children: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "manifests": list(children), **fields}


def platform(name: str, os: str, architecture: str, **fields: Any) -> dict[str, Any]:
    return descriptor(name, platform={"os": os, "architecture": architecture}, **fields)


def parse(document: Any, media_type: str | None = None, *, limits: Limits = LIMITS) -> Any:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_manifest(data, media_type, limits=limits)


def rejected(document: Any, media_type: str | None = None, *, limits: Limits = LIMITS) -> str:
    with pytest.raises(ContentRejected) as caught:
        parse(document, media_type, limits=limits)
    assert "\n" not in str(caught.value)
    assert caught.value.reason in ("ManifestInvalid", "TooLarge")
    return str(caught.value)


@pytest.mark.parametrize(
    ("named", "content_type"),
    [
        (media.OCI_MANIFEST, media.OCI_MANIFEST),
        (media.DOCKER_MANIFEST, media.DOCKER_MANIFEST),
        (media.OCI_MANIFEST, None),
        (None, media.OCI_MANIFEST),
        (None, "text/plain"),
        (None, None),
    ],
)
def test_an_image_is_one_by_its_own_type_or_the_answers_or_its_shape(
    named: str | None, content_type: str | None
) -> None:
    manifest = parse(image(**({"mediaType": named} if named else {})), content_type)
    assert isinstance(manifest, Manifest)
    assert manifest.layers is not None
    assert manifest.layers[0].digest == Digest.of(b"layer")
    assert manifest.layers[0].size == 5


@pytest.mark.parametrize("named", [media.OCI_INDEX, media.DOCKER_MANIFEST_LIST, None])
def test_an_index_is_one_by_type_or_shape(named: str | None) -> None:
    document = index(descriptor("child"), **({"mediaType": named} if named else {}))
    assert isinstance(parse(document, None), Index)
    assert isinstance(parse(document, named), Index)


def test_fields_that_are_null_or_unknown_do_no_harm() -> None:
    document = image(annotations=None, mediaType=None, subject={"x": 1}, **{"org.example": []})
    document["layers"][0].update(annotations=None, platform=None, urls=None, data="aGk=")
    assert isinstance(parse(document), Manifest)
    assert parse(image(layers=None)).layers is None


def test_what_could_be_read_as_both_is_rejected() -> None:
    assert "both" in rejected(image(manifests=[descriptor("child")]))


def test_a_document_whose_two_names_contradict_is_rejected() -> None:
    assert "inside" in rejected(image(mediaType=media.OCI_MANIFEST), media.OCI_INDEX)


@pytest.mark.parametrize("media_type", sorted(media.SCHEMA_1))
def test_docker_schema_1_is_rejected_with_what_to_do(media_type: str) -> None:
    assert "push the image again" in rejected({"schemaVersion": 1, "fsLayers": []}, media_type)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"<html>",
        b'{"schemaVersion": 2, "config": "\xff"}',
        {"schemaVersion": 2},
        {"schemaVersion": 2, "mediaType": "application/vnd.cncf.helm.config.v1+json\n"},
        {"schemaVersion": "2", "layers": []},
        image(layers=[descriptor("x", digest="sha256:short")]),
        image(layers=[descriptor("x", digest="../../etc/passwd")]),
        image(layers=[descriptor("x", size=-1)]),
        image(layers=[descriptor("x", size=1.5)]),
        image(layers=[descriptor("x", size=2**80)]),
        image(layers=[{"mediaType": "x"}]),
        image(layers={}),
        index(descriptor("x", digest="md5:0")),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_manifest_is_rejected(document: Any) -> None:
    rejected(document)


def test_limits_hold() -> None:
    assert "larger" in rejected(image(), limits=Limits(manifest_bytes=10))
    assert "2 entries" in rejected(
        index(descriptor("a"), descriptor("b")), limits=Limits(index_entries=1)
    )


@pytest.mark.parametrize(
    ("children", "chosen"),
    [
        ([platform("a", "linux", "arm64"), platform("b", "linux", "amd64")], "b"),
        ([platform("b", "linux", "amd64"), platform("w", "wasip1", "wasm")], "w"),
        ([platform("b", "linux", "amd64"), platform("w", "js", "wasm32")], "w"),
        ([platform("a", "linux", "s390x"), platform("b", "windows", "amd64")], "a"),
        ([descriptor("a")], "a"),
        ([platform("x", "unknown", "unknown"), platform("a", "linux", "riscv64")], "a"),
        (
            [
                platform(
                    "x", "linux", "amd64", annotations={media.DOCKER_REFERENCE_TYPE: "attestation"}
                ),
                platform("a", "linux", "arm64"),
            ],
            "a",
        ),
        ([descriptor("x", mediaType=media.OCI_INDEX), descriptor("a")], "a"),
        ([platform("b", "linux", "amd64"), platform("c", "linux", "amd64")], "b"),
        ([descriptor("s", artifactType="application/vnd.sbom"), descriptor("a")], "a"),
        ([descriptor("s", artifactType="application/vnd.sbom")], "s"),
        (
            [platform("b", "linux", "amd64"), descriptor("w", artifactType=media.CNCF_CONFIG_V0)],
            "w",
        ),
        ([platform("b", "linux", "amd64"), descriptor("w", artifactType=media.WASM_CONFIG)], "w"),
        ([platform("b", "linux", "amd64"), platform("w", "wasi", "wasm")], "w"),
        ([platform("b", "linux", "amd64"), platform("w", "wasi", "amd64")], "w"),
        ([platform("b", "linux", "amd64"), platform("w", "linux", "wasm32")], "w"),
        (
            [
                platform("b", "linux", "amd64"),
                platform("w", "linux", "arm64", annotations={media.VARIANT: "compat"}),
            ],
            "w",
        ),
        (
            [
                platform("b", "linux", "amd64"),
                platform("w", "linux", "amd64", annotations={media.OCI_HANDLER: "wasmedge"}),
            ],
            "w",
        ),
        (
            [platform("b", "linux", "amd64"), descriptor("w", annotations={media.TITLE: "f.wasm"})],
            "w",
        ),
        ([platform("c", "wasip2", "wasm"), platform("w", "wasip1", "wasm")], "w"),
        ([platform("b", "linux", "amd64"), platform("c", "wasip2", "wasm")], "c"),
    ],
)
def test_of_an_index_wasm_is_preferred_then_linux_amd64_then_the_first(
    children: list[dict[str, Any]], chosen: str
) -> None:
    assert children_by_preference(parse(index(*children)))[0].digest == Digest.of(chosen.encode())


def test_an_index_without_an_image_is_rejected_naming_what_it_holds() -> None:
    document = index(descriptor("x", mediaType="application/evil\n"), platform("y", "unknown", "x"))
    with pytest.raises(ContentRejected) as caught:
        children_by_preference(parse(document))[0]
    assert caught.value.reason == "ManifestInvalid"
    assert r"'application/evil\n'" in str(caught.value)


@pytest.mark.parametrize("kind", [media.OCI_INDEX, media.DOCKER_MANIFEST_LIST])
def test_an_index_in_an_index_is_not_followed_and_what_to_do_is_said(kind: str) -> None:
    document = index(descriptor("x", mediaType=kind))
    with pytest.raises(ContentRejected, match="name the inner one by its digest"):
        children_by_preference(parse(document))[0]
