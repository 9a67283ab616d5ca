"""A file of manifests as kubectl reads it: the objects that `kubectl apply -f` would send.

Sources: YAMLOrJSONDecoder of k8s.io/apimachinery and the visitors of k8s.io/cli-runtime/pkg/resource;
`tests/property/test_kubectl_yaml.py` compares this module with their code. Invariants: the result is objects or `Unreadable`
for any text; an object is valid JSON, at most `MAX_NESTING` deep, so it can be compared, copied and written; the size with
expanded aliases is bounded like the text; no message quotes a value, because it may be a password.
Not the AutoWasms and Secrets in a file (see `standalone/documents.py`).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from autowasm.manifests import resolve
from autowasm.manifests.nodes import (
    MAX_NESTING,
    NO_KEY,
    TEMPLATE,
    TOO_DEEP,
    Alias,
    Mapping,
    Node,
    Place,
    Scalar,
    Sequence,
    Unreadable,
    at,
    decoded,
    first_document,
)

_SHOWN: Final = 100
"""Characters of a key or path in a message."""
_LONE: Final = re.compile("[\ud800-\udfff]")
_LINE_END: Final = re.compile(r"\r?\n")
_LATE_MARK: Final = re.compile("[\n\r\x85\u2028\u2029]\ufeff")
_MAX_DOCUMENTS: Final = 1_000
"""Documents in one file."""
_NODE_BYTES: Final = 2
"""Minimum bytes of a value in JSON besides its text: a comma, quotes, brackets."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """`value` has a `kind`; `where` is its place, as the start of a message."""

    value: dict[str, Any]
    where: str


@dataclass(slots=True)
class Manifests:
    """`remarks` are warnings about likely mistakes that kubectl silently accepts."""

    objects: list[Manifest] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def read(content: bytes, *, object_bytes: int, file_bytes: int) -> Manifests:
    """All objects, including the items of every List. Raises Unreadable.

    Bounds: `file_bytes` for the file, and for each document as JSON with expanded aliases; `object_bytes` for an object.
    """
    if len(content) > file_bytes:
        raise Unreadable(f"larger than {file_bytes} bytes")
    text = decoded(content)
    found = Manifests()
    for number, (line, document) in enumerate(_documents(text, file_bytes, found.remarks), 1):
        if number > _MAX_DOCUMENTS:
            raise Unreadable(f"more than {_MAX_DOCUMENTS} documents")
        if document is None:
            continue
        where = f"document {number} (line {line})"
        for each in _objects(document, where):
            _check_size(each.value, object_bytes, each.where)
            found.objects.append(each)
    return found


def read_value(content: bytes, *, file_bytes: int) -> Any:
    """The first document, of any type, for files that istiod reads with the same library. Raises Unreadable."""
    if len(content) > file_bytes:
        raise Unreadable(f"larger than {file_bytes} bytes")
    text = content.decode("utf-8", "replace")
    return next((value for _, value in _documents(text, file_bytes, [])), None)


def shown(value: object) -> str:
    """`value` for a message, cut to `_SHOWN` characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _objects(document: Any, where: str) -> Iterator[Manifest]:
    """As UnstructuredJSONScheme and FlattenListVisitor: every object with `items` is a List. Raises Unreadable."""
    if not isinstance(document, dict):
        raise Unreadable(f"{where} is not an object")
    kind = document.get("kind")
    if not isinstance(kind, str) or not kind:
        raise Unreadable(f"{where}: kind is missing; a manifest has apiVersion and kind")
    if "items" not in document:
        yield Manifest(document, where)
        return
    items = document["items"] if document["items"] is not None else []
    if not isinstance(items, list):
        raise Unreadable(f"{where}: items is not a list")
    for number, item in enumerate(items):
        place = f"{where}, items[{number}]"
        if not isinstance(item, dict):
            raise Unreadable(f"{place} is not an object")
        if not item.get("kind") and not item.get("apiVersion"):
            # The API returns lists of one kind; their items do not repeat it.
            version = document.get("apiVersion")
            item = {**item, "kind": kind.removesuffix("List"), "apiVersion": version}  # noqa: PLW2901
        if not isinstance(item.get("kind"), str) or not item["kind"]:
            raise Unreadable(f"{place}: kind is missing")
        if isinstance(item.get("items"), list):
            raise Unreadable(f"{place} is a List within a List; kubectl ignores its items")
        yield Manifest(item, place)


def _documents(text: str, most: int, remarks: list[str]) -> Iterator[tuple[int, Any]]:
    """The first line and the value of each document. JSON until an error, then YAML, as YAMLOrJSONDecoder."""
    index, count = 0, 0
    if text.lstrip().startswith("{"):
        decoder = _JsonDecoder(text, most, remarks)
        while True:
            start = decoder.skip_space(index)
            if start == len(text):
                return
            try:
                value, index = decoder.decode(start)
            except ValueError as error:
                if isinstance(error, Unreadable):
                    raise
                if count > 1:
                    raise Unreadable(f"{_at_index(text, start)}not valid JSON") from None
                break
            count += 1
            yield _line(text, start), value
        # The blank rest of JSON's last line belongs to the JSON.
        while index < len(text) and text[index].isspace():
            index += 1
            if text[index - 1] == "\n":
                break
    yield from _yaml_documents(text[index:], _line(text, index), most, remarks)


def _yaml_documents(
    text: str, first_line: int, most: int, remarks: list[str]
) -> Iterator[tuple[int, Any]]:
    for line, chunk in _chunks(text, first_line):
        if mark := _LATE_MARK.search(chunk):
            # libyaml skips it; in go-yaml it is the first character of a key.
            raise Unreadable(
                f"line {line + _line(chunk, mark.end()) - 1}: a byte order mark is allowed only at the beginning of a document"
            )
        node, more = first_document(chunk, first_line=line)
        if more:
            remarks.append(
                f"document at line {line}: text after its end is ignored; separate documents with ---"
            )
        value = None if node is None else _Constructor(most, line, remarks).value(node, 0)
        yield line if node is None else node.start.line + line, value


def _chunks(text: str, first_line: int) -> Iterator[tuple[int, str]]:
    """The text of each document. As YAMLReader, split at each line that begins with `---`, also inside a scalar."""
    lines: list[str] = []
    start = first_line
    pieces = _LINE_END.split(text)
    if pieces[-1] == "":
        pieces.pop()  # after the final line end
    for number, line in enumerate(pieces, first_line):
        if line.startswith("---"):
            rest = line[3:].strip()
            if rest and not rest.startswith("#"):
                raise Unreadable(
                    f"line {number}: only a comment may follow --- on its line, as in kubectl"
                )
            if lines:
                yield start, "\n".join([*lines, ""])
                lines, start = [], number + 1
                continue
        lines.append(line)
    if lines:
        yield start, "\n".join([*lines, ""])


class _Constructor:
    """Nodes of one document to values, with expanded aliases and merge keys."""

    def __init__(self, most: int, first_line: int, remarks: list[str]) -> None:
        self._most = self._left = most
        self._first_line = first_line
        self._remarks = remarks
        self._inside: set[int] = set()

    def value(self, node: Node, depth: int) -> Any:
        """The value of a node. Raises Unreadable."""
        self._spend(0, node.start)
        if depth > MAX_NESTING:
            raise self._wrong(node.start, TOO_DEEP)
        if isinstance(node, Alias):
            with_alias = self._enter(node)
            result = self.value(with_alias, depth)
            self._inside.discard(id(with_alias))
            return result
        if isinstance(node, Scalar):
            self._spend(len(node.value), node.start)
            try:
                return resolve.resolve(node.tag, node.value, plain=node.plain)
            except resolve.Unfit as error:
                raise self._wrong(node.start, f"the value {error}") from None
        if isinstance(node, Sequence):
            return [self.value(item, depth + 1) for item in node.items]
        result = {}
        self._fill(result, {}, node, depth)
        return result

    def _fill(
        self, result: dict[str, Any], kinds: dict[str, type], node: Mapping, depth: int
    ) -> None:
        """Keys in their order. As in go-yaml 2, unlike YAML 1.1, a merge key replaces keys before it."""
        own: set[str] = set()
        for key_node, value_node in node.pairs:
            if _is_merge(key_node):
                self._merge(result, kinds, value_node, depth)
                continue
            key, kind = self._key(key_node)
            if kinds.setdefault(key, kind) is not kind:
                # "1" and 1 are two keys in Go, and JSON can have one of them: the result varies from run to run.
                raise self._wrong(
                    key_node.start, f"duplicate key {shown(key)}, with and without quotes"
                )
            if key in own:
                is_next_object = depth == 0 and key in {"apiVersion", "kind"}
                self._remarks.append(
                    f"{at(key_node.start, self._first_line)}duplicate key {shown(key)}; the last value is used"
                    + ("; separate objects with a line ---" if is_next_object else "")
                )
            own.add(key)
            result[key] = self.value(value_node, depth + 1)

    def _merge(
        self, result: dict[str, Any], kinds: dict[str, type], node: Node, depth: int
    ) -> None:
        self._spend(0, node.start)
        if isinstance(node, Sequence):
            for item in reversed(node.items):  # the first one overrides the others
                if isinstance(_behind(item), Sequence):
                    raise self._wrong(item.start, "<< needs a mapping, or a list of mappings")
                self._merge(result, kinds, item, depth)
            return
        target = self._enter(node) if isinstance(node, Alias) else node
        if not isinstance(target, Mapping):
            raise self._wrong(node.start, "<< needs a mapping, or a list of mappings")
        if depth > MAX_NESTING:
            raise self._wrong(node.start, TOO_DEEP)
        self._fill(result, kinds, target, depth + 1)
        if isinstance(node, Alias):
            self._inside.discard(id(target))

    def _key(self, node: Node) -> tuple[str, type]:
        target = _behind(node)
        if not isinstance(target, Scalar):
            is_flow = isinstance(target, Mapping | Sequence) and target.flow
            problem = NO_KEY + (TEMPLATE if is_flow else "")
            raise self._wrong(node.start, problem)
        self._spend(len(target.value), node.start)
        try:
            return resolve.resolve_key(target.tag, target.value, plain=target.plain)
        except resolve.Unfit as error:
            raise self._wrong(node.start, f"key: {error}") from None

    def _enter(self, alias: Alias) -> Node:
        target = alias.target
        if id(target) in self._inside:
            raise self._wrong(alias.start, "the alias is inside the value of its anchor")
        self._inside.add(id(target))
        return target

    def _spend(self, count: int, place: Place) -> None:
        self._left -= count + _NODE_BYTES
        if self._left < 0:
            raise self._wrong(
                place,
                f"the document is larger than {self._most} bytes with its aliases expanded",
            )

    def _wrong(self, place: Place, problem: str) -> Unreadable:
        return Unreadable(f"{at(place, self._first_line)}{problem}")


def _is_merge(node: Node) -> bool:
    return (
        isinstance(node, Scalar)
        and node.value == "<<"
        and (node.plain or node.tag == resolve.MERGE)
    )


def _behind(node: Node) -> Node:
    """The node behind an alias. An alias never refers to an alias."""
    return node.target if isinstance(node, Alias) else node


class _JsonDecoder:
    """Values of a JSON stream, by the rules of encoding/json."""

    def __init__(self, text: str, most: int, remarks: list[str]) -> None:
        self._text = text
        self._remarks = remarks
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_int=_number,
            parse_float=_number,
            parse_constant=_not_json,
        )

    def skip_space(self, index: int) -> int:
        """The index of the next value."""
        while index < len(self._text) and self._text[index] in " \t\r\n":
            index += 1
        return index

    def decode(self, index: int) -> tuple[Any, int]:
        """The value and the index of its end. Raises Unreadable; ValueError if the text is not JSON."""
        try:
            value, end = self._decoder.raw_decode(self._text, index)
        except RecursionError:
            raise Unreadable(TOO_DEEP) from None
        return _whole_text(value, 0), end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                self._remarks.append(f"duplicate key {shown(key)}; the last value is used")
            result[key] = value
        return result


def _number(text: str) -> resolve.Scalar:
    try:
        number = int(text) if text.lstrip("-").isdecimal() and len(text) <= 20 else float(text)
        return resolve.as_json(number)
    except resolve.Unfit:
        raise Unreadable("a number is out of range") from None


def _not_json(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _whole_text(value: Any, depth: int) -> Any:
    """Replace half of a surrogate pair with U+FFFD, as Go does. Raises Unreadable if the nesting is too deep."""
    if depth > MAX_NESTING:
        raise Unreadable(TOO_DEEP)
    if isinstance(value, str):
        return value if value.isascii() else _LONE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_whole_text(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {
            _whole_text(key, depth): _whole_text(item, depth + 1) for key, item in value.items()
        }
    return value


def _check_size(value: Any, most: int, where: str) -> None:
    if len(json.dumps(value, ensure_ascii=False).encode()) > most:
        raise Unreadable(f"{where} is larger than {most} bytes")


def _line(text: str, index: int) -> int:
    return text.count("\n", 0, index) + 1


def _at_index(text: str, index: int) -> str:
    column = index - (text.rfind("\n", 0, index) + 1) + 1
    return f"line {_line(text, index)}, column {column}: "
