"""YAML text to nodes with their positions, from the events of libyaml, of which go-yaml 2 is a translation.

Not what a node means (`reader.py` reads as kubectl does, `standalone/template.py` as Envoy). PyYAML's own scanner refuses tabs
that libyaml takes, and its constructors read other types than Go does, so only libyaml's parser is used. Invariants: the
outcome is nodes or `Unreadable`; a sentence never quotes the text; nesting is bounded before anything recurses.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

try:
    from yaml import CSafeLoader
except ImportError as error:  # pragma: no cover  # PyYAML built from source without libyaml
    raise ImportError(
        "PyYAML was built without libyaml; install a wheel of it: pip install --only-binary :all: PyYAML"
    ) from error

MAX_NESTING: Final = 100
"""Levels. Copying and writing recurse, and Python allows about 300 levels of that; EnvoyFilters have about 15."""
_TAG_AT_END: Final = re.compile(r"![^\s\[\]{},]*\Z")
TOO_DEEP: Final = f"it is nested deeper than {MAX_NESTING} levels"


class Unreadable(ValueError):
    """The text is not what it should be; a sentence without values of it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node stands: lines and columns from 0, `index` in characters from the start, not counting a byte order mark."""

    line: int
    column: int
    index: int


@dataclass(slots=True, eq=False)
class Scalar:
    """`plain`: go-yaml's `implicit`, written without quotes and without a tag, or with the tag `!`."""

    start: Place
    end: Place
    tag: str | None
    value: str
    plain: bool
    event: Any = field(repr=False)


@dataclass(slots=True, eq=False)
class Sequence:
    """`flow`: written in brackets."""

    start: Place
    end: Place
    tag: str | None
    flow: bool
    event: Any = field(repr=False)
    items: list["Node"] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Mapping:
    """Keys may be any node, and the same key may be there twice."""

    start: Place
    end: Place
    tag: str | None
    flow: bool
    event: Any = field(repr=False)
    pairs: list[tuple["Node", "Node"]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Alias:
    """`target` is the anchor's node, which may be one that holds the alias."""

    start: Place
    end: Place
    target: "Node"


Node = Scalar | Sequence | Mapping | Alias


def first_document(text: str, *, first_line: int = 1) -> tuple[Node | None, bool]:
    """The first document, None if there is none, and whether text follows it. Raises Unreadable.

    `first_line` is what the line of `text` is called in sentences. What follows is not parsed.
    """
    with _events(text, first_line) as events:
        next(events)  # of the stream
        if isinstance(next(events), yaml.StreamEndEvent):
            return None, False
        node = _compose(events, first_line)
        next(events)  # the end of the document
        try:
            more = not isinstance(next(events), yaml.StreamEndEvent)
        except Unreadable:
            more = True
        return node, more


def dashes(text: str, root: Node) -> list[int]:
    """Where the items of sequences in block style begin, as indices of their dashes in order; `root` is the first document."""
    found = []
    with contextlib.suppress(yaml.YAMLError):  # in what follows the document
        for token in yaml.scan(text, Loader=CSafeLoader):
            if token.start_mark.index >= root.end.index:
                break
            if isinstance(token, yaml.BlockEntryToken):
                found.append(token.start_mark.index)
    return found


def check_keys(text: str) -> None:
    """Raises Unreadable for a key that is twice in one mapping, for files of which YAML readers take the last one silently."""
    root, _ = first_document(text)
    left = [root] if root is not None else []
    while left:
        node = left.pop()
        if isinstance(node, Sequence):
            left += node.items
        elif isinstance(node, Mapping):
            seen: set[str] = set()
            for key, value in node.pairs:
                left.append(value)
                if isinstance(key, Scalar) and key.value in seen:
                    raise Unreadable(f"{at(key.start)}this key is there twice; remove one")
                if isinstance(key, Scalar):
                    seen.add(key.value)


@contextlib.contextmanager
def _events(text: str, first_line: int) -> Iterator[Iterator[Any]]:
    events: Any = yaml.parse(text.encode("utf-8", "surrogatepass"), Loader=CSafeLoader)
    try:
        yield _readable(events, text, first_line)
    finally:
        events.close()


def _readable(events: Any, text: str, first_line: int) -> Iterator[Any]:
    text = text.removeprefix("\ufeff")
    try:
        for event in events:
            _check_tag(event, text, first_line)
            yield event
    except yaml.YAMLError as error:
        # The original would bring the text along, into a log that shows causes.
        raise Unreadable(_sentence(error, text, first_line)) from None


def _check_tag(event: Any, text: str, first_line: int) -> None:
    """To go-yaml a comma directly behind a tag belongs to the tag: `[!a, b]` has one item there, and two here."""
    if isinstance(event, yaml.ScalarEvent) and not event.value:
        begin, end = _place(event.start_mark).index, _place(event.end_mark).index
        if text[end : end + 1] == "," and _TAG_AT_END.search(text[begin:end]):
            raise Unreadable(
                f"{at(_place(event.end_mark), first_line)}a comma directly behind a tag; put a space before it"
            )


def _compose(events: Iterator[Any], first_line: int) -> Node:
    """The node whose first event is next. A stack of our own: text decides how deep it is."""
    anchors: dict[str, Node] = {}
    open_nodes: list[Sequence | Mapping] = []
    keys: list[Node | None] = []
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            node: Node = open_nodes.pop()
            node.end = _place(event.end_mark)
            keys.pop()
        else:
            node = _node(event, anchors, first_line)
            if not isinstance(node, Alias) and event.anchor is not None:
                anchors[event.anchor] = node
            if isinstance(node, Sequence | Mapping):
                if len(open_nodes) > MAX_NESTING:
                    raise Unreadable(f"{at(node.start, first_line)}{TOO_DEEP}")
                open_nodes.append(node)
                keys.append(None)
                continue
        if not open_nodes:
            return node
        parent = open_nodes[-1]
        if isinstance(parent, Sequence):
            parent.items.append(node)
        elif (key := keys[-1]) is None:
            keys[-1] = node
        else:
            parent.pairs.append((key, node))
            keys[-1] = None
    raise Unreadable("the text ends too early")


def _node(event: Any, anchors: dict[str, Node], first_line: int) -> Node:
    start, end = _place(event.start_mark), _place(event.end_mark)
    if isinstance(event, yaml.ScalarEvent):
        return Scalar(start, end, event.tag, event.value, event.implicit[0], event)
    if isinstance(event, yaml.SequenceStartEvent):
        return Sequence(start, end, event.tag, bool(event.flow_style), event)
    if isinstance(event, yaml.MappingStartEvent):
        return Mapping(start, end, event.tag, bool(event.flow_style), event)
    target = anchors.get(event.anchor)
    if target is None:
        raise Unreadable(f"{at(start, first_line)}there is no anchor of this name before the alias")
    return Alias(start, end, target)


def _place(mark: Any) -> Place:
    return Place(mark.line, mark.column, mark.index)


def at(place: Place, first_line: int = 1) -> str:
    """The beginning of a sentence about this place."""
    return f"line {place.line + first_line}, column {place.column + 1}: "


def _sentence(error: yaml.YAMLError, text: str, first_line: int) -> str:
    """What libyaml says; its sentences hold nothing of the text."""
    if isinstance(error, yaml.MarkedYAMLError):
        problem = error.problem or "it is not YAML"
        mark: Any = error.problem_mark or error.context_mark
        if mark is None:
            return problem
        found = text.removeprefix("\ufeff")[mark.index : mark.index + 1]
        if "cannot start any token" in problem and found == "\t":
            problem = "a tab cannot indent a line or start a value; use spaces"
        return f"{at(_place(mark), first_line)}{problem}"
    position = getattr(error, "position", 0)
    lines = text.encode("utf-8", "surrogatepass")[:position].count(b"\n")
    return f"line {lines + first_line}: control characters are not allowed"
