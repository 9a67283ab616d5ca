"""Parses YAML text to nodes with their positions, from the events of libyaml, of which go-yaml 2 is a translation.

Only libyaml's parser is used: PyYAML's own scanner refuses tabs that libyaml accepts, and its constructors use other types than
Go. Invariants: the result is nodes or `Unreadable`; a message never quotes the text; nesting is bounded before any recursion.
Not the values of nodes (see `reader.py` for kubectl's rules, `standalone/template.py` for Envoy's).
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from autowasm.text import INVISIBLE

try:
    from yaml import CSafeLoader
except ImportError as error:  # pragma: no cover  # PyYAML built from source without libyaml
    raise ImportError(
        "PyYAML was built without libyaml; install a wheel of it: pip install --only-binary :all: PyYAML"
    ) from error

MAX_NESTING: Final = 100
"""Levels. Copying and writing recurse, and Python's recursion limit allows about 300; EnvoyFilters have about 15."""
_TEMPLATE: Final = re.compile(r"\{\{|\{%")
_INVISIBLE_INDENT: Final = re.compile(f"^ *({INVISIBLE.pattern})", re.MULTILINE)
"""YAML treats such spaces as letters."""
_HINTS: Final = (
    ("could not find expected ':'", "a key needs a colon and a space, and a list item needs a dash and a space"),
    ("mapping values are not allowed", "put a value that has a colon and a space in quotes; or the line before lacks a colon, or the indentation is wrong"),
    ("did not find expected key", "the indentation differs from that of the lines above, or the line is not KEY: VALUE"),
    ("did not find expected '-'", "the indentation differs from that of the items above, or the line has no dash"),
    ("did not find expected ',' or", "separate items with commas, close the bracket, and begin a comment with #"),
    ("did not find expected node content", "a value is missing, or there is a comma or a bracket too many"),
    ("did not find expected alphabetic", "put text that begins with * or & in quotes"),
    ("unexpected end of stream", "the quote that begins here is not closed"),
    ("cannot start any token", "put a value that begins with @, ` or % in quotes"),
    ("found unknown escape character", "use single quotes, or write two backslashes"),
)  # fmt: skip
"""The words of libyaml, and the mistakes that usually cause them."""
_TAG_AT_END: Final = re.compile(r"![^\s\[\]{},]*\Z")
NO_KEY: Final = "a key must be text, a number or a boolean"
TEMPLATE: Final = "; if this is a template expression {{ }}, render the template first"
TOO_DEEP: Final = f"nested deeper than {MAX_NESTING} levels"


class Unreadable(ValueError):
    """The text is not valid. The message holds no values of the text."""


def decoded(content: bytes) -> str:
    """The text of a file. Raises Unreadable if it is not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise Unreadable(
            f"line {line}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None


@dataclass(frozen=True, slots=True)
class Place:
    """A position: line and column from 0, `index` in characters from the start, without a byte order mark."""

    line: int
    column: int
    index: int


@dataclass(slots=True, eq=False)
class Scalar:
    """`plain` is go-yaml's `implicit`: without quotes and without a tag, or with the tag `!`."""

    start: Place
    end: Place
    tag: str | None
    value: str
    plain: bool
    event: Any = field(repr=False)


@dataclass(slots=True, eq=False)
class Sequence:
    """`flow`: in brackets."""

    start: Place
    end: Place
    tag: str | None
    flow: bool
    event: Any = field(repr=False)
    items: list["Node"] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Mapping:
    """A key may be any node and may occur more than once."""

    start: Place
    end: Place
    tag: str | None
    flow: bool
    event: Any = field(repr=False)
    pairs: list[tuple["Node", "Node"]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Alias:
    """`target` is the anchor's node, which may contain the alias."""

    start: Place
    end: Place
    target: "Node"


Node = Scalar | Sequence | Mapping | Alias


def first_document(text: str, *, first_line: int = 1) -> tuple[Node | None, bool]:
    """The first document, None if there is none, and whether text follows it. Raises Unreadable.

    `first_line` is the number of the first line of `text` in messages. Text after the document is not parsed.
    """
    with _events(text, first_line) as events:
        next(events)  # the start of the stream
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
    """The indices of the dashes of all block sequences, in order; `root` is the first document."""
    found = []
    with contextlib.suppress(yaml.YAMLError):  # an error after the document
        for token in yaml.scan(text, Loader=CSafeLoader):
            if token.start_mark.index >= root.end.index:
                break
            if isinstance(token, yaml.BlockEntryToken):
                found.append(token.start_mark.index)
    return found


def check_keys(text: str) -> None:
    """Raises Unreadable for a key that is not text, and for a duplicate key: YAML readers silently use the last one."""
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
                if isinstance(key, Mapping | Sequence):
                    raise Unreadable(f"{at(key.start)}{NO_KEY}{TEMPLATE if key.flow else ''}")
                if isinstance(key, Scalar) and key.value in seen:
                    raise Unreadable(f"{at(key.start)}duplicate key; remove one")
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
        # The original error holds the text, and logs show causes.
        raise Unreadable(_sentence(error, text, first_line)) from None


def _check_tag(event: Any, text: str, first_line: int) -> None:
    """Refuse a comma directly after a tag: in go-yaml it belongs to the tag, so `[!a, b]` has one item in go-yaml, two here."""
    if isinstance(event, yaml.ScalarEvent) and not event.value:
        begin, end = _place(event.start_mark).index, _place(event.end_mark).index
        if text[end : end + 1] == "," and _TAG_AT_END.search(text[begin:end]):
            raise Unreadable(
                f"{at(_place(event.end_mark), first_line)}a comma directly after a tag; insert a space before it"
            )


def _compose(events: Iterator[Any], first_line: int) -> Node:
    """The node that begins with the next event. An explicit stack, because the text decides the depth."""
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
    raise Unreadable("unexpected end of text")


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
        raise Unreadable(
            f"{at(start, first_line)}no anchor of this name before the alias; put text that begins with * in quotes"
        )
    return Alias(start, end, target)


def _place(mark: Any) -> Place:
    return Place(mark.line, mark.column, mark.index)


def at(place: Place, first_line: int = 1) -> str:
    """The position as the start of a message."""
    return f"line {place.line + first_line}, column {place.column + 1}: "


def _sentence(error: yaml.YAMLError, text: str, first_line: int) -> str:
    """The message of libyaml, with the position. It holds nothing of the text."""
    if isinstance(error, yaml.MarkedYAMLError):
        problem = error.problem or "not valid YAML"
        mark: Any = error.problem_mark or error.context_mark
        if mark is None:
            return problem
        text = text.removeprefix("\ufeff")
        found = text[mark.index : mark.index + 1]
        if "cannot start any token" in problem and found == "\t":
            problem = "a tab cannot indent a line or start a value; use spaces"
        else:
            if "while scanning a" in (error.context or ""):  # a quoted text, or a key
                mark = error.context_mark or mark
            hint = _hint(problem, text, mark.line, first_line)
            problem += f"; {hint}" if hint else ""
        return f"{at(_place(mark), first_line)}{problem}"
    position = getattr(error, "position", 0)
    lines = text.encode("utf-8", "surrogatepass")[:position].count(b"\n")
    return f"line {lines + first_line}: control characters are not allowed"


def _hint(problem: str, text: str, line: int, first_line: int) -> str:
    """The likely cause of a problem in `line`, from 0."""
    near = text.split("\n")[max(line - 1, 0) : line + 1]
    if any(_TEMPLATE.search(each) for each in near):
        return "the file is a template: render it first, and use the result"
    for each in reversed(near):
        if found := INVISIBLE.search(each):
            return f"replace the invisible character U+{ord(found[0]):04X} with a space"
    if found := _INVISIBLE_INDENT.search(text):
        number = text.count("\n", 0, found.start(1)) + first_line
        return (
            f"replace the invisible character U+{ord(found[1]):04X} in line {number} with a space"
        )
    return next((hint for words, hint in _HINTS if words in problem), "")
