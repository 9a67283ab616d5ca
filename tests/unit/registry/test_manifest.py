"""Manifests and indexes as registries send them, and as they should not."""

import json
from typing import Any

import pytest

from autowasm.digest import Digest
from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.registry import mediatypes
from autowasm.registry.manifest import (
    ImageIndex,
    Manifest,
    children_by_preference,
    is_marked_wasm,
    parse_manifest,
    shown_types,
)

LIMITS = Limits()


def descriptor(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "mediaType": mediatypes.OCI_MANIFEST,
        "digest": str(Digest.of(name.encode())),
        "size": len(name),
        **fields,
    }


def image(**fields: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "config": descriptor("config", mediaType=mediatypes.OCI_IMAGE_CONFIG),
        "layers": [descriptor("layer", mediaType=mediatypes.OCI_LAYER_TAR_GZIP)],
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
        (mediatypes.OCI_MANIFEST, mediatypes.OCI_MANIFEST),
        (mediatypes.DOCKER_MANIFEST, mediatypes.DOCKER_MANIFEST),
        (mediatypes.OCI_MANIFEST, None),
        (None, mediatypes.OCI_MANIFEST),
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


@pytest.mark.parametrize("named", [mediatypes.OCI_INDEX, mediatypes.DOCKER_MANIFEST_LIST, None])
def test_an_index_is_one_by_type_or_shape(named: str | None) -> None:
    document = index(descriptor("child"), **({"mediaType": named} if named else {}))
    assert isinstance(parse(document, None), ImageIndex)
    assert isinstance(parse(document, named), ImageIndex)


def test_fields_that_are_null_or_unknown_do_no_harm() -> None:
    document = image(annotations=None, mediaType=None, subject={"x": 1}, **{"org.example": []})
    document["layers"][0].update(annotations=None, platform=None, urls=None, data="aGk=")
    assert isinstance(parse(document), Manifest)
    assert parse(image(layers=None)).layers is None


def test_document_that_is_both_image_and_index_is_rejected() -> None:
    assert "both" in rejected(image(manifests=[descriptor("child")]))


def test_a_document_whose_two_names_contradict_is_rejected() -> None:
    message = rejected(image(mediaType=mediatypes.OCI_MANIFEST), mediatypes.OCI_INDEX)
    assert (
        f"of type {mediatypes.OCI_MANIFEST} in its mediaType and {mediatypes.OCI_INDEX} in the Content-Type"
        in message
    )


@pytest.mark.parametrize("media_type", sorted(mediatypes.SCHEMA_1))
def test_docker_schema_1_is_rejected_with_a_remedy(media_type: str) -> None:
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
def test_document_that_is_no_manifest_is_rejected(document: Any) -> None:
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
                    "x",
                    "linux",
                    "amd64",
                    annotations={mediatypes.DOCKER_REFERENCE_TYPE: "attestation"},
                ),
                platform("a", "linux", "arm64"),
            ],
            "a",
        ),
        ([descriptor("x", mediaType=mediatypes.OCI_INDEX), descriptor("a")], "a"),
        ([platform("b", "linux", "amd64"), platform("c", "linux", "amd64")], "b"),
        ([descriptor("s", artifactType="application/vnd.sbom"), descriptor("a")], "a"),
        ([descriptor("s", artifactType="application/vnd.sbom")], "s"),
        (
            [
                platform("b", "linux", "amd64"),
                descriptor("w", artifactType=mediatypes.CNCF_CONFIG_V0),
            ],
            "w",
        ),
        (
            [platform("b", "linux", "amd64"), descriptor("w", artifactType=mediatypes.WASM_CONFIG)],
            "w",
        ),
        ([platform("b", "linux", "amd64"), platform("w", "wasi", "wasm")], "w"),
        ([platform("b", "linux", "amd64"), platform("w", "wasi", "amd64")], "w"),
        ([platform("b", "linux", "amd64"), platform("w", "linux", "wasm32")], "w"),
        (
            [
                platform("b", "linux", "amd64"),
                platform("w", "linux", "arm64", annotations={mediatypes.VARIANT: "compat"}),
            ],
            "w",
        ),
        (
            [
                platform("b", "linux", "amd64"),
                platform("w", "linux", "amd64", annotations={mediatypes.OCI_HANDLER: "wasmedge"}),
            ],
            "w",
        ),
        (
            [
                platform("b", "linux", "amd64"),
                descriptor("w", annotations={mediatypes.TITLE: "f.wasm"}),
            ],
            "w",
        ),
        ([platform("c", "wasip2", "wasm"), platform("w", "wasip1", "wasm")], "w"),
        ([platform("b", "linux", "amd64"), platform("c", "wasip2", "wasm")], "c"),
        ([platform("c", "wasip3", "wasm"), platform("w", "wasip1", "wasm")], "w"),
        ([platform("b", "linux", "amd64"), platform("w", "WASM", "amd64")], "w"),
        ([platform("b", "linux", "amd64"), platform("w", "linux", "WASM32")], "w"),
        ([platform("c", "linux", "arm64"), platform("b", "linux", "amd64")], "b"),
        ([platform("a", "linux", "arm64"), platform("b", "windows", "amd64")], "a"),
        ([descriptor("s", artifactType="application/vnd.sbom"), platform("a", "x", "y")], "a"),
    ],
)
def test_of_an_index_wasm_is_preferred_then_linux_amd64_then_the_first(
    children: list[dict[str, Any]], chosen: str
) -> None:
    assert children_by_preference(parse(index(*children)))[0].digest == Digest.of(chosen.encode())


def test_an_index_without_an_image_is_rejected_with_its_media_types() -> None:
    document = index(descriptor("x", mediaType="application/evil\n"), platform("y", "unknown", "x"))
    with pytest.raises(ContentRejected) as caught:
        children_by_preference(parse(document))[0]
    assert caught.value.reason == "ManifestInvalid"
    assert r"'application/evil\n'" in str(caught.value)


@pytest.mark.parametrize("kind", [mediatypes.OCI_INDEX, mediatypes.DOCKER_MANIFEST_LIST])
def test_a_nested_index_is_rejected_with_a_remedy(kind: str) -> None:
    document = index(descriptor("x", mediaType=kind))
    with pytest.raises(ContentRejected, match="reference the inner one by its digest"):
        children_by_preference(parse(document))[0]


def test_a_document_is_accepted_up_to_the_limit_in_bytes_and_not_beyond() -> None:
    data = json.dumps(image()).encode()
    assert isinstance(parse(data, limits=Limits(manifest_bytes=len(data))), Manifest)
    assert "larger" in rejected(data, limits=Limits(manifest_bytes=len(data) - 1))


def test_strings_are_accepted_up_to_the_limit_and_counted_in_the_message() -> None:
    data = json.dumps(image()).encode()
    quotes = data.count(b'"')
    assert isinstance(parse(data, limits=Limits(manifest_quotes=quotes)), Manifest)
    with pytest.raises(ContentRejected) as caught:
        parse(data, limits=Limits(manifest_quotes=quotes - 2))
    assert caught.value.reason == "TooLarge"
    assert f"about {quotes // 2} strings; at most {quotes // 2 - 1} are accepted" in str(
        caught.value
    )
    with pytest.raises(ContentRejected, match="strings"):
        parse(data, limits=Limits(manifest_quotes=quotes - 1))


def test_an_index_is_accepted_up_to_the_limit_of_its_entries() -> None:
    document = index(descriptor("a"), descriptor("b"))
    assert len(parse(document, limits=Limits(index_entries=2)).manifests) == 2


@pytest.mark.parametrize("data", [b"", b" \n"])
def test_an_empty_answer_is_called_empty(data: bytes) -> None:
    assert rejected(data) == "the manifest is empty"


@pytest.mark.parametrize(
    "data",
    [
        b'{"schemaVersion": 2, "mediaType": "\xff"}',
        b'{"schemaVersion": 2, "config": {"mediaType": "\xff"}, "layers": []}',
        b'{"schemaVersion": 2, "other": ' + b"[" * 100_000,
        b'{"schemaVersion": 2, "manifests": ' + b"[" * 100_000,
    ],
    ids=["no UTF-8", "no UTF-8 in the config", "nested", "nested in a field that is read"],
)
def test_undecodable_manifest_is_rejected_as_not_readable(data: bytes) -> None:
    assert "not readable" in rejected(data)


@pytest.mark.parametrize("size", [0, 1, 2**62, 2**63 - 1])
def test_sizes_are_those_of_int64(size: int) -> None:
    assert parse(image(layers=[descriptor("x", size=size)])).layers[0].size == size


@pytest.mark.parametrize("size", [-1, 2**63, 2**64 - 1])
def test_sizes_beyond_int64_are_rejected(size: int) -> None:
    rejected(image(layers=[descriptor("x", size=size)]))


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        (image(schemaVersion=1), None),
        (image(fsLayers=[]), None),
        *((image(mediaType=kind), None) for kind in sorted(mediatypes.SCHEMA_1)),
        *((image(), kind) for kind in sorted(mediatypes.SCHEMA_1)),
    ],
    ids=["version", "layers", "type", "signed type", "content type", "signed content type"],
)
def test_each_sign_of_docker_schema_1_is_enough(
    document: dict[str, Any], content_type: str | None
) -> None:
    assert "Docker schema 1" in rejected(document, content_type)


def test_a_document_without_a_version_is_not_taken_for_docker_schema_1() -> None:
    document = image()
    del document["schemaVersion"]
    message = rejected(document)
    assert "schema 1" not in message
    assert "schemaVersion" in message


@pytest.mark.parametrize("field", ["config", "layers"])
def test_an_index_with_either_part_of_an_image_is_rejected(field: str) -> None:
    assert "both an image and an index" in rejected(index(**{field: image()[field]}))


@pytest.mark.parametrize("field", ["manifests", "fsLayers"])
def test_a_part_of_another_kind_that_is_null_does_no_harm(field: str) -> None:
    assert isinstance(parse(image(**{field: None})), Manifest)


def test_a_type_that_is_not_supported_is_named_and_cut() -> None:
    message = rejected(image(mediaType="x" * 101))
    assert message == f"the manifest is of an unsupported type: {'x' * 100!r}"
    assert "unsupported" in rejected(image(mediaType="x"), mediatypes.OCI_MANIFEST)


def test_an_index_in_an_index_is_explained_although_other_entries_stand_beside_it() -> None:
    document = index(descriptor("x", mediaType=mediatypes.OCI_INDEX), platform("y", "unknown", "x"))
    with pytest.raises(ContentRejected, match="reference the inner one by its digest"):
        children_by_preference(parse(document))


def test_an_index_without_an_inner_index_is_not_explained_so() -> None:
    with pytest.raises(ContentRejected) as caught:
        children_by_preference(parse(index(platform("y", "unknown", "x"))))
    assert "digest" not in str(caught.value)
    with pytest.raises(ContentRejected, match=r"it holds nothing$"):
        children_by_preference(parse(index()))


@pytest.mark.parametrize(("os", "architecture"), [("unknown", "amd64"), ("linux", "unknown")])
def test_an_entry_whose_platform_is_unknown_in_part_is_passed_over(
    os: str, architecture: str
) -> None:
    document = index(platform("x", os, architecture), platform("a", "linux", "s390x"))
    assert [child.digest for child in children_by_preference(parse(document))] == [Digest.of(b"a")]


@pytest.mark.parametrize(
    ("fields", "wasm"),
    [
        ({}, False),
        ({"layers": None}, False),
        ({"config": descriptor("config", mediaType="application/vnd.WASM.config.v0+json")}, True),
        ({"layers": [descriptor("a", mediaType="text/css"), descriptor("b", mediaType=mediatypes.CNCF_WASM)]}, True),
        ({"artifactType": "application/vnd.Wasm.x"}, True),
        ({"artifactType": "application/vnd.sbom"}, False),
        ({"annotations": {"module.wasm.runtime/type": ""}}, True),
        ({"annotations": {"org.module.wasm.": ""}}, False),
        ({"annotations": {mediatypes.TITLE: "Filter.WASM"}}, True),
        ({"annotations": {mediatypes.TITLE: "filter.wasm.sig"}}, False),
        ({"annotations": {mediatypes.OCI_HANDLER: "WasmEdge"}}, True),
        ({"annotations": {mediatypes.OCI_HANDLER: "runc", "other": "wasm"}}, False),
    ],
)  # fmt: skip
def test_a_manifest_says_that_it_is_wasm_by_any_one_of_its_parts(
    fields: dict[str, Any], wasm: bool
) -> None:
    assert is_marked_wasm(parse(image(**fields))) is wasm


def test_eight_types_are_shown_each_cut_and_the_others_counted() -> None:
    def types(count: int) -> str:
        layers = [descriptor("x", mediaType=f"{number}{'x' * 99}y") for number in range(count)]
        return shown_types(parse(image(layers=[*layers, *layers])).layers)

    shown = [repr(f"{number}{'x' * 99}") for number in range(9)]
    assert types(0) == "nothing"
    assert types(2) == ", ".join(shown[:2])
    assert types(8) == ", ".join(shown[:8])
    assert types(9) == ", ".join([*shown[:8], "1 more"])
