"""The selection of cases: the expression of `wasmc test -k`, with the rules of pytest's `-k`.

A word matches a part of a case's name, ignoring letter case; `and`, `or`, `not` and parentheses combine words; quotes make one
word of several.
"""

import re
from collections.abc import Callable
from typing import Final, TypeAlias

_TOKEN: Final = re.compile(r"""\s*(\(|\)|"[^"]*"|'[^']*'|[^\s()"']+)""")
_MAX_LENGTH: Final = 1_000

Selects: TypeAlias = Callable[[str], bool]
"""Whether the case of this name runs."""


def parse(text: str) -> Selects:
    """An empty expression selects all. Raises ValueError for one that is not valid."""
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"longer than {_MAX_LENGTH} characters")
    tokens, position = [], 0
    text = text.strip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise ValueError(f"a quote is not closed in {text[:80]!r}")
        tokens.append(found[1])
        position = found.end()
    if not tokens:
        return lambda _name: True
    parser = _Parser(tokens)
    selects = parser.either()
    if parser.tokens:
        raise ValueError(f"unexpected {parser.tokens[-1]!r}")
    return selects


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens[::-1]

    def either(self) -> Selects:
        """`a or b`."""
        options = [self.both()]
        while self._takes("or"):
            options.append(self.both())
        return lambda name: any(each(name) for each in options)

    def both(self) -> Selects:
        """`a and b`."""
        conditions = [self.negated()]
        while self._takes("and"):
            conditions.append(self.negated())
        return lambda name: all(each(name) for each in conditions)

    def negated(self) -> Selects:
        """`not a`, `(…)` or a word."""
        if self._takes("not"):
            inner = self.negated()
            return lambda name: not inner(name)
        if self._takes("("):
            inner = self.either()
            if not self._takes(")"):
                raise ValueError("a parenthesis is not closed")
            return inner
        if not self.tokens or self.tokens[-1] in {")", "and", "or"}:
            at = repr(self.tokens[-1]) if self.tokens else "the end"
            raise ValueError(f"a word is missing before {at}")
        word = self.tokens.pop()
        if word[0] in "\"'":
            word = word[1:-1]
        return lambda name: word.casefold() in name.casefold()

    def _takes(self, token: str) -> bool:
        if self.tokens and self.tokens[-1] == token:
            self.tokens.pop()
            return True
        return False
