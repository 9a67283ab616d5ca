"""What counts as a difference between the sandbox and a real Envoy, and which headers a filter added, changed and removed."""

from dataclasses import replace

import pytest

from autowasm.sandbox.http import Exchange
from autowasm.sandbox.message import Message
from autowasm.sandbox.protocol import LogLevel
from autowasm.sandbox.state import LogLine
from autowasm.trial.differences import Change, Difference, Header, compared, differences
from autowasm.trial.envoyrun import Observed, Passed
from autowasm.trial.http1 import Wire

DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
REQUEST = Message(
    ((":authority", "a"), (":path", "/x"), (":method", "GET"), ("x-a", "1")), b"", (), True
)
RESPONSE = Message(((":status", "200"), ("date", DATE), ("content-length", "0")), b"", (), True)
FOUND = Exchange(
    request=REQUEST,
    response=RESPONSE,
    is_local_reply=False,
    details="via_upstream",
    has_timed_out=False,
    is_filtered=True,
    failure=None,
    warnings=(),
    log=(),
    metrics=(),
    callouts=(),
    doubts=(),
    fuel=1,
)  # fmt: skip
LOG = (LogLine(LogLevel.INFO, b"one"), LogLine(LogLevel.ERROR, b"two\n"))
PASSED = Passed(
    Wire(("GET", "/x", "HTTP/1.1"), (("host", "a"), ("x-a", "1"))),
    Wire(
        ("HTTP/1.1", "200", "OK"),
        (("date", DATE.replace("01", "02")), ("transfer-encoding", "chunked")),
        b"",
    ),
)
OBSERVED = Observed("1.40.0", "", (PASSED,), (("info", "one"), ("error", "two\n")))


def observed(**changed: Wire | None) -> Observed:
    return replace(OBSERVED, exchanges=(replace(PASSED, **changed),))


def found(exchange: Exchange | None = FOUND, seen: Observed = OBSERVED) -> tuple[Difference, ...]:
    exchanges = None if exchange is None else (exchange,)
    return differences(exchanges, LOG, seen, start="refused")


def test_dates_and_the_headers_of_the_codec_are_not_compared() -> None:
    assert found() == ()


@pytest.mark.parametrize(
    ("seen", "difference"),
    [
        (
            observed(request=Wire(("PUT", "/x", "HTTP/1.1"), PASSED.request.headers)),  # type: ignore[union-attr]
            Difference("request line", "GET /x", "PUT /x"),
        ),
        (
            observed(request=Wire(("GET", "/x"), (("host", "a"),))),
            Difference("request header x-a", "1", "(absent)"),
        ),
        (
            observed(request=Wire(("GET", "/x"), (("host", "b"), ("x-a", "1")))),
            Difference("request header host", "a", "b"),
        ),
        (
            observed(request=None),
            Difference("request", "forwarded", "not forwarded"),
        ),
        (
            observed(response=None),
            Difference("response", "a response", "none"),
        ),
        (
            observed(response=Wire(("HTTP/1.1", "503", "x"), (("date", DATE),))),
            Difference("response status", "200", "503"),
        ),
        (
            observed(response=Wire(("HTTP/1.1", "200", "OK"), (("date", DATE),), b"\x1b")),
            Difference("response body", "(empty)", "\\x1b"),
        ),
        (
            replace(OBSERVED, log=(("info", "two"),)),
            Difference("log line 1", "info: one", "info: two"),
        ),
        (
            replace(OBSERVED, log=OBSERVED.log[:1]),
            Difference("log line 2", "error: two\\n", "(absent)"),
        ),
        (
            Observed("1.40.0", "Unable to create Wasm plugin"),
            Difference("start", "refused", "Unable to create Wasm plugin"),
        ),
    ],
)
def test_difference_has_its_place_and_both_values(seen: Observed, difference: Difference) -> None:
    assert found(seen=seen) == (difference,)


def test_of_several_requests_the_place_begins_with_the_number() -> None:
    refused = replace(PASSED, request=None)
    seen = replace(OBSERVED, exchanges=(PASSED, refused))
    assert differences((FOUND, FOUND), LOG, seen, start="starts") == (
        Difference("2. request", "forwarded", "not forwarded"),
    )


def test_start_is_compared_alone_if_either_refuses() -> None:
    assert found(None, Observed("1.40.0", "Unable to create")) == ()
    assert found(None) == (Difference("start", "refused", "starts"),)


A, B, C = ("a", "1"), ("b", "2"), ("c", "3")


@pytest.mark.parametrize(
    ("before", "after", "marks"),
    [
        ([A, B], [A, B], "  "),
        ([A], [A, B], " +"),
        ([A, B], [B], " -"),
        ([A], [("a", "2")], "~"),
        ([], [A], "+"),
        ([A, B], [B, A], "  "),
        ([A], [A, A], " +"),
        ([A, A], [A], " -"),
        ([("a", "1"), ("a", "2")], [("a", "2"), ("a", "3")], " ~"),
    ],
    ids=str,
)
def test_headers_are_marked(
    before: list[tuple[str, str]], after: list[tuple[str, str]], marks: str
) -> None:
    shown = {Change.SAME: " ", Change.ADDED: "+", Change.CHANGED: "~", Change.REMOVED: "-"}
    assert "".join(shown[each.change] for each in compared(before, after)) == marks


def test_changed_header_has_its_old_value_and_a_removed_one_is_last() -> None:
    assert compared([A, C, B], [("b", "4"), A]) == (
        Header("b", "4", Change.CHANGED, "2"),
        Header("a", "1"),
        Header("c", "3", Change.REMOVED),
    )


def test_nothing_is_a_change_without_another_message() -> None:
    assert compared(None, [A]) == (Header("a", "1"),)


def test_later_date_is_no_change_and_a_missing_one_is() -> None:
    dated = [("date", "Thu, 01 Jan 2026 00:00:00 GMT")]
    later = compared(dated, [("date", "Thu, 01 Jan 2026 00:00:01 GMT")])
    assert [each.change for each in later] == [Change.SAME]
    assert [each.change for each in compared(dated, [])] == [Change.REMOVED]
