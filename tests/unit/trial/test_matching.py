"""What was expected beside what was found."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from autowasm.sandbox.clusteranswers import Callout, CalloutKind
from autowasm.sandbox.errors import FailureKind
from autowasm.sandbox.http import Exchange, Failure
from autowasm.sandbox.message import Message
from autowasm.sandbox.protocol import LogLevel, MetricType
from autowasm.sandbox.state import LogLine, Metric
from autowasm.trial import suite
from autowasm.trial.matching import (
    Mismatch,
    exchange_mismatches,
    json_differences,
    start_mismatches,
)

FOUND = Exchange(
    request=Message(
        ((":method", "GET"), (":path", "/x"), (":authority", "a"), ("x-a", "1"), ("x-a", "2")),
        b"",
        (),
        True,
    ),
    response=Message(((":status", "200"), ("x-empty", "")), b'{"a": [1, {"b": true}], "c": 2}', (), True),
    is_local_reply=False,
    details="via_upstream",
    has_timed_out=False,
    is_filtered=True,
    failure=None,
    warnings=(),
    log=(LogLine(LogLevel.INFO, b"hello"), LogLine(LogLevel.ERROR, b"\xff broken")),
    metrics=(
        Metric(MetricType.COUNTER, b"requests", 2),
        Metric(MetricType.HISTOGRAM, b"sizes", recorded=[1, 5]),
    ),
    callouts=(
        Callout(
            CalloutKind.HTTP,
            "auth",
            [(b":method", b"POST"), (b":path", b"/check"), (b"x-b", b"c")],
            b"body",
        ),
    ),
    doubts=(),
    fuel=1,
)  # fmt: skip


def mismatches(expected: Any, found: Exchange = FOUND) -> dict[str, tuple[str, ...]]:
    expect = msgspec.convert(expected, suite.Expect)
    return {each.path: each.lines for each in exchange_mismatches(expect, found)}


@pytest.mark.parametrize(
    "expected",
    [
        {},
        {"request": {"method": "GET", "path": {"regex": "^/x$"}, "authority": {"contains": "a"}}},
        {"request": {"headers": {"X-A": ["1", "2"], "x-b": {"absent": True}}}},
        {"request": {"headers": {"x-a": {"equals": "2"}}, "body": {"absent": True}}},
        {"request": {"body": ""}},
        {"response": {"status": 200, "headers": {"x-empty": "", "x-a": {"absent": True}}}},
        {"response": {"headers": {"x-empty": {"absent": False}}}},
        {"response": {"body": {"json": {"a": [1, {}], "c": 2.0}}}},
        {"localReply": False},
        {"logs": ["hello", {"level": "error", "contains": "broken"}], "noLogs": ["hell"]},
        {"metrics": {"requests": 2, "sizes": [1, 5], "other": None}},
        {"callouts": [{"cluster": "auth", "method": "POST", "headers": {"x-b": "c"}, "body": "body"}]},
    ],
    ids=str,
)  # fmt: skip
def test_matching_values_are_no_mismatch(expected: Any) -> None:
    assert mismatches(expected) == {}


@pytest.mark.parametrize(
    ("expected", "path", "lines"),
    [
        ({"request": {"path": "/y"}}, "request.path", ("- /y", "+ /x")),
        ({"request": {"headers": {"x-a": "1"}}}, "request.headers.x-a", ("- 1", "+ 1", "+ 2")),
        ({"request": {"headers": {"x-b": "1"}}}, "request.headers.x-b", ("- 1", "+ (absent)")),
        (
            {"request": {"headers": {"x-a": {"regex": "3"}}}},
            "request.headers.x-a",
            ("- regex 3", "+ 1", "+ 2"),
        ),
        (
            {"request": {"headers": {"x-a": {"absent": True}}}},
            "request.headers.x-a",
            ("- (absent)", "+ 1"),
        ),
        (
            {"response": {"headers": {"x-empty": {"absent": True}}}},
            "response.headers.x-empty",
            ("- (absent)", "+ (empty)"),
        ),
        (
            {"request": {"forwarded": False}},
            "request.forwarded",
            ("the service got the whole request",),
        ),
        ({"response": {"status": 404}}, "response.status", ("- 404", "+ 200")),
        (
            {"response": {"body": {"json": {"a": [1, {"b": False}], "d": "x"}}}},
            "response.body",
            ("- $.a[1].b: false", "+ $.a[1].b: true", '- $.d: "x"', "+ $.d: (absent)"),
        ),
        ({"request": {"body": {"json": 1}}}, "request.body", ("- JSON", "+ (empty)")),
        ({"localReply": True}, "localReply", ("- true", "+ false")),
        (
            {"logs": ["Hello"]},
            "logs[0]",
            ("- Hello", "+ info: hello", "+ error: \\xff broken"),
        ),
        (
            {"logs": [{"level": "info", "contains": "broken"}]},
            "logs[0]",
            ("- info: contains broken", "+ info: hello", "+ error: \\xff broken"),
        ),
        ({"noLogs": ["a", "hello"]}, "noLogs[1]", ("+ info: hello",)),
        ({"metrics": {"requests": 1}}, "metrics.requests", ("- 1", "+ 2")),
        ({"metrics": {"other": 1}}, "metrics.other", ("- 1", "+ (absent)")),
        ({"metrics": {"sizes": None}}, "metrics.sizes", ("- (absent)", "+ [1, 5]")),
        ({"callouts": []}, "callouts", ("- 0 calls", "+ auth: POST /check")),
        ({"callouts": [{"path": "/"}]}, "callouts[0].path", ("- /", "+ /check")),
        ({"failure": {"contains": "x"}}, "failure", ("- contains x", "+ (absent)")),
    ],
    ids=str,
)
def test_difference_has_field_and_both_values(
    expected: Any, path: str, lines: tuple[str, ...]
) -> None:
    assert mismatches(expected) == {f"expect.{path}": lines}


def test_long_texts_differ_line_by_line() -> None:
    message = Message(((":status", "200"),), b"a\nb\nc\nd\ne\nf\n", (), True)
    found = replace(FOUND, response=message)
    lines = mismatches({"response": {"body": "a\nb\nc\nd\nE\nf\n"}}, found)["expect.response.body"]
    assert lines == ("  c", "  d", "- E", "+ e", "  f")


def test_failure_of_the_module_is_a_mismatch_unless_it_is_expected() -> None:
    failed = replace(FOUND, failure=Failure(FailureKind.TRAP, "it panicked", ()))
    assert mismatches({}, failed) == {"expect.failure": ("the module failed: it panicked",)}
    assert mismatches({"failure": {"contains": "panicked"}}, failed) == {}


def test_reset_stream_and_request_that_is_cut_are_mismatches() -> None:
    assert FOUND.request is not None
    cut = replace(FOUND, response=None, request=replace(FOUND.request, is_complete=False))
    assert mismatches({"response": {"status": 200}}, cut) == {
        "expect.response": ("the client got no response: the stream was reset",)
    }
    assert mismatches({"request": {"path": "/x"}}, cut) == {
        "expect.request.forwarded": ("the service did not get the whole request",)
    }
    assert mismatches({"request": {"forwarded": False}}, cut) == {}


@pytest.mark.parametrize(
    ("wanted", "found", "equal"),
    [
        (1, 1.0, True),
        (1, True, False),
        (None, None, True),
        ([], [], True),
        ([1], [1, 2], False),
        ({}, {"a": 1}, True),
        ({"a": None}, {}, False),
        ({}, [], False),
    ],
)
def test_json_is_compared_as_a_subset(wanted: Any, found: Any, equal: bool) -> None:
    assert (not list(json_differences(wanted, found))) is equal


@pytest.mark.parametrize(
    ("expected", "refused", "found"),
    [
        ({}, None, []),
        ({}, "returned 0", [Mismatch("start", ("- Starts", "+ Refused: returned 0"))]),
        ({"outcome": "Refused"}, None, [Mismatch("start", ("- Refused", "+ Starts"))]),
        ({"outcome": "Refused", "message": {"regex": "ed 0$"}}, "returned 0", []),
        (
            {"outcome": "Refused", "message": "trap"},
            "returned 0",
            [Mismatch("start.message", ("- trap", "+ returned 0"))],
        ),
        (
            {"logs": [{"contains": "b"}]},
            None,
            [Mismatch("start.logs[0]", ("- contains b", "+ warning: a"))],
        ),
    ],
    ids=str,
)
def test_start_is_compared(expected: Any, refused: str | None, found: list[Mismatch]) -> None:
    start = msgspec.convert(expected, suite.ExpectedStart)
    log = [LogLine(LogLevel.WARNING, b"a")]
    assert list(start_mismatches(start, refused=refused, log=log)) == found
