"""From the text of a file to plain data: YAML documents, or one JSON document.

Not what a document means (`documents.py`). Invariants: whatever the text, the outcome is data or `Unreadable`; strictly
read data is what JSON can say, at most `NESTING_MOST` deep, so it can be compared, copied and written again; no sentence
quotes a value, because it may be a password.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Hashable
from typing import Any

import yaml

NESTING_MOST = 100
"""Levels. Copying and writing recurse, and Python allows about 300 levels of that; EnvoyFilters have about 15."""
_TOO_DEEP = f"it is nested deeper than {NESTING_MOST} levels"
_INTEGER_BITS = 64
"""Kubernetes keeps integers of 64 bits."""
_SHOWN = 100
"""Characters of a key or path that a sentence shows."""
_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")

# What PyYAML was seen to raise besides its own: `!!bool x` KeyError, `!!int ''` IndexError, `"\UFFFFFFFF"` OverflowError,
# `!!timestamp x` AttributeError.
_RAISED = (
    yaml.YAMLError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)


class Unreadable(ValueError):
    """The text is not what it should be; a sentence without values of it."""


def read_documents(text: str, *, document_bytes: int, most: int) -> list[Any]:
    """Every document, strictly: no aliases (they make bombs), no key twice, only what JSON can say. Raises Unreadable.

    At most `most` documents of at most `document_bytes` each. Text that is one JSON object is read as JSON, which is
    not quite YAML: tabs, and surrogate pairs for characters beyond 16 bits.
    """
    documents = _read_json(text, document_bytes)
    if documents is None:
        documents = _read_yaml(text, document_bytes, most)
    for number, document in enumerate(documents, 1):
        _check_plain(document, f"document {number}", 0)
    return documents


def read_trusted(text: str) -> Any:
    """The only document of a file that the operator or we ourselves wrote: aliases are fine. Raises Unreadable."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader
    except _RAISED as error:
        raise Unreadable(_sentence(error)) from None


# Not libyaml's loader: it runs over the stack of C on text that is nested deeply enough.
class _Loader(yaml.SafeLoader):
    """Safe, and timestamps stay text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _StrictLoader(_Loader):
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise Unreadable(f"{_at(event.start_mark)}aliases (*name) are not supported")
        if (
            self._depth > NESTING_MOST + 1
        ):  # here already: what each level costs grows with the levels
            raise Unreadable(_TOO_DEEP)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise Unreadable(f"{_at(key_node.start_mark)}the key {shown(key)} is there twice")
            seen.add(key if isinstance(key, Hashable) else id(key))
        return super().construct_mapping(node, deep)


def _read_yaml(text: str, document_bytes: int, most: int) -> list[Any]:
    documents: list[Any] = []
    try:
        loader = _StrictLoader(text)
        while loader.check_node():
            _check_number(len(documents), most)
            node: Any = loader.get_node()
            source = text[node.start_mark.index : node.end_mark.index]
            _check_size(source, document_bytes, f"document {len(documents) + 1}")
            documents.append(loader.construct_document(node))
    except Unreadable:
        raise
    except _RAISED as error:
        # The original would bring the text along, into a log that shows causes.
        raise Unreadable(_sentence(error)) from None
    return documents


def _read_json(text: str, document_bytes: int) -> list[Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError:
        return None  # may be YAML's flow style, or several documents
    except RecursionError:
        raise Unreadable(_TOO_DEEP) from None
    except Unreadable:
        raise
    except ValueError:  # an integer of thousands of digits
        raise Unreadable("a number in it is out of range") from None
    _check_size(text, document_bytes, "document 1")
    return [document]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise Unreadable(f"the key {shown(twice)} is there twice")
    return result


def _check_number(number: int, most: int) -> None:
    if number >= most:
        raise Unreadable(f"it holds more than {most} documents")


def _check_size(source: str, most: int, where: str) -> None:
    if len(source) > most or len(source.encode("utf-8", "surrogatepass")) > most:
        raise Unreadable(f"{where} is larger than {most} bytes")


def _check_plain(value: Any, path: str, depth: int) -> None:
    """Raises Unreadable for what JSON cannot say, naming the path: YAML has sets, bytes, infinity and keys of any type."""
    if depth > NESTING_MOST:
        raise Unreadable(f"{path[:_SHOWN]}: is nested deeper than {NESTING_MOST} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Unreadable(
                    f"{path[:_SHOWN]}: the key {shown(key)} must be text; put it in quotes"
                )
            _check_text(key, path)
            _check_plain(item, f"{path}.{key}"[:_SHOWN], depth + 1)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_plain(item, f"{path}[{number}]"[:_SHOWN], depth + 1)
    elif isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, int) and value.bit_length() > _INTEGER_BITS:
        # Python reads `0x` and thousands of digits, and then refuses to write them in decimal.
        raise Unreadable(f"{path[:_SHOWN]}: the integer is larger than {_INTEGER_BITS} bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise Unreadable(f"{path[:_SHOWN]}: must be a finite number")
    elif not isinstance(value, int | float | None):
        raise Unreadable(f"{path[:_SHOWN]}: {type(value).__name__} is not a type that JSON has")


def _check_text(value: str, path: str) -> None:
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unreadable(f"{path[:_SHOWN]}: holds half a character (a lone surrogate)") from None


def shown(value: object) -> str:
    """`value` for a sentence, cut to a bearable length."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _sentence(error: BaseException) -> str:
    """What PyYAML says, without the lines of text that it quotes."""
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    if isinstance(error, yaml.MarkedYAMLError):
        problem = _QUOTED.sub(_keep_syntax, error.problem or "it is not YAML")
        return f"{_at(error.problem_mark or error.context_mark)}{problem}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"position {error.position}: special characters are not allowed"
    return "a value does not fit its tag, or is out of range"


def _keep_syntax(quoted: re.Match[str]) -> str:
    """Punctuation and names of tokens tell what is wrong; anything longer may be a value."""
    inner = quoted[0][1:-1]
    return quoted[0] if len(inner) <= 1 or inner.startswith("<") else "'…'"


def _at(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
