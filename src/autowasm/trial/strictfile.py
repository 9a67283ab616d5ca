"""Reads a user's file into a Struct: YAML or JSON, parsed as kubectl does, and strictly.

Invariants: an unknown field, a duplicate key, a value of another type and a second document are refused; each message begins
with the line, and names the field.
"""

import re
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect

from autowasm.errors import UsageError
from autowasm.manifests import nodes, reader, structs
from autowasm.manifests.fielderrors import similar
from autowasm.manifests.nodes import Alias, Mapping, Node, Scalar, Sequence, Unreadable
from autowasm.manifests.structs import Misfit

_T = TypeVar("_T")
MAX_BYTES: Final = 4 * 1024 * 1024
"""Of a file; a suite of a thousand cases has half a megabyte."""
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_KINDS: Final = {"int": int, "float": float, "bool": bool, "null": type(None)}
_GOT: Final = re.compile(r"expected `(?P<expected>[^`]*)`, got `(?P<got>\w+)`\Z")
_EMPTY: Final = re.compile(r"expected `(array|str)` of length >= 1\Z")
_WORDS: Final = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
    "object": "a mapping",
    "array": "a list",
}
_NOT_TEXT: Final = frozenset({"int", "float", "bool", "null"})


def read(content: bytes, kind: msgspec.json.Decoder[_T], *, name: str) -> _T:
    """The first document of `content`. `name` is the file's, for messages. Raises UsageError."""
    try:
        text = nodes.decoded(content)
        nodes.check_keys(text)
        root, more = nodes.first_document(text)
        if root is None:
            raise UsageError(f"{name}: the file is empty")
        if more:
            raise UsageError(f"{name}: more than one document; use a file for each")
        value = reader.read_value(content, file_bytes=MAX_BYTES)
    except Unreadable as error:
        raise UsageError(f"{name}: {error}") from None
    try:
        converted: _T = structs.convert(value, kind)
    except Misfit as error:
        raise UsageError(f"{name}: {_sentence(error, value, root, kind.type)}") from error
    except UnicodeEncodeError as error:
        raise UsageError(f"{name}: the name of a field is not valid text") from error
    return converted


class Lines:
    """The lines of the values of a file that `read` accepted."""

    def __init__(self, content: bytes) -> None:
        self._root, _ = nodes.first_document(content.decode())

    def at(self, path: str) -> int:
        """The line, from 1, of the field at a path such as `cases[0].expect`; if it is absent, that of the last part that exists."""
        if self._root is None:
            return 1
        key, node = _found(self._root, _steps(f".{path}"))
        return (node if key is None else key).start.line + 1


def _steps(path: str) -> list[str | int]:
    return [
        name or (int(index) if index.isdigit() else index) for name, index in _STEP.findall(path)
    ]


def _sentence(error: Misfit, value: Any, root: Node, kind: Any) -> str:
    steps = _steps(error.path)
    problem = error.problem
    got = _GOT.match(problem)
    if got is not None:
        problem = _expected(got["expected"], got["got"])
        steps = _named(steps, value, got["got"])
    elif _EMPTY.match(problem):
        problem = "must not be empty"
    steps = [step for step in steps if step != "..."]
    if error.field:
        if problem.startswith("unknown field"):
            problem = f"unknown field; {_known(error.field, inspect.type_info(kind), steps)}"
        steps.append(error.field)
    key, found = _found(root, steps)
    place = found if key is None else key
    shown = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in steps)
    return f"line {place.start.line + 1}: {shown.lstrip('.') or 'the document'}: {problem}"


def _known(name: str, kind: inspect.Type, steps: list[str | int]) -> str:
    """The field that the author of an unknown field may have meant, at the same level or at one below it."""
    here = _structs(kind)
    for step in steps:
        here = [found for each in here for found in _below(each, step)]
    fields = {
        one.encode_name: one
        for each in here
        if isinstance(each, inspect.StructType)
        for one in each.fields
    }
    meant = similar(name, list(fields))
    if meant is not None:
        return f"did you mean {meant}?"
    deeper = [
        outer
        for outer, one in fields.items()
        for each in _structs(one.type, items=True)
        if isinstance(each, inspect.StructType)
        and name in {inner.encode_name for inner in each.fields}
    ]
    if deeper:
        return f"it belongs in {' or '.join(dict.fromkeys(deeper))}"
    return f"the fields here are {', '.join(each for each in fields if not each.startswith('$'))}"


def _structs(kind: inspect.Type, *, items: bool = False) -> list[inspect.Type]:
    """The types that a value may have, without annotations; `items`: those of a list's items instead of the list."""
    if isinstance(kind, inspect.Metadata):
        return _structs(kind.type, items=items)
    if isinstance(kind, inspect.UnionType):
        return [found for each in kind.types for found in _structs(each, items=items)]
    if items and isinstance(kind, inspect.ListType):
        return _structs(kind.item_type)
    return [kind]


def _below(kind: inspect.Type, step: str | int) -> list[inspect.Type]:
    """The types of a field, of the items of a list, or of the values of a mapping."""
    if isinstance(kind, inspect.StructType):
        return [
            found for one in kind.fields if one.encode_name == step for found in _structs(one.type)
        ]
    if isinstance(kind, inspect.ListType):
        return _structs(kind.item_type)
    return _structs(kind.value_type) if isinstance(kind, inspect.DictType) else []


def _expected(expected: str, got: str) -> str:
    names = [_WORDS.get(each.strip(), each.strip()) for each in expected.split("|")]
    sentence = f"must be {' or '.join(dict.fromkeys(names))}, not {_WORDS.get(got, got)}"
    return f"{sentence}; put it in quotes" if "text" in names and got in _NOT_TEXT else sentence


def _named(steps: list[str | int], value: Any, got: str) -> list[str | int]:
    """`steps` with the last `...` replaced by the key, if one value of that mapping has the type that does not fit."""
    if not steps or steps[-1] != "...":
        return steps
    for step in steps[:-1]:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return steps
    kind = _KINDS.get(got)
    names = [name for name, each in value.items() if type(each) is kind] if kind else []
    return [*steps[:-1], names[0]] if names else steps


def _found(node: Node, steps: list[str | int]) -> tuple[Node | None, Node]:
    """The node at the path, as far as the path exists, and its key; the key of an item is None."""
    key: Node | None = None
    for step in steps:
        behind = node.target if isinstance(node, Alias) else node
        if isinstance(behind, Mapping):
            pair = next(
                (
                    (each, value)
                    for each, value in behind.pairs
                    if isinstance(each, Scalar) and each.value == str(step)
                ),
                None,
            )
            if pair is None:
                break
            key, node = pair
        elif isinstance(behind, Sequence) and isinstance(step, int) and step < len(behind.items):
            key, node = None, behind.items[step]
        else:
            break
    return key, node
