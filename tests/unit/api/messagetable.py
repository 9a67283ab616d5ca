"""Every field of an AutoWasm with every mistake, as the text of `messages.txt`: the value, and the message.

After a change of messages, write the file again, and read what has changed:

    .venv/bin/python -m tests.unit.api.messagetable > tests/unit/api/messages.txt
"""

import copy
import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from msgspec import inspect

from autowasm.api import validation
from autowasm.api.validation import AUTOWASM
from autowasm.errors import SpecError

MISSING: Any = object()
HEX = "0123456789abcdef" * 4
FULL: dict[str, Any] = {
    "apiVersion": "wasm.tcm.io/v1alpha1",
    "kind": "AutoWasm",
    "metadata": {
        "name": "test",
        "namespace": "default",
        "uid": "1-2",
        "generation": 1,
        "labels": {"team": "a"},
        "annotations": {"note": "b"},
    },
    "spec": {
        "filter": {
            "source": {"registry": {"image": "registry.example/team/filter:v1"}},
            "applyPorts": [9080],
            "rootID": "root",
            "vmID": "vm",
            "sha256": HEX,
            "pluginConfig": {"header": "hello"},
            "env": [{"name": "LEVEL", "value": "debug"}],
            "failStrategy": "FAIL_OPEN",
            "context": "SIDECAR_INBOUND",
            "position": "First",
            "allowOnHeadersStopIteration": True,
            "priority": 10,
            "pullPolicy": "Always",
            "refreshInterval": "5m",
        },
        "secret": "pull",
        "selector": {"matchLabels": {"app": "details"}},
        "rollout": {
            "steps": [1, "10%"],
            "pause": "30s",
            "deadline": "10m",
            "maxFailureRatio": 0.01,
            "onUnknown": "Wait",
        },
    },
}
_OBJECT = "spec.filter.source.object"
_FILTER = "spec.filter"
_NOT_WRITTEN = (
    "status",
    "metadata.uid",
    "metadata.generation",
    "metadata.namespace",
    "metadata.labels",
    "metadata.annotations",
)
"""The API server writes or checks them."""

VALUES: dict[str, list[Any]] = {
    "apiVersion": ["wasm.tcm.io/v1"],
    "kind": ["WasmPlugin"],
    f"{_FILTER}.source.registry.image": [
        "",
        "https://a.io/b:v1",
        "oci://a.io/b:v1",
        "a.io/Team/b:v1",
        "a.io/b:",
        "a.io/b@sha256:abc",
        "a b",
        "a.io:70000/b:v1",
    ],
    f"{_OBJECT}.url": [
        "",
        "a.io/b.wasm",
        "ftp://a.io/b.wasm",
        "file:///b.wasm",
        "https:///b.wasm",
        "https://u:p@a.io/b.wasm",
        "https://a.io/b c",
        "https://a.io/b#c",
        "https://a.io:99999/b",
    ],
    f"{_FILTER}.applyPorts": [[], list(range(1, 102))],
    f"{_FILTER}.applyPorts[]": [0, -1, 65536],
    f"{_FILTER}.rootID": ["x" * 257, "a\nb"],
    f"{_FILTER}.vmID": ["x" * 257, "a\x00b"],
    f"{_FILTER}.sha256": ["abc", HEX.upper(), f"sha256:{HEX}"],
    f"{_FILTER}.pluginConfig": [1, True, None, [1], "x" * 2**21],
    f"{_FILTER}.env": [[{"name": f"n{n}"} for n in range(257)]],
    f"{_FILTER}.env[].name": ["", "a=b", "n" * 257],
    f"{_FILTER}.env[].value": ["v" * 2049],
    f"{_FILTER}.failStrategy": ["OPEN", "fail_open", "FAIL-RELOAD"],
    f"{_FILTER}.context": ["ANY", "inbound", "SIDECAR_OUTBUND"],
    f"{_FILTER}.position": ["Last", "first", "BEFORE_ROUTER"],
    f"{_FILTER}.priority": [2**31, -(2**31) - 1],
    f"{_FILTER}.pullPolicy": ["Never", "always", "if-not-present"],
    f"{_FILTER}.refreshInterval": ["", "30", "daily", "29s", "0"],
    "spec.secret": ["", "ns/name", "Pull", "a" * 254],
    "spec.selector.matchLabels": [{f"l{n}": "x" for n in range(257)}],
    "spec.rollout.steps": [[], list(range(1, 22))],
    "spec.rollout.steps[]": [0, "0%", "101%", "ten", "10"],
    "spec.rollout.pause": ["", "30", "0s"],
    "spec.rollout.deadline": ["", "soon", "0s"],
    "spec.rollout.maxFailureRatio": [-0.1, 1.5],
    "spec.rollout.onUnknown": ["Ignore", "wait"],
    "spec.selector.matchLabels[*]": ["a b", "*", "x" * 64],
}
"""Values of the right type that are not allowed."""
FREE = frozenset(
    {
        "metadata",
        "metadata.name",
        "spec",
        _FILTER,
        f"{_FILTER}.source",
        f"{_FILTER}.source.registry",
        _OBJECT,
        f"{_FILTER}.env[]",
        f"{_FILTER}.allowOnHeadersStopIteration",
        "spec.selector",
        "spec.rollout",
    }
)
"""Fields that have fields, or any value of their type."""
_LABEL_KEYS = ("", "a b", "/a", "A_/a", "a/b/c")


class Row(NamedTuple):
    """One mistake."""

    field: str
    mistake: str
    written: Any
    document: Any


def fields() -> dict[str, inspect.Type]:
    """The fields that an author writes."""
    return {
        path: kind
        for path, kind in validation.FIELDS.items()
        if not any(
            path == each or path.startswith((f"{each}.", f"{each}[")) for each in _NOT_WRITTEN
        )
    }


def rows() -> Iterator[Row]:
    """All rows, in the order of the fields."""
    for path, kind in fields().items():
        for value in _of_other_types(kind):
            yield _with(path, "wrong type", value)
        if not path.endswith("]"):
            yield _without(path)
            for name in _misspelt(path.rpartition(".")[2]):
                yield _renamed(path, "misspelt", path.rpartition(".")[0], name)
            for parent in _other_levels(path):
                yield _renamed(path, "misplaced", parent, path.rpartition(".")[2])
        for value in VALUES.get(path, ()):
            yield _with(path, "out of range", value)
    for key in _LABEL_KEYS:
        yield _with("spec.selector.matchLabels", "out of range", {key: "x"})
    yield from _contradictory()
    yield from _of_other_tools()
    yield from _copied()
    yield from _several()


def _of_other_types(kind: inspect.Type) -> list[Any]:
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    for each in kinds:
        match each:
            case inspect.StrType():
                return [7, 1.5, True, ["a"], {"name": "a"}, {}, *([] if len(kinds) > 1 else [None])]
            case inspect.IntType():
                return ["9080", "http", 1.5, True, [1], {"a": 1}]
            case inspect.BoolType():
                return ["true", "yes", 1, None, [True]]
            case inspect.EnumType():
                return [3, True, None, ["a"]]
            case inspect.VarTupleType():
                return [9080, "a", {"a": 1}, *([] if len(kinds) > 1 else [None])]
            case inspect.DictType() | inspect.StructType():
                return ["a", 3, [{"a": "b"}], [], *([] if len(kinds) > 1 else [None])]
            case _:
                return []
    return []


def _misspelt(name: str) -> Iterator[str]:
    yield name[:-2] + name[-1]
    if name.lower() != name:
        yield name.lower()
        yield "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
    else:
        yield name.upper()


def _other_levels(path: str) -> list[str]:
    parent = path.rpartition(".")[0]
    if "[" in path or parent == "metadata" or path in {"apiVersion", "kind"}:
        return []
    levels = ["", "spec", _FILTER, f"{_FILTER}.source", "spec.selector", "metadata"]
    return [each for each in levels if each != parent and not each.startswith(path)][:4]


def _steps(path: str) -> list[str | int]:
    plain = path.replace("[]", ".0").replace("[*]", ".app")
    return [int(step) if step.isdigit() else step for step in plain.split(".") if step]


def _base(path: str) -> dict[str, Any]:
    document = copy.deepcopy(FULL)
    if path.startswith(_OBJECT):
        document["spec"]["filter"]["source"] = {"object": {"url": "https://a.io/b.wasm"}}
    return document


def _at(document: Any, steps: list[str | int]) -> Any:
    for step in steps:
        document = document[step]
    return document


def _with(path: str, mistake: str, value: Any) -> Row:
    document = _base(path)
    *above, last = _steps(path)
    _at(document, above)[last] = value
    return Row(path, mistake, {last: value} if isinstance(last, str) else [value], document)


def _without(path: str) -> Row:
    document = _base(path)
    *above, last = _steps(path)
    del _at(document, above)[last]
    return Row(path, "missing", f"no {last}", document)


def _renamed(path: str, mistake: str, parent: str, name: str) -> Row:
    document = _base(path)
    *above, last = _steps(path)
    value = _at(document, above).pop(last)
    to = _at(document, _steps(parent))
    to[name] = value
    return Row(path, mistake, {parent: {name: value}} if parent else {name: value}, document)


def _filter(**fields: Any) -> dict[str, Any]:
    document = _base("")
    document["spec"]["filter"].update(fields)
    return document


def _contradictory() -> Iterator[Row]:
    for path, written in (
        (f"{_FILTER}.source", {"source": {"registry": {"image": "a.io/b:v1"}, "object": {"url": "https://a.io/b.wasm"}}}),
        (f"{_FILTER}.source", {"source": {}}),
        (f"{_FILTER}.source", {"source": {"registry": None, "object": None}}),
        (f"{_FILTER}.applyPorts", {"applyPorts": [80, 81, 80]}),
        (f"{_FILTER}.env", {"env": [{"name": "A"}, {"name": "A"}]}),
        (f"{_FILTER}.env", {"env": [{"name": f"n{n}"} for n in range(250)], "applyPorts": list(range(1, 101))}),
        (f"{_FILTER}.pluginConfig", {"pluginConfig": "x" * 20_000, "applyPorts": list(range(1, 101))}),
    ):  # fmt: skip
        yield Row(path, "contradictory", written, _filter(**written))


def _of_other_tools() -> Iterator[Row]:
    for path in (*AUTOWASM.meant, *AUTOWASM.unsupported):
        place = path if "." in path else f"spec.selector.{path}"
        *above, last = _steps(place)
        document = _base(place)
        name = "app" if last == "*" else last
        parent = _at(document, above)
        parent[name] = "a"
        yield Row(place, "of other tools", {name: "a"}, document)


def _copied() -> Iterator[Row]:
    """Values as other tools, templates and formatted texts have them."""
    for path, value in (
        ("spec", [{"filter": {}}, {"selector": {}}]),
        (f"{_FILTER}.source.registry", None),
        (f"{_FILTER}.source.registry.image", "{{ .Values.image }}"),
        (f"{_FILTER}.source.registry.image", "a.io/b:${TAG}"),
        (f"{_FILTER}.source.registry.image", "\u201ca.io/b:v1\u201d"),
        (f"{_FILTER}.source.registry.image", "https://me:word@a.io/b.wasm?signature=word"),
        (f"{_FILTER}.source.registry.image", "a.io/b.wasm?signature=word"),
        (f"{_FILTER}.source.registry.image", "me:word@a.io/b:v1"),
        (f"{_OBJECT}.url", "oci://a.io/b:v1"),
        (f"{_OBJECT}.url", "./b.wasm"),
        (f"{_FILTER}.applyPorts", "9080,9081"),
        (f"{_FILTER}.applyPorts", "{{ .Values.ports }}"),
        (f"{_FILTER}.applyPorts[]", "9080-9090"),
        (f"{_FILTER}.applyPorts[]", {"number": 9080}),
        (f"{_FILTER}.applyPorts[]", {"number": 9080, "protocol": "TCP"}),
        (f"{_FILTER}.sha256", "sha256:ABC"),
        (f"{_FILTER}.env", {"TOKEN": "word"}),
        (f"{_FILTER}.env", "TOKEN=word"),
        (f"{_FILTER}.env[]", "TOKEN=word"),
        (f"{_FILTER}.env[].name", "TOKEN=word"),
        (f"{_FILTER}.failStrategy", "FAIL_OPEN\u00a0"),
        (f"{_FILTER}.priority", 1e23),
        (f"{_FILTER}.refreshInterval", "1min"),
        ("spec.selector", "app=details,version=v1"),
        ("spec.selector.matchLabels", "app=details"),
        ("spec.selector.matchLabels", [{"app": "details"}, {"version": "v1"}]),
        ("spec.secret", "word_1"),
        ("spec.secret", "-pull"),
        ("spec.rollout", {"steps": ["50 %", 0.5, "150%"], "pause": "5 minutes", "deadline": 600}),
        ("spec.rollout", {"maxFailureRatio": "1%", "onUnknown": "ignore"}),
        ("spec.rollout.steps", ["50%", "10%", "100%", 1]),
        ("spec.rollout.steps", [{"setWeight": 20}, {"pause": {"duration": "10m"}}]),
    ):
        yield _with(path, "copied", value)
    for url in ("oci://a.io/b:v1", "a.io/b:v1", "https://a.io/b.wasm", "./b.wasm"):
        document = copy.deepcopy(FULL)
        del document["spec"]["filter"]["source"]
        document["spec"]["url"] = url
        yield Row("spec.url", "copied", {"url": url}, document)
    document = copy.deepcopy(FULL)
    document["spec"]["filter"]["source"] = written = {"registry": None, "image": "a.io/b:v1"}
    yield Row(f"{_FILTER}.source", "copied", written, document)


def _several() -> Iterator[Row]:
    """Files with more than one mistake."""
    one = _filter(applyPorts=["9080", 70000], failStrategy="OPEN", rootId="x")
    one["spec"]["selector"] = {"app": "details"}
    del one["spec"]["filter"]["rootID"]
    yield Row("several", "at once", None, one)
    two = copy.deepcopy(FULL)
    two["spec"] = {"image": "https://a.io/b:v1", "matchLabels": {"app": 1}, "applyPorts": "9080"}
    yield Row("several", "at once", two["spec"], two)
    three = _filter(env=[{"name": f"n{n}", "value": n} for n in range(30)])
    yield Row("several", "at once", None, three)
    yield Row("several", "at once", {"spec": {}}, {**FULL, "spec": {}})
    yield Row("several", "at once", {}, {})
    four = copy.deepcopy(FULL)
    four["Spec"] = four.pop("spec")
    yield Row("several", "at once", "Spec in the place of spec", four)


def messages(document: Any) -> list[str]:
    """The messages of a document, empty if it is valid."""
    try:
        validation.parse(document)
    except SpecError as error:
        return [str(part) for part in error.parts]
    return []


def text() -> str:
    """The whole table."""
    lines = ["# Written by messagetable.py; see there. `(valid)`: the document is accepted.\n"]
    field = ""
    for row in rows():
        if row.field != field:
            lines.append(f"\n== {row.field}\n")
            field = row.field
        lines.append(f"{row.mistake}: {_shown(row.written)}".rstrip(": ") + "\n")
        lines += [f"    {each}\n" for each in messages(row.document) or ["(valid)"]]
    return "".join(lines)


def _shown(written: Any) -> str:
    if written is None:
        return ""
    if isinstance(written, str):
        return written
    line = json.dumps(written, ensure_ascii=True)
    return line if len(line) <= 100 else f"{line[:99]}…"


def as_yaml(document: Any) -> str:
    """The document as a file."""
    return yaml.safe_dump(document)


if __name__ == "__main__":
    sys.stdout.write(text())
