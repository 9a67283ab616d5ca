"""Template: the text of a listener template, read as Envoy reads it, and edited only by insertion.

`listeners.py` finds the places for filters. Envoy reads YAML with yaml-cpp and types scalars itself, so values are never
constructed here: a `Tree` holds what was written. Invariant: to any YAML reader, the text that `insert` returns is the template
plus the inserted values. This is verified; if insertion cannot do it (an anchor whose aliases need different filters), the text
is written from the tree.
"""

import bisect
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from autowasm.manifests import nodes, writer

_IGNORED: Final = "!ignore"
"""Envoy skips keys with this tag: places for anchors (`MessageUtil::loadFromYaml`)."""
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_INTEGER: Final = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\Z")
_SURROGATES: Final = re.compile(r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_COMMENT: Final = re.compile(r"( *)#")
_MAX_NODES: Final = 500_000
"""Of a template: several hundred listeners of the usual size."""
_PLACEHOLDER: Final = {"name": "placeholder"}


@dataclass(slots=True, eq=False)
class Tree:
    """A node with its aliases expanded. Exactly one of `scalar`, `items`, `pairs` is set."""

    source: nodes.Node | None
    """Its place in the text; None: it was inserted."""
    tag: str | None = None
    scalar: str | None = None
    plain: bool = False
    items: "list[Tree] | None" = None
    pairs: "list[tuple[Tree, Tree]] | None" = None

    def get(self, name: str) -> "Tree | None":
        """A field of a mapping by its proto name or its JSON name: Envoy reads both. None if it is absent or null."""
        first, *rest = name.split("_")
        names = {name, first + "".join(part.title() for part in rest)}
        for key, value in reversed(self.pairs or []):
            if key.scalar in names and key.tag != _IGNORED:
                return None if value.is_null else value
        return None

    def has(self, name: str) -> bool:
        """Whether there is a field with exactly this name, null or not."""
        return any(key.scalar == name and key.tag != _IGNORED for key, _ in self.pairs or [])

    @property
    def is_null(self) -> bool:
        """Whether Envoy reads it as null."""
        return self.plain and self.scalar in _NULL

    @property
    def integer(self) -> int | None:
        """The integer that Envoy reads, including `0x1F` and `017`; protobuf's JSON accepts numbers in quotes."""
        if self.scalar is None:
            return None
        if not self.plain:
            return int(self.scalar) if re.fullmatch("[0-9]{1,10}", self.scalar) else None
        if not _INTEGER.match(self.scalar):
            return None
        digits = self.scalar.lstrip("+-")
        octal = digits.startswith("0") and digits[1:2] not in {"x", "X"}
        value = int(digits, 8 if octal else 0)
        return -value if self.scalar.startswith("-") else value

    def same(self, other: "Tree") -> bool:
        """Whether every reader reads both as the same."""
        if self.pairs is not None and other.pairs is not None:
            return len(self.pairs) == len(other.pairs) and all(
                one[0].same(two[0]) and one[1].same(two[1])
                for one, two in zip(self.pairs, other.pairs, strict=True)
            )
        if self.items is not None and other.items is not None:
            return len(self.items) == len(other.items) and all(
                one.same(two) for one, two in zip(self.items, other.items, strict=True)
            )
        return (self.tag, self.scalar, self.plain) == (other.tag, other.scalar, other.plain)


@dataclass(frozen=True, slots=True)
class Place:
    """Before item `index` of a sequence."""

    sequence: Tree
    index: int


@dataclass(slots=True)
class Template:
    """`text` is one document. `places` finds the places for insertions, always in the same order, and ascending within a sequence."""

    text: str
    places: Callable[[Tree], Sequence[Place]]
    _root: nodes.Node = field(init=False)
    _entries: list[int] = field(init=False)
    _verified: dict[frozenset[tuple[int, int]], bool] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Raises Unreadable."""
        root, _ = nodes.first_document(self.text)
        if root is None:
            raise nodes.Unreadable("the file is empty")
        self._root = root
        self._entries = nodes.dashes(self.text, root)

    def tree(self) -> Tree:
        """A new tree for each caller. Raises Unreadable."""
        return expand(self._root)

    def insert(self, wanted: Sequence[Sequence[Any]]) -> str:
        """The text with `wanted[n]` inserted at place n."""
        places = self.places(self.tree())
        at: dict[tuple[int, int], tuple[nodes.Sequence, int, Sequence[Any]]] = {}
        shared = True
        for place, values in zip(places, wanted, strict=True):
            source = place.sequence.source
            if not isinstance(
                source, nodes.Sequence
            ):  # pragma: no cover  # all places belong to the template
                raise TypeError("a place that is not in the text")
            before = at.setdefault((id(source), place.index), (source, place.index, values))
            shared = shared and before[2] == values
        if shared and self._can_be_inserted(at, wanted):
            return self._spliced(at.values())
        tree = self.tree()
        _put(self.places(tree), wanted)
        return _written(tree)

    def _can_be_inserted(
        self,
        at: dict[tuple[int, int], tuple[nodes.Sequence, int, Sequence[Any]]],
        wanted: Sequence[Sequence[Any]],
    ) -> bool:
        """Whether insertion works. It does not depend on the inserted values, so it is verified once for each set of places."""
        used = frozenset(key for key, (_, _, values) in at.items() if values)
        if used not in self._verified:
            marks = [[_PLACEHOLDER] if values else [] for values in wanted]
            text = self._spliced(
                (node, index, [_PLACEHOLDER] if values else [])
                for node, index, values in at.values()
            )
            tree = self.tree()
            _put(self.places(tree), marks)
            self._verified[used] = _means(text, tree)
        return self._verified[used]

    def _spliced(self, at: Iterable[tuple[nodes.Sequence, int, Sequence[Any]]]) -> str:
        edits = [self._edit(node, index, values) for node, index, values in at if values]
        parts, end = [], 0
        for index, inserted in sorted(edits):
            parts += [self.text[end:index], inserted]
            end = index
        return "".join([*parts, self.text[end:]])

    def _edit(self, node: nodes.Sequence, index: int, values: Sequence[Any]) -> tuple[int, str]:
        start = node.items[index].start.index
        if node.flow:
            return start, "".join(f"{writer.dump_line(value)}, " for value in values)
        dash = self._entries[bisect.bisect_left(self._entries, start) - 1]
        line = self.text.rfind("\n", 0, dash) + 1
        end = "\r\n" if "\r\n" in self.text else "\n"
        indent = " " * (dash - line)
        lines = writer.dump_items(values).rstrip("\n").split("\n")
        if self.text[line:dash].strip(" "):  # `? - a`: other text precedes the dash
            return dash, "".join(
                f"{each if number == 0 else indent + each}{end}"
                for number, each in enumerate(lines)
            ) + indent
        return self._above_comments(line, len(indent)), "".join(
            f"{indent}{each}{end}" for each in lines
        )

    def _above_comments(self, line: int, indent: int) -> int:
        """The start of the comments right above an item, at its indentation, which belong to it."""
        while line > 0:
            above = self.text.rfind("\n", 0, line - 1) + 1
            found = _COMMENT.match(self.text, above, line)
            if not found or len(found[1]) != indent:
                break
            line = above
        return line


def as_yaml(text: str) -> str:
    """The text of a template as YAML that Envoy reads. JSON stays as it is, except where it is not valid YAML.

    yaml-cpp rejects surrogate pairs of escapes, and a tab before a value.
    """
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return _SURROGATES.sub(
        lambda found: found[0] if found[0] == r"\\" else json.loads(f'"{found[0]}"'),
        text.replace("\t", " "),
    )


def expand(node: nodes.Node) -> Tree:
    """The tree of a node. Raises Unreadable if it is nested too deeply, or too large with its aliases expanded."""
    return _Expansion().tree(node, 0)


class _Expansion:
    def __init__(self) -> None:
        self._left = _MAX_NODES

    def tree(self, node: nodes.Node, depth: int) -> Tree:
        self._left -= 1
        if self._left < 0:
            raise nodes.Unreadable(f"more than {_MAX_NODES} values with aliases expanded")
        if depth > nodes.MAX_NESTING:
            raise nodes.Unreadable(f"{nodes.at(node.start)}{nodes.TOO_DEEP}")
        if isinstance(node, nodes.Alias):
            return self.tree(node.target, depth + 1)
        if isinstance(node, nodes.Scalar):
            return Tree(node, node.tag, scalar=node.value, plain=node.plain)
        if isinstance(node, nodes.Sequence):
            return Tree(node, node.tag, items=[self.tree(item, depth + 1) for item in node.items])
        pairs = [
            (self.tree(key, depth + 1), self.tree(value, depth + 1)) for key, value in node.pairs
        ]
        return Tree(node, node.tag, pairs=pairs)


def tree_of(value: Any) -> Tree:
    """The tree of data, as `manifests.writer` writes it."""
    root, _ = nodes.first_document(writer.dump_line(value))
    if root is None:  # pragma: no cover  # dumped data is never empty
        raise TypeError("no data")
    tree = expand(root)
    tree.source = None
    return tree


def _put(places: Sequence[Place], wanted: Sequence[Sequence[Any]]) -> None:
    # The last one first, because an insertion moves the text after it.
    for place, values in reversed(list(zip(places, wanted, strict=True))):
        if place.sequence.items is not None:
            place.sequence.items[place.index : place.index] = map(tree_of, values)


def _means(text: str, tree: Tree) -> bool:
    """Whether a reader of `text` gets `tree`."""
    try:
        root, _ = nodes.first_document(text)
        return root is not None and expand(root).same(tree)
    except nodes.Unreadable:
        return False


def edited(text: str, edits: Iterable[tuple[int, str]], tree: Tree) -> str:
    """`text` with each string inserted at its index; written from `tree` if the result does not mean `tree`."""
    parts, end = [], 0
    for index, inserted in sorted(edits, key=lambda edit: edit[0]):
        parts += [text[end:index], inserted]
        end = index
    result = "".join([*parts, text[end:]])
    return result if _means(result, tree) else _written(tree)


def _written(tree: Tree) -> str:
    """A text of the tree, without comments and anchors. Plain scalars stay plain, because Envoy types them."""
    events = [yaml.StreamStartEvent(), yaml.DocumentStartEvent(explicit=False)]
    _events(tree, events)
    events += [yaml.DocumentEndEvent(explicit=False), yaml.StreamEndEvent()]
    text: str = yaml.emit(events, Dumper=yaml.CSafeDumper, width=2**30, allow_unicode=True)
    return text


def _events(tree: Tree, events: list[Any]) -> None:
    if tree.items is not None:
        events.append(yaml.SequenceStartEvent(None, tree.tag, tree.tag is None, flow_style=False))
        for item in tree.items:
            _events(item, events)
        events.append(yaml.SequenceEndEvent())
    elif tree.pairs is not None:
        events.append(yaml.MappingStartEvent(None, tree.tag, tree.tag is None, flow_style=False))
        for key, value in tree.pairs:
            _events(key, events)
            _events(value, events)
        events.append(yaml.MappingEndEvent())
    else:
        quoted = not tree.plain
        implicit = (tree.plain, quoted and tree.tag is None)
        events.append(
            yaml.ScalarEvent(
                None, tree.tag, implicit, tree.scalar or "", style='"' if quoted else None
            )
        )
