"""What a filter changed in a message: its headers beside those that Envoy would pass on without the filter.

Invariant: every header of both messages is in the result once, in the order of the new message; removed ones follow.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

Pairs = Sequence[tuple[str, str]]

_OF_THE_TIME: Final = frozenset({"date"})
"""Envoy writes them from its clock, which stands elsewhere after a callout."""


class Change(StrEnum):
    """The values are stable: they are in the output of `--json`."""

    SAME = "same"
    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Header:
    """A header. `was`: its value without the filter, for CHANGED; for REMOVED that is `value`."""

    name: str
    value: str
    change: Change = Change.SAME
    was: str | None = None


def compared(before: Pairs | None, after: Pairs) -> tuple[Header, ...]:
    """The headers of `after`, with their changes to `before`; without `before` all are the same.

    Values of a name are compared in order: a second value is added, not changed.
    """
    if before is None:
        return tuple(Header(name, value) for name, value in after)
    left: dict[str, list[str]] = defaultdict(list)
    for name, value in before:
        left[name].append(value)
    matched = _unchanged(left, after)
    found = []
    for at, (name, value) in enumerate(after):
        if at in matched or (name in _OF_THE_TIME and left[name]):
            if at not in matched:
                left[name].pop(0)
            found.append(Header(name, value))
        elif left[name]:
            found.append(Header(name, value, Change.CHANGED, left[name].pop(0)))
        else:
            found.append(Header(name, value, Change.ADDED))
    removed = [
        Header(name, value, Change.REMOVED) for name, values in left.items() for value in values
    ]
    return (*found, *removed)


def _unchanged(left: dict[str, list[str]], after: Pairs) -> set[int]:
    """The places in `after` of headers that are in `left`, from which they are taken."""
    found = set()
    for at, (name, value) in enumerate(after):
        if value in left[name]:
            left[name].remove(value)
            found.add(at)
    return found
