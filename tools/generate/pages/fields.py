"""docs/reference/autowasm.md: the fields of the schema in manifests/crd.yaml."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tools.generate import markdown
from tools.generate.paths import MANIFESTS

_INTRODUCTION = """\
# AutoWasm, field by field

`apiVersion: wasm.tcm.io/v1alpha1`, `kind: AutoWasm`, short name `aw`, in a namespace. `kubectl explain aw.spec --recursive` says the same.
What is required is **bold**. This page is made from the schema by `make reference`.
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


def _type(node: Mapping[str, Any]) -> str:
    if "additionalProperties" in node:
        return "map"
    if node.get("type") == "array":
        return f"list of {_type(node['items']).replace(' or ', 's or ')}s"
    if node.get("x-kubernetes-int-or-string"):
        return "integer or string"
    return str(node.get("type", "any"))


def _limits(node: Mapping[str, Any]) -> str:
    said = [text.format(node[key]) for key, text in _LIMITS.items() if key in node]
    if "enum" in node:
        said.append("one of " + ", ".join(f"`{value}`" for value in node["enum"]))
    return f" ({'; '.join(said)})" if said else ""


def _row(path: str, required: bool, node: Mapping[str, Any]) -> tuple[str, str, str]:
    meaning = " ".join(node.get("description", "").split()).replace("|", "\\|")
    name = f"**`{path}`**" if required else f"`{path}`"
    return name, _type(node), f"{meaning}{_limits(node)}"


def render() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    whole = schema()
    for name in ("spec", "status"):
        node = whole["properties"][name]
        table = markdown.table(
            "| field | type | meaning |", (_row(*found) for found in fields(node, name))
        )
        parts.append(f"## {name}\n\n{node['description']}\n\n{table}")
    return "\n".join(parts)
