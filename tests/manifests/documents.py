"""The shipped manifests as documents, and AutoWasms to change.

Not a templating tool. Invariant: `valid()` is accepted by the schema and by `validation.parse`; every caller gets its own copy.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
CRD = MANIFESTS / "crd.yaml"
INSTALL = MANIFESTS / "install.yaml"
SAMPLES = sorted((MANIFESTS / "samples").glob("*.yaml"))

Document = dict[str, Any]
AUTOWASMS = "/apis/wasm.tcm.io/v1alpha1/namespaces/{namespace}/autowasms"

_VALID: Document = {
    "apiVersion": "wasm.tcm.io/v1alpha1",
    "kind": "AutoWasm",
    "metadata": {"name": "test", "namespace": "default"},
    "spec": {
        "filter": {"source": {"registry": {"image": "registry.example.com/team/hello:v1"}}},
        "selector": {"matchLabels": {"app": "details"}},
    },
}


def documents(path: Path) -> list[Document]:
    """All documents of a YAML file."""
    return [
        document
        for document in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader)
        if document
    ]


def installed(kind: str, name: str = "wasmer") -> Document:
    """One object of install.yaml."""
    found = [d for d in documents(INSTALL) if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{kind} {name}: {len(found)} in {INSTALL.name}"
    return found[0]


def schema() -> Document:
    """The schema of v1alpha1."""
    (crd,) = documents(CRD)
    (version,) = crd["spec"]["versions"]
    result: Document = version["schema"]["openAPIV3Schema"]
    return result


def valid() -> Document:
    """A small valid AutoWasm."""
    return copy.deepcopy(_VALID)


def changed(change: Callable[[Document], object]) -> Document:
    """The small AutoWasm after `change` was made to its spec."""
    document = valid()
    change(document["spec"])
    return document


def with_filter(**fields: Any) -> Document:
    """The small AutoWasm with these fields in `spec.filter`."""
    return changed(lambda spec: spec["filter"].update(fields))


def with_source(**source: Any) -> Document:
    """The small AutoWasm with this `spec.filter.source` and no other."""
    return with_filter(source=source)


def image(text: str) -> Document:
    """The small AutoWasm with this image."""
    return with_source(registry={"image": text})


def url(text: str) -> Document:
    """The small AutoWasm with this object URL."""
    return with_source(object={"url": text})


def labels(match: Any) -> Document:
    """The small AutoWasm with these `matchLabels`."""
    return changed(lambda spec: spec.update(selector={"matchLabels": match}))


def nodes(schema: Document, path: str = "") -> Iterator[tuple[str, Document]]:
    """Every schema of a structural schema with its path: `spec.filter.env[]`, `spec.selector.matchLabels{}`."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")
