"""The text of a file to AutoWasms and Secrets."""

import pytest

from autowasm.kube.resources import ObjectKey
from autowasm.limits import Limits
from autowasm.standalone import documents
from autowasm.standalone.documents import Parsed
from tests.fakes.autowasms import SAMPLES

HEAD = "apiVersion: wasm.tcm.io/v1alpha1\nkind: AutoWasm\n"
SECRET = "apiVersion: v1\nkind: Secret\nmetadata: {name: pull}\n"


def parse(content: str, **limits: int) -> Parsed:
    return documents.parse(content.encode(), limits=Limits(**limits))


def autowasm(name: str, *, namespace: str | None = None) -> str:
    space = f", namespace: {namespace}" if namespace else ""
    return f"{HEAD}metadata: {{name: {name}{space}}}\nspec: {{}}\n"


def test_several_documents_of_both_kinds() -> None:
    content = "---\n".join([autowasm("one"), SECRET, autowasm("two", namespace="other"), ""])

    parsed = parse(content)

    assert [key for key, _ in parsed.autowasms] == [
        ObjectKey("default", "one"),
        ObjectKey("other", "two"),
    ]
    assert [key for key, _ in parsed.secrets] == [ObjectKey("default", "pull")]
    assert not parsed.problems
    assert not parsed.broken


@pytest.mark.parametrize("name", ["autowasm-registry.yaml", "autowasm-object.yaml"])
def test_reference_documents_are_read(name: str) -> None:
    parsed = parse((SAMPLES / name).read_text())
    ((key, document),) = parsed.autowasms
    assert key == ObjectKey("default", "test")
    assert document["spec"]["filter"]["applyPorts"] == [9080]


def test_object_twice_in_a_file_is_kept_twice() -> None:
    parsed = parse(f"{autowasm('one')}---\n{autowasm('one')}")
    assert len(parsed.autowasms) == 2


def test_a_wrong_name_and_a_wrong_namespace_are_reported_at_once() -> None:
    parsed = parse(f"{HEAD}metadata: {{name: A, namespace: B}}\n")
    assert parsed.broken
    assert parsed.problems == [
        "document 1 (line 1): metadata.name must be a DNS name in lower case, not 'A'",
        "document 1 (line 1): metadata.namespace must be a DNS label in lower case, not 'B'",
    ]


def test_other_kinds_are_named_and_break_nothing() -> None:
    parsed = parse(f"apiVersion: apps/v1\nkind: Deployment\n---\n{autowasm('one')}")
    assert len(parsed.autowasms) == 1
    assert parsed.problems == [
        "document 1 (line 1): kind 'Deployment' ('apps/v1') is not supported by wasmer"
    ]
    assert not parsed.broken


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("just text\n", "document 1 (line 1) is not an object"),
        ("---\n\n- a\n- b\n", "document 1 (line 3) is not an object"),
        ("a: 1\n", "document 1 (line 1): kind is missing; a manifest has apiVersion and kind"),
        ("kind: AutoWasm\nmetadata: {name: a}\n", "not 'AutoWasm' without apiVersion"),
        ("apiVersion: v1alpha1\nkind: AutoWasm\nmetadata: {name: a}\n", "of wasm.tcm.io/v1alpha1, not 'AutoWasm' of 'v1alpha1'"),
        ("kind: Deployment\n", "apiVersion is missing, and kind is 'Deployment'"),
        ("apiVersion: wasm.tcm.io/v1\nkind: AutoWasm\nmetadata: {name: a}\n", "v1alpha1"),
        ("apiVersion: wasm.tcm.io/v1alpha1\nkind: AutoWasn\nmetadata: {name: a}\n", "AutoWasn"),
        (HEAD, "metadata.name is missing"),
        (f"{HEAD}metadata: [a]\n", "metadata.name is missing"),
        (f"{HEAD}metadata: {{namespace: a}}\n", "metadata.name is missing"),
        (f"{HEAD}metadata: {{name: 1}}\n", "metadata.name must be a DNS name"),
        (f"{HEAD}metadata: {{name: a, namespace: b.c}}\n", "metadata.namespace must be a DNS label"),
        (f"{HEAD}metadata: {{name: a, namespace: [b]}}\n", "metadata.namespace must be a DNS label"),
        (autowasm("a" * 240), "longer than 239"),
        (autowasm("a" * 200, namespace="b" * 40), "longer than 239"),
        ("", "the file is empty"),
        ("# nothing here\n---\n", "the file is empty"),
        ("a: [", "line"),
    ],
)  # fmt: skip
def test_invalid_document_breaks_the_file(content: str, sentence: str) -> None:
    parsed = parse(content)
    assert parsed.broken
    assert len(parsed.problems) == 1
    assert sentence in parsed.problems[0]
    assert not parsed.autowasms


@pytest.mark.parametrize(
    "name", ["A", "a_b", "-a", "a-", ".a", "a.", "a..b", "a.-b", "../a", "a/b", "a\n", "ä", "a" * 254]
)  # fmt: skip
def test_names_that_are_no_dns_names_are_refused(name: str) -> None:
    parsed = parse(f"{HEAD}metadata: {{name: {name!r}}}\n".replace("\\n", "\n\n"))
    assert parsed.broken
    assert not parsed.autowasms


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a.b", "a-1.b-2.c", "a" * 232])
def test_names_as_kubernetes_has_them_are_taken(name: str) -> None:
    assert parse(autowasm(f"'{name}'")).autowasms[0][0] == ObjectKey("default", name)


def test_a_problem_counts_the_document() -> None:
    parsed = parse(f"{autowasm('one')}---\n{HEAD}metadata: {{}}\n")
    assert parsed.problems == ["document 2 (line 6): metadata.name is missing"]
    assert parsed.broken


def test_sizes_are_limited_for_a_document_and_a_file() -> None:
    padding = "x" * 1_000
    assert (
        "document 1 (line 1) is larger" in parse(f"kind: {padding}\n", spec_bytes=1_000).problems[0]
    )
    assert "larger than 8000 bytes" in parse(f"a: {padding}\n" * 9, spec_bytes=1_000).problems[0]


def test_secret_values_are_decoded_and_never_shown() -> None:
    parsed = parse(
        SECRET
        + "type: kubernetes.io/dockerconfigjson\n"
        + "data:\n  folded: |\n    aGVs\n    bG8=\n  over: b2xk\nstringData: {over: s3cret, plain: '0123'}\n"
    )
    ((_, secret),) = parsed.secrets
    assert secret.type == "kubernetes.io/dockerconfigjson"
    assert secret.data == {"folded": b"hello", "over": b"s3cret", "plain": b"0123"}
    assert "s3cret" not in repr(secret)
    assert "s3cret" not in repr(parsed)


def test_secret_without_type_and_data_is_opaque_and_empty() -> None:
    ((_, secret),) = parse(SECRET).secrets
    assert (secret.type, secret.data) == ("Opaque", {})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("data: {a: 's3cret!'}\n", "is not base64; use stringData for plain text"),
        ("data: {a: 'ä3cret'}\n", "is not base64"),
        ("data: {a: 123456}\n", "every value under data must be text"),
        ("data: [s3cret]\n", "every value under data must be text"),
        ("stringData: {a: 123456}\n", "every value under stringData must be text; put it in quotes"),
        ("stringData: {a: null}\n", "every value under stringData must be text"),
        ("stringData: s3cret\n", "every value under stringData must be text"),
    ],
)  # fmt: skip
def test_secret_that_cannot_be_read_breaks_the_file_and_shows_no_value(
    content: str, sentence: str
) -> None:
    parsed = parse(SECRET + content)
    assert parsed.broken
    assert sentence in parsed.problems[0]
    assert not parsed.secrets
    for value in ("3cret", "123456"):
        assert value not in repr(parsed)
