"""Writes YAML that every reader parses to the same data: Envoy's yaml-cpp, kubectl's go-yaml, PyYAML and others.

Invariants: text is unquoted only if it is a word that is text in every YAML reader; all other text is in double quotes, with
escapes that YAML and JSON share, on one line; `read_back` reads files of earlier versions as they were meant.
Not the writing of files (see `atomicfile.py`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from autowasm.manifests.nodes import Unreadable

_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:[-./][A-Za-z0-9_]+)*\Z", re.ASCII)
"""Does not begin like a number, and has no characters with a meaning in YAML."""
_TAKEN: Final = frozenset(
    [
        "y",
        "n",
        "yes",
        "no",
        "on",
        "off",
        "true",
        "false",
        "t",
        "f",
        "null",
        "none",
        "nil",
        "nan",
        "inf",
        "infinity",
        "undefined",
    ]
)
"""Words, in lower case, that some YAML reader does not read as text."""
_WIDTH: Final = 2**30
"""So large that no line is folded."""
_ESCAPED: Final = re.compile(r"\\.")
"""Backslashes occur only in double quotes."""
_SAFER: Final = {r"\N": r"\u0085", r"\_": r"\u00A0"}
"""yaml-cpp reads the short forms as one byte, which is not UTF-8 (`Escape` in its exp.cpp)."""
_STR: Final = "tag:yaml.org,2002:str"


def dump(document: Mapping[str, Any], *, sort_keys: bool = False) -> str:
    """Block style, keys in the order of the document, no aliases: equal documents give equal text."""
    return _dump(dict(document), sort_keys=sort_keys, flow=False)


def dump_line(value: Any) -> str:
    """Flow style, on one line without a line end."""
    return _dump(value, sort_keys=False, flow=True).rstrip("\n")


def dump_items(values: Sequence[Any]) -> str:
    """Block style: the items of a sequence, each after its dash. No text spans lines."""
    return _dump(list(values), sort_keys=False, flow=False)


def read_back(text: str) -> Any:
    """The data of a text that `dump`, or an earlier version, wrote. Raises Unreadable.

    With PyYAML's types, not kubectl's: earlier versions did not quote `y` and `1e3` as text.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader
    except _RAISED:
        raise Unreadable("not the YAML that wasmer wrote") from None


def _dump(value: Any, *, sort_keys: bool, flow: bool) -> str:
    text: str = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=sort_keys,
        allow_unicode=True,
        width=_WIDTH,
        default_flow_style=flow,
    )
    return _ESCAPED.sub(lambda found: _SAFER.get(found[0], found[0]), text)


# libyaml's dumper is twice as fast, and `nodes.py` needs libyaml anyway.
class _Dumper(yaml.CSafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.CSafeDumper, text: str) -> yaml.ScalarNode:
    plain = _WORD.match(text) and text.lower() not in _TAKEN
    return dumper.represent_scalar(_STR, text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads timestamps as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

# PyYAML was seen to raise, besides its own errors: `!!bool x` KeyError, `!!int ''` IndexError, `"\UFFFFFFFF"` OverflowError,
# `!!timestamp x` AttributeError.
_RAISED: Final = (
    yaml.YAMLError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
