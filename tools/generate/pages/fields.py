"""docs/reference/autowasm.md: the fields of the schema in manifests/crd.yaml, each with an anchor and an example.

Anchors are those that both GitHub and mkdocs derive from a heading: `spec.filter.priority` is at `#specfilterpriority`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from tools.generate.paths import MANIFESTS

EXAMPLES: Final = Path(__file__).with_name("examples.yaml")
_INTRODUCTION = """\
# AutoWasm, field by field

`apiVersion: wasm.tcm.io/v1alpha1`, `kind: AutoWasm`, short name `aw`, in a namespace. `kubectl explain aw.spec --recursive` says the same.
This page is made from the schema by `make reference`.
"""
_LIMITS = {
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
    "maxProperties": "at most {} entries",
    "minimum": "from {}",
    "maximum": "to {}",
}
_LONGEST = 120
"""Maximum characters of an example on one line; of a longer object only the first fields are shown."""


def schema() -> Mapping[str, Any]:
    """The schema of the version that is stored."""
    crd = yaml.safe_load((MANIFESTS / "crd.yaml").read_text())
    (version,) = [one for one in crd["spec"]["versions"] if one["storage"]]
    whole: Mapping[str, Any] = version["schema"]["openAPIV3Schema"]
    return whole


def fields(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, bool, Mapping[str, Any]]]:
    """Each field below, by its path, whether it is required, and its schema."""
    for name, child in node.get("properties", {}).items():
        here = f"{path}.{name}"
        yield here, name in node.get("required", ()), child
        items = child.get("items", {})
        yield from fields(child, here)
        yield from fields(items, f"{here}[]")


def examples() -> list[Mapping[str, Any]]:
    """AutoWasms that together have every field."""
    return list(yaml.safe_load_all(EXAMPLES.read_text()))


def example(path: str, documents: Sequence[Mapping[str, Any]]) -> Any:
    """The value of a field in the first of the objects that has it. Raises KeyError."""
    for document in documents:
        value: Any = document
        for name in path.split("."):
            value = value.get(name.removesuffix("[]")) if isinstance(value, dict) else None
            if name.endswith("[]") and value:
                value = value[0]
        if value is not None:
            return value
    raise KeyError(path)


def _type(node: Mapping[str, Any]) -> str:
    if "additionalProperties" in node:
        return "map"
    if node.get("type") == "array":
        return f"list of {_type(node['items']).replace(' or ', 's or ')}s"
    if node.get("x-kubernetes-int-or-string"):
        return "integer or string"
    return str(node.get("type", "any"))


def _constraints(required: bool, node: Mapping[str, Any]) -> str:
    said = [_type(node), *(["**required**"] if required else [])]
    said += [text.format(node[key]) for key, text in _LIMITS.items() if key in node]
    if "enum" in node:
        said.append("one of " + ", ".join(f"`{value}`" for value in node["enum"]))
    return ", ".join(said)


def _example(path: str, documents: Sequence[Mapping[str, Any]]) -> str:
    field = {path.rpartition(".")[2]: example(path, documents)}
    text = yaml.safe_dump(field, default_flow_style=True, width=float("inf"), sort_keys=False)
    return f"Example: `{_shortened(text.strip()[1:-1])}`"


def _shortened(line: str) -> str:
    """The line, or its beginning up to a comma, with `…` and the closing brackets that are missing then."""
    if len(line) <= _LONGEST:
        return line
    kept = line[:_LONGEST].rpartition(", ")[0]
    still_open: list[str] = []
    for character in kept:
        if character in "{[":
            still_open.append({"{": "}", "[": "]"}[character])
        elif character in "}]":
            still_open.pop()
    return f"{kept}, …{''.join(reversed(still_open))}"


def _section(
    path: str, required: bool, node: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]
) -> str:
    meaning = " ".join(node.get("description", "").split())
    parts = [f"### `{path}`", _constraints(required, node), meaning, _example(path, documents)]
    return "\n\n".join(filter(None, parts)) + "\n"


def render() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    whole, documents = schema(), examples()
    for name in ("spec", "status"):
        node = whole["properties"][name]
        parts.append(f"## {name}\n\n{node['description']}\n")
        parts += [_section(*found, documents) for found in fields(node, name)]
    return "\n".join(parts)
