"""The schema against the code: the same fields, the same limits, and a sentence on everything. No API server needed."""

import enum
import re
import types
import typing
from typing import Any

import msgspec
import pytest
from msgspec import UnsetType

from autowasm.api import rolloutsteps, validation
from autowasm.api.status import MAX_ABORTED, MAX_STAGED, Status
from autowasm.api.v1alpha1 import (
    API_VERSION,
    GROUP,
    KIND,
    FailStrategy,
    OnUnknown,
    PatchContext,
    Position,
    PullPolicy,
    Spec,
)
from tests.manifests import documents
from tests.manifests.documents import Document

_SCHEMA = documents.schema()
_NODES = dict(documents.nodes(_SCHEMA))


_TYPES = {str: "string", int: "integer", bool: "boolean", float: "number"}
_ANY_TYPE = ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string")


def _crd() -> Document:
    (crd,) = documents.documents(documents.CRD)
    return crd


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The possible values of a field besides absent or null."""
    if typing.get_origin(kind) in {types.UnionType, typing.Union}:
        return tuple(a for a in typing.get_args(kind) if a not in {type(None), UnsetType})
    return (kind,)


def _compare(kind: Any, schema: Document, path: str) -> None:
    """Walk a Struct and a schema together."""
    if Any in _alternatives(kind):
        assert schema["x-kubernetes-preserve-unknown-fields"] is True, path
        return
    if set(_alternatives(kind)) == {int, str}:
        assert schema["x-kubernetes-int-or-string"] is True, path
        return
    (kind,) = _alternatives(kind)
    kind = getattr(kind, "__supertype__", kind)  # a NewType is its base
    origin = typing.get_origin(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        _compare_struct(kind, schema, path)
    elif origin is tuple:
        assert schema["type"] == "array", path
        _compare(typing.get_args(kind)[0], schema["items"], f"{path}[]")
    elif origin is dict:
        assert schema["type"] == "object", path
        _compare(typing.get_args(kind)[1], schema["additionalProperties"], f"{path}{{}}")
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        assert schema["type"] == "string", path
        assert schema.get("enum") in (None, [member.value for member in kind]), path
    else:
        assert schema["type"] == _TYPES[kind], path


def _compare_struct(kind: type[msgspec.Struct], schema: Document, path: str) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    assert schema["type"] == "object", path
    assert fields.keys() == schema["properties"].keys(), path
    if not path.startswith(
        "status"
    ):  # the schema of fields that we write may be stricter than of fields that we read
        required = {name for name, field in fields.items() if field.required}
        assert set(schema.get("required", ())) == required, path
    for name, field in fields.items():
        _compare(field.type, schema["properties"][name], f"{path}.{name}")


def test_the_spec_has_the_fields_of_the_struct() -> None:
    _compare(Spec, _SCHEMA["properties"]["spec"], "spec")


def test_the_status_has_the_fields_of_the_struct() -> None:
    _compare(Status, _SCHEMA["properties"]["status"], "status")


def test_names_are_those_of_the_code() -> None:
    spec = _crd()["spec"]
    assert spec["group"] == GROUP
    assert f"{spec['group']}/{spec['versions'][0]['name']}" == API_VERSION
    assert spec["names"] == {
        "kind": KIND,
        "listKind": f"{KIND}List",
        "plural": "autowasms",
        "singular": "autowasm",
        "shortNames": ["aw"],
        "categories": ["istio-io"],
    }
    assert _crd()["metadata"]["name"] == "autowasms.wasm.tcm.io"
    assert spec["scope"] == "Namespaced"


def test_every_field_is_described_in_sentences() -> None:
    # Kubernetes forbids a description of metadata.
    texts = {
        path: node.get("description", "") for path, node in _NODES.items() if path != "metadata"
    }
    assert [
        path for path, text in texts.items() if not re.match(r"[A-Z].*\.\Z", text, re.DOTALL)
    ] == []


def test_the_schema_is_structural() -> None:
    for path, node in _NODES.items():
        assert "type" in node or any(node.get(mark) is True for mark in _ANY_TYPE), path


def test_every_rule_has_a_message_and_every_list_says_how_it_merges() -> None:
    for path, node in _NODES.items():
        assert all(rule.get("message") for rule in node.get("x-kubernetes-validations", ())), path
        if node.get("type") == "array" and path != "status.history":
            assert node["x-kubernetes-list-type"] in {"set", "map", "atomic"}, path


@pytest.mark.parametrize(
    ("path", "limit", "value"),
    [
        ("applyPorts", "maxItems", validation._MAX_PORTS),
        ("rootID", "maxLength", validation._MAX_ID_LENGTH),
        ("vmID", "maxLength", validation._MAX_ID_LENGTH),
        ("source.object.url", "maxLength", validation._MAX_URL_LENGTH),
        ("env", "maxItems", validation._MAX_ENV),
        ("env[].name", "maxLength", validation._MAX_ENV_NAME_LENGTH),
        ("env[].value", "maxLength", validation._MAX_ENV_VALUE_LENGTH),
        ("failStrategy", "enum", [member.value for member in FailStrategy]),
        ("context", "enum", [member.value for member in PatchContext]),
        ("position", "enum", [member.value for member in Position]),
        ("pullPolicy", "enum", [member.value for member in PullPolicy]),
    ],
)
def test_limits_are_those_of_the_code(path: str, limit: str, value: object) -> None:
    assert _NODES[f"spec.filter.{path}"][limit] == value


@pytest.mark.parametrize(
    ("path", "limit", "value"),
    [
        ("spec.rollout.steps", "maxItems", rolloutsteps.MAX_STEPS),
        ("spec.rollout.steps[]", "maximum", rolloutsteps.MAX_COUNT),
        ("spec.rollout.onUnknown", "enum", [member.value for member in OnUnknown]),
        ("status.rollout.aborted", "maxItems", MAX_ABORTED),
        ("status.rollout.pods", "maxItems", MAX_STAGED),
        ("status.rollout.groups", "maxItems", MAX_STAGED),
    ],
)
def test_limits_of_a_rollout_are_those_of_the_code(path: str, limit: str, value: object) -> None:
    assert _NODES[path][limit] == value


def test_every_text_of_the_spec_is_bounded() -> None:
    unbounded = [
        path
        for path, node in _NODES.items()
        if path.startswith("spec") and node.get("type") == "string"
        if not node.keys() & {"maxLength", "enum"} and "{64}$" not in node.get("pattern", "")
    ]
    assert unbounded == []


def test_description_of_apply_ports_names_the_pods_port() -> None:
    assert "the Pod's port, not the Service's" in _NODES["spec.filter.applyPorts"]["description"]
