"""docs/reference/wasmc-test.schema.json, and the tables of docs/reference/wasmc-test.md, from the Structs of `trial/suite.py`."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from autowasm.trial.suite import Suite
from tools.generate import markdown

_ADDRESS: Final = "https://autowasm.github.io/autowasm/reference/wasmc-test.schema.json"
_ONE_OF_ALL: Final = ("Matcher", "Body")
"""Structs that must have exactly one field, which msgspec's schema cannot say."""
_ORDER: Final = (
    *("Suite", "Defaults", "Case", "Step", "Request", "Response", "Body", "Answer", "Grpc"),
    *("ExpectedStart", "Expect", "ExpectedRequest", "ExpectedResponse", "ExpectedCallout"),
    *("LogLine", "Matcher"),
)


def schema() -> dict[str, Any]:
    """The JSON Schema of a suite."""
    found = msgspec.json.schema(Suite)
    for name in _ONE_OF_ALL:
        found["$defs"][name] |= {"minProperties": 1, "maxProperties": 1}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": _ADDRESS,
        "title": "Suite of wasmc test",
        **found,
    }


def render_schema() -> str:
    """The whole file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def render(page: str) -> str:
    """The page with the tables. Raises ValueError if the page has no place for them."""
    return markdown.with_block(page, "fields", "trial/suite.py", "\n".join(_sections()))


def _sections() -> Iterator[str]:
    definitions = schema()["$defs"]
    structs = {name for name, node in definitions.items() if "properties" in node}
    if structs != set(_ORDER):
        raise ValueError(f"sort into _ORDER: {structs ^ set(_ORDER)}")
    for name in _ORDER:
        node = definitions[name]
        rows = (
            _row(field, child, field in node["required"], definitions)
            for field, child in node["properties"].items()
        )
        table = markdown.table("| field | type | meaning |", rows)
        yield f"### {name}\n\n{node['description']}\n\n{table}"


def _row(
    name: str, node: Mapping[str, Any], required: bool, definitions: Mapping[str, Any]
) -> tuple[str, str, str]:
    meaning = str(node.get("description", "")).replace("|", "\\|")
    default = node.get("default")
    if default not in (None, "", {}, [], False):
        shown = default if isinstance(default, str) else json.dumps(default)
        if not isinstance(default, dict):
            meaning = f"{meaning} (default: `{shown}`)".strip()
    field = f"**`{name}`**" if required else f"`{name}`"
    return field, _type(node, definitions).replace("|", "\\|"), meaning


def _type(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        values = definitions[name].get("enum")
        if values is not None:
            return " or ".join(f"`{value}`" for value in values)
        return f"[{name}](#{name.lower()})"
    if "allOf" in node:
        return _type(node["allOf"][0], definitions)
    if "anyOf" in node:
        return " or ".join(_type(each, definitions) for each in node["anyOf"])
    kind = node.get("type")
    if kind == "array":
        return f"list of {_type(node['items'], definitions)}"
    if kind == "object":
        values = node.get("additionalProperties")
        return f"map of {_type(values, definitions)}" if values else "object"
    words = {"string": "text", "integer": "number", "boolean": "true or false", "null": "null"}
    return words.get(str(kind), "any value")
