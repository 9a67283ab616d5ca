"""Converts plain values to msgspec Structs, with errors for the author of a file: the path of the field, and the problem.

Invariant: the type's own checks decide; this module only words the error.
"""

import re
from typing import TypeVar

import msgspec

_T = TypeVar("_T")
_AT = re.compile(r" - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`\Z")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")

_OWN_WORDS = ("Expected ", "Invalid ", "Object ")
"""How msgspec's own messages begin; the others are those of a `__post_init__`."""


class Misfit(ValueError):
    """The value does not have the type. `path` is that of the field, `.spec.filter` or `.cases[0]`, with `[...]` for any key.

    `field` is the name of a field that is unknown or missing there, and empty for other problems.
    """

    def __init__(self, path: str, problem: str, *, field: str = "") -> None:
        super().__init__(problem)
        self.path = path
        self.problem = problem
        self.field = field


def convert(value: object, kind: msgspec.json.Decoder[_T]) -> _T:
    """`msgspec.convert` to the type of `kind`, which is made on import. Raises Misfit; UnicodeEncodeError for a name that is not valid text."""
    try:
        converted: _T = msgspec.convert(value, kind.type, strict=True)
    except msgspec.ValidationError as error:
        raise _misfit(str(error)) from error
    return converted


def _misfit(text: str) -> Misfit:
    at = _AT.search(text)
    path = at["path"] if at else ""
    problem = _AT.sub("", text)
    if at and at["key"]:
        return Misfit(path, "every key must be a string: put it in quotes")
    if unknown := _UNKNOWN.match(problem):
        return Misfit(path, "unknown field; check the spelling", field=unknown["name"])
    if missing := _MISSING.match(problem):
        return Misfit(path, "is required", field=missing["name"])
    if problem.startswith(_OWN_WORDS):
        problem = problem[:1].lower() + problem[1:]
    return Misfit(path, problem)
