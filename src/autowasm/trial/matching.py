"""Compares the expected values with those that were found: one `Mismatch` for each field that differs.

Invariant: an impossible comparison (a body that is not JSON) is a mismatch, never an exception.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from typing import Any, Final

from msgspec import UNSET, UnsetType

from autowasm.sandbox.clusteranswers import Callout
from autowasm.sandbox.http import Exchange
from autowasm.sandbox.message import Message, decoded
from autowasm.sandbox.protocol import MetricType
from autowasm.sandbox.state import LogLine, Metric
from autowasm.text import shown
from autowasm.trial import suite
from autowasm.trial.suite import ExpectedHeader, Matcher, Text

_MOST: Final = 300
"""Characters of a value in a difference."""
_MOST_LINES: Final = 40
"""Lines of a difference between long texts, or of a log."""
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """`path` is the field of the case, such as `expect.response.headers.x-a`; `lines` are printable."""

    path: str
    lines: tuple[str, ...]


def exchange_mismatches(
    expect: suite.Expect, found: Exchange, *, path: str = "expect"
) -> Iterator[Mismatch]:
    """All differences of one request."""
    failure = found.failure
    if expect.failure is not UNSET:
        message = failure.message if failure is not None else None
        yield from _text(expect.failure, message, f"{path}.failure")
    elif failure is not None:
        yield Mismatch(
            f"{path}.failure", (f"the module failed: {shown(failure.message, most=_MOST)}",)
        )
    if expect.request is not UNSET:
        yield from _request(expect.request, found.request, f"{path}.request")
    if expect.response is not UNSET:
        yield from _response(expect.response, found.response, f"{path}.response")
    if expect.local_reply not in (UNSET, found.is_local_reply):
        yield _differs(f"{path}.localReply", expect.local_reply, found.is_local_reply)
    yield from log_mismatches(expect.logs, found.log, f"{path}.logs")
    for at, line in enumerate(expect.no_logs):
        hit = next((each for each in found.log if _line_matches(line, each)), None)
        if hit is not None:
            yield Mismatch(f"{path}.noLogs[{at}]", (f"+ {_line(hit)}",))
    yield from _metrics(expect.metrics, found.metrics, f"{path}.metrics")
    if expect.callouts is not UNSET:
        yield from _callouts(expect.callouts, found.callouts, f"{path}.callouts")


def _request(
    expected: suite.ExpectedRequest, found: Message | None, path: str
) -> Iterator[Mismatch]:
    forwarded = found is not None and found.is_complete
    if forwarded != expected.forwarded:
        was = (
            "the service got the whole request"
            if forwarded
            else "the service did not get the whole request"
        )
        yield Mismatch(f"{path}.forwarded", (was,))
        return
    if found is None or not expected.forwarded:
        return
    for name in ("method", "path", "authority"):
        wanted: Text | UnsetType = getattr(expected, name)
        yield from _text(wanted, _first(found.values(f":{name}")), f"{path}.{name}")
    yield from _message(expected, found, path)


def _response(
    expected: suite.ExpectedResponse, found: Message | None, path: str
) -> Iterator[Mismatch]:
    if found is None:
        yield Mismatch(path, ("the client got no response: the stream was reset",))
        return
    if expected.status not in (UNSET, found.status):
        yield _differs(f"{path}.status", expected.status, found.status)
    yield from _message(expected, found, path)


def _message(
    expected: suite.ExpectedRequest | suite.ExpectedResponse, found: Message, path: str
) -> Iterator[Mismatch]:
    yield from _headers(expected.headers, found.headers, f"{path}.headers")
    yield from _body(expected.body, found.body, f"{path}.body")
    yield from _headers(expected.trailers, found.trailers, f"{path}.trailers")


def _headers(expected: Mapping[str, ExpectedHeader], found: Pairs, path: str) -> Iterator[Mismatch]:
    for name, wanted in expected.items():
        values = [value for key, value in found if key == name.lower()]
        where = f"{path}.{name}"
        if isinstance(wanted, Matcher):
            if wanted.absent is not UNSET:
                yield from _text(wanted, _first(values), where)
            elif not any(text_matches(wanted, value) for value in values):
                yield Mismatch(where, (f"- {described(wanted)}", *_found_values(values)))
        elif (given := [wanted] if isinstance(wanted, str) else wanted) != values:
            removed = tuple(f"- {shown(value, most=_MOST)}" for value in given)
            yield Mismatch(where, (*removed, *_found_values(values)))


def _found_values(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"+ {shown(value, most=_MOST)}" for value in values) or ("+ (absent)",)


def _text(wanted: Text | UnsetType, found: str | None, path: str) -> Iterator[Mismatch]:
    if wanted is UNSET:
        return
    if isinstance(wanted, Matcher) and wanted.absent is not UNSET:
        if wanted.absent != (found is None):
            yield Mismatch(path, (f"- {described(wanted)}", f"+ {_shown(found)}"))
    elif found is None:
        yield Mismatch(path, (f"- {described(wanted)}", "+ (absent)"))
    elif not text_matches(wanted, found):
        yield Mismatch(path, _text_difference(wanted, found))


def _body(wanted: Text | UnsetType, found: bytes, path: str) -> Iterator[Mismatch]:
    """An empty body counts as absent."""
    is_presence = isinstance(wanted, Matcher) and wanted.absent is not UNSET
    yield from _text(wanted, None if is_presence and not found else _decoded(found), path)


def text_matches(wanted: str | Matcher, found: str) -> bool:
    """Whether the text meets a condition other than `absent`."""
    if isinstance(wanted, str):
        return wanted == found
    if wanted.equals is not UNSET:
        return wanted.equals == found
    if wanted.contains is not UNSET:
        return wanted.contains in found
    if wanted.regex is not UNSET:
        return re.search(wanted.regex, found) is not None
    try:
        return not list(json_differences(wanted.json, json.loads(found)))
    except (ValueError, RecursionError):
        return False


def _text_difference(wanted: str | Matcher, found: str) -> tuple[str, ...]:
    if isinstance(wanted, Matcher) and wanted.json is not UNSET:
        try:
            return tuple(json_differences(wanted.json, json.loads(found)))[:_MOST_LINES]
        except (ValueError, RecursionError):
            return ("- JSON", f"+ {_shown(found)}")
    text = wanted if isinstance(wanted, str) else wanted.equals
    if isinstance(text, str) and ("\n" in text or "\n" in found):
        lines = unified_diff(text.splitlines(), found.splitlines(), lineterm="", n=2)
        changed = [line for line in list(lines)[2:] if not line.startswith("@@")]
        if changed:
            cut = [f"{line[:1]} {shown(line[1:], most=_MOST)}" for line in changed[:_MOST_LINES]]
            more = len(changed) - len(cut)
            return (*cut, f"  and {more} more lines") if more > 0 else tuple(cut)
    return (f"- {described(wanted)}", f"+ {_shown(found)}")


def json_differences(wanted: Any, found: Any, path: str = "$") -> Iterator[str]:
    """One line for each value of `wanted` that `found` lacks. Objects may have more keys, lists may not have more items."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for name, value in wanted.items():
            where = f"{path}.{shown(name)}"
            if name in found:
                yield from json_differences(value, found[name], where)
            else:
                yield from (f"- {where}: {_json(value)}", f"+ {where}: (absent)")
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for at, value in enumerate(wanted):
            yield from json_differences(value, found[at], f"{path}[{at}]")
    elif isinstance(wanted, bool) is not isinstance(found, bool) or wanted != found:
        yield from (f"- {path}: {_json(wanted)}", f"+ {path}: {_json(found)}")


def _json(value: Any) -> str:
    return shown(json.dumps(value, ensure_ascii=False), most=_MOST)


def described(wanted: str | Matcher | suite.LogLine) -> str:
    """The condition as one line."""
    if isinstance(wanted, str):
        return shown(wanted, most=_MOST) if wanted else "(empty)"
    if isinstance(wanted, Matcher):
        if wanted.absent is not UNSET:
            return "(absent)" if wanted.absent else "(present)"
        if wanted.json is not UNSET:
            return f"JSON {_json(wanted.json)}"
    elif wanted.level is not UNSET:
        return f"{wanted.level.value}: {_condition(wanted)}"
    return _condition(wanted)


def _condition(wanted: Matcher | suite.LogLine) -> str:
    if wanted.equals is not UNSET:
        return shown(wanted.equals, most=_MOST)
    if wanted.contains is not UNSET:
        return f"contains {shown(wanted.contains, most=_MOST)}"
    return f"regex {shown(wanted.regex or '', most=_MOST)}"


def log_mismatches(
    expected: Sequence[str | suite.LogLine], found: Sequence[LogLine], path: str
) -> Iterator[Mismatch]:
    """The conditions that no line meets, with the existing lines."""
    for at, line in enumerate(expected):
        if not any(_line_matches(line, each) for each in found):
            lines = tuple(f"+ {_line(each)}" for each in found[:_MOST_LINES])
            yield Mismatch(f"{path}[{at}]", (f"- {described(line)}", *(lines or ("+ (no lines)",))))


def _line_matches(wanted: str | suite.LogLine, found: LogLine) -> bool:
    text = _decoded(found.message)
    if isinstance(wanted, str):
        return wanted == text
    if wanted.level is not UNSET and wanted.level.value != found.level.name.lower():
        return False
    if wanted.equals is not UNSET:
        return wanted.equals == text
    if wanted.contains is not UNSET:
        return wanted.contains in text
    return re.search(wanted.regex or "", text) is not None


def _line(line: LogLine) -> str:
    return f"{line.level.name.lower()}: {shown(line.message, most=_MOST)}"


def _metrics(
    expected: Mapping[str, int | list[int] | None], found: Sequence[Metric], path: str
) -> Iterator[Mismatch]:
    values: dict[str, int | list[int]] = {
        _decoded(metric.name): metric.recorded
        if metric.type is MetricType.HISTOGRAM
        else metric.value
        for metric in found
    }
    for name, wanted in expected.items():
        if wanted != values.get(name):
            yield _differs(f"{path}.{name}", wanted, values.get(name))


def _callouts(
    expected: Sequence[suite.ExpectedCallout], found: Sequence[Callout], path: str
) -> Iterator[Mismatch]:
    if len(expected) != len(found):
        lines = tuple(f"+ {callout_line(each)}" for each in found[:_MOST_LINES])
        yield Mismatch(path, (f"- {len(expected)} calls", *(lines or ("+ (no calls)",))))
        return
    for at, (wanted, callout) in enumerate(zip(expected, found, strict=True)):
        where = f"{path}[{at}]"
        pairs = decoded(callout.headers)
        if wanted.cluster not in (UNSET, callout.cluster):
            yield _differs(f"{where}.cluster", wanted.cluster, callout.cluster)
        for name in ("method", "path"):
            value = _first([value for key, value in pairs if key == f":{name}"])
            yield from _text(getattr(wanted, name), value, f"{where}.{name}")
        yield from _headers(wanted.headers, pairs, f"{where}.headers")
        yield from _body(wanted.body, callout.body, f"{where}.body")


def callout_line(callout: Callout) -> str:
    """A call as one line."""
    pairs = dict(decoded(callout.headers))
    if callout.service or callout.method:
        what = f"{callout.service}/{callout.method}"
    else:
        what = f"{pairs.get(':method', '')} {pairs.get(':path', '')}".strip()
    return f"{shown(callout.cluster)}: {shown(what, most=_MOST)}"


def start_mismatches(
    expected: suite.ExpectedStart,
    *,
    refused: str | None,
    log: Sequence[LogLine],
) -> Iterator[Mismatch]:
    """Differences of the start. `refused`: the sentence about a failure, None if the module starts."""
    wants_start = expected.outcome is suite.StartOutcome.STARTS
    if wants_start and refused is not None:
        yield Mismatch("start", ("- Starts", f"+ Refused: {shown(refused, most=_MOST)}"))
        return
    if not wants_start and refused is None:
        yield Mismatch("start", ("- Refused", "+ Starts"))
        return
    yield from _text(expected.message, refused, "start.message")
    yield from log_mismatches(expected.logs, log, "start.logs")


def _differs(path: str, wanted: object, found: object) -> Mismatch:
    return Mismatch(path, (f"- {_plain(wanted)}", f"+ {_plain(found)}"))


def _plain(value: object) -> str:
    return (
        "(absent)"
        if value is None
        else shown(str(value).lower() if isinstance(value, bool) else str(value), most=_MOST)
    )


def _shown(text: str | None) -> str:
    if text is None:
        return "(absent)"
    return shown(text, most=_MOST) if text else "(empty)"


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _first(values: Sequence[str]) -> str | None:
    return values[0] if values else None
