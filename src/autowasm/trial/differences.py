"""Comparisons of messages: the changes that a filter made, and the differences between a real Envoy and the sandbox. Pure.

Invariants: every header of both messages is in `compared` once, in the order of the new message; removed ones follow. Between Envoy and the sandbox,
values that differ from run to run (dates, durations) and headers that only the HTTP/1.1 codec writes are not compared.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from autowasm.sandbox.http import Exchange
from autowasm.sandbox.message import Message
from autowasm.sandbox.state import LogLine
from autowasm.text import shown
from autowasm.trial.envoyrun import Observed
from autowasm.trial.http1 import Pairs, Wire

_OF_THE_TIME: Final = frozenset({"date"})
"""Envoy takes them from its clock, whose time after a callout differs from the virtual time."""
_MASKED: Final = {
    "date": re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} GMT"),
    "x-envoy-upstream-service-time": re.compile(r"\d+"),
}
_OF_THE_CODEC: Final = frozenset({"transfer-encoding", "connection"})
_MOST: Final = 200
"""Characters of a value."""


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
    """The positions in `after` of headers that are in `left`, from which they are removed."""
    found = set()
    for at, (name, value) in enumerate(after):
        if value in left[name]:
            left[name].remove(value)
            found.add(at)
    return found


@dataclass(frozen=True, slots=True)
class Difference:
    """`where` is, for example, `response header x-a`. The values are printable; `(absent)` means no value."""

    where: str
    sandbox: str
    envoy: str


def differences(
    found: Sequence[Exchange] | None, log: Sequence[LogLine], observed: Observed, *, start: str
) -> tuple[Difference, ...]:
    """`found` and `log` are those of the sandbox; `found` is None if the filter does not start in it.

    `start`: the sandbox's verdict on the start, such as `refused`. With several requests, `where` begins with their number.
    """
    if found is None and observed.refusal:
        return ()
    if found is None or observed.refusal:
        return (Difference("start", start, observed.refusal or "starts"),)
    all_found = []
    for number, (exchange, passed) in enumerate(zip(found, observed.exchanges, strict=True), 1):
        prefix = f"{number}. " if len(found) > 1 else ""
        each = (
            *_requests(exchange.request, passed.request),
            *_responses(exchange, passed.response),
        )
        all_found += [replace(one, where=f"{prefix}{one.where}") for one in each]
    return (*all_found, *_logs(log, observed))


def _requests(found: Message | None, wire: Wire | None) -> Iterator[Difference]:
    whole = found if found is not None and found.is_complete else None
    if whole is None or wire is None:
        if (whole is None) is not (wire is None):
            yield _difference("request", _forwarded(whole), _forwarded(wire))
        return
    first = tuple(next(iter(whole.values(name)), "") for name in (":method", ":path"))
    yield from _plain("request line", " ".join(first), " ".join(wire.first[:2]))
    headers = [
        ("host" if name == ":authority" else name, value)
        for name, value in whole.headers
        if name == ":authority" or not name.startswith(":")
    ]
    yield from _messages("request", headers, whole, wire)


def _responses(found: Exchange, wire: Wire | None) -> Iterator[Difference]:
    response = found.response
    if response is None or wire is None:
        if (response is None) is not (wire is None):
            yield _difference("response", _answered(response), _answered(wire))
        return
    yield from _plain("response status", str(response.status), wire.first[1])
    headers = [pair for pair in response.headers if not pair[0].startswith(":")]
    yield from _messages("response", headers, response, wire)


def _messages(what: str, headers: Pairs, found: Message, wire: Wire) -> Iterator[Difference]:
    yield from _headers(f"{what} header", headers, wire.headers)
    yield from _plain(f"{what} body", found.body, wire.body)
    yield from _headers(f"{what} trailer", found.trailers, wire.trailers)


def _headers(what: str, found: Pairs, wire: Pairs) -> Iterator[Difference]:
    for each in compared(_masked(found), _masked(wire)):
        where = f"{what} {shown(each.name)}"
        if each.change is Change.CHANGED:
            yield _difference(where, each.was, each.value)
        elif each.change is Change.ADDED:
            yield _difference(where, None, each.value)
        elif each.change is Change.REMOVED:
            yield _difference(where, each.value, None)


def _masked(headers: Pairs) -> list[tuple[str, str]]:
    return [
        (name, "(masked)" if name in _MASKED and _MASKED[name].fullmatch(value) else value)
        for name, value in headers
        if name not in _OF_THE_CODEC and (name, value) != ("content-length", "0")
    ]


def _logs(log: Sequence[LogLine], observed: Observed) -> Iterator[Difference]:
    lines = [
        f"{line.level.name.lower()}: {line.message.decode('utf-8', 'surrogateescape')}"
        for line in log
    ]
    others = [f"{level}: {text}" for level, text in observed.log]
    for at in range(max(len(lines), len(others))):
        line = lines[at] if at < len(lines) else None
        other = others[at] if at < len(others) else None
        if line != other:
            yield _difference(f"log line {at + 1}", line, other)
            return  # the lines after it would only be shifted


def _plain(where: str, found: str | bytes, wire: str | bytes) -> Iterator[Difference]:
    if found != wire:
        yield _difference(where, found, wire)


def _difference(where: str, found: str | bytes | None, wire: str | bytes | None) -> Difference:
    return Difference(where, _shown(found), _shown(wire))


def _shown(value: str | bytes | None) -> str:
    if value is None:
        return "(absent)"
    return shown(value, most=_MOST) if value else "(empty)"


def _forwarded(message: object) -> str:
    return "forwarded" if message is not None else "not forwarded"


def _answered(message: object) -> str:
    return "a response" if message is not None else "none"
