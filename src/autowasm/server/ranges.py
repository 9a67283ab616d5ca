"""Preconditions and ranges: the response to a GET or HEAD for a blob (200, 206, 304, 412 or 416). Pure.

Sources: RFC 9110 sections 13.1 (preconditions), 13.2.2 (their order) and 14 (ranges). Header values are text, with several lines
of one name joined by commas. Invariant: a request without any of these headers gets 200 and all bytes (Envoy loads nothing else),
and a Range that is not one valid byte range is ignored.

Blobs have a strong ETag and no Last-Modified, so preconditions on dates are ignored (13.1.3, 13.1.4), and an If-Range
with a date never matches (13.1.5).
"""

import re
from dataclasses import dataclass
from typing import Final

_TAG: Final = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAG_LIST: Final = re.compile(rf"[ \t]*(?:{_TAG})?(?:[ \t]*,[ \t]*(?:{_TAG})?)*[ \t]*")
_TAGS: Final = re.compile(_TAG)
_BYTE_RANGE: Final = re.compile(r"([0-9]+)-([0-9]*)|-([0-9]+)")
_MAX_NUMBER_DIGITS: Final = 18
"""Digits. More mean a position beyond any file, and int() refuses thousands of them."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The values of the request's header fields; None where absent."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_range: str | None = None
    range: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """`status` 200, 206, 304, 412 or 416; for 200 and 206 the `count` bytes from `offset` on."""

    status: int
    offset: int = 0
    count: int = 0


def decide(method: str, conditions: Conditions, *, etag: str, size: int) -> Decision:
    """The response for a blob of `size` bytes. `etag` is quoted and strong, as in the header."""
    if conditions.if_match is not None and not _matches(conditions.if_match, etag, weak=False):
        return Decision(412)
    if conditions.if_none_match is not None and _matches(conditions.if_none_match, etag, weak=True):
        return Decision(304)
    whole = Decision(200, 0, size)
    if method != "GET" or conditions.range is None:  # RFC 9110 14.2: Range is defined for GET only
        return whole
    if conditions.if_range is not None and conditions.if_range.strip(" \t") != etag:
        return whole
    return _part(conditions.range, size) or whole


def _matches(field: str, etag: str, *, weak: bool) -> bool:
    """RFC 9110 8.8.3.2. A field that is not a list of entity tags matches nothing."""
    if field.strip(" \t") == "*":
        return True
    if not _TAG_LIST.fullmatch(field):
        return False
    tags: list[str] = _TAGS.findall(field)
    return any((tag.removeprefix("W/") if weak else tag) == etag for tag in tags)


def _part(field: str, size: int) -> Decision | None:
    """206 or 416 for exactly one valid byte range, None for anything else."""
    unit, equals, range_set = field.strip(" \t").partition("=")
    if not equals or unit.lower() != "bytes":
        return None
    # RFC 9110 5.6.1.2: empty elements of a list are ignored; white space is allowed around commas only.
    elements = range_set.split(",")
    if len(elements) > 1:
        elements = [element.strip(" \t") for element in elements]
    present = [element for element in elements if element]
    match = _BYTE_RANGE.fullmatch(present.pop()) if len(present) == 1 else None
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        count = min(_number(suffix), size)
        return Decision(206, size - count, count) if count else Decision(416)
    start = _number(first)
    end = _number(last) if last else size
    if last and end < start:
        return None  # 14.1.1: invalid, so the whole field is invalid
    if start >= size:
        return Decision(416)
    return Decision(206, start, min(end, size - 1) - start + 1)


def _number(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    return (
        int(digits) if len(digits) <= _MAX_NUMBER_DIGITS else 10**_MAX_NUMBER_DIGITS + len(digits)
    )
