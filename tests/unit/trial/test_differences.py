"""What counts as a difference between the sandbox and a real Envoy."""

from dataclasses import replace

import pytest

from autowasm.sandbox.http import Exchange
from autowasm.sandbox.logs import LogLine
from autowasm.sandbox.message import Message
from autowasm.sandbox.protocol import LogLevel
from autowasm.trial.differences import Difference, differences
from autowasm.trial.envoyrun import Observed
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
OBSERVED = Observed(
    "1.40.0",
    "",
    Wire(("GET", "/x", "HTTP/1.1"), (("host", "a"), ("x-a", "1"))),
    Wire(
        ("HTTP/1.1", "200", "OK"),
        (("date", DATE.replace("01", "02")), ("transfer-encoding", "chunked")),
        b"",
    ),
    (("info", "one"), ("error", "two\n")),
)


def found(
    exchange: Exchange | None = FOUND, observed: Observed = OBSERVED
) -> tuple[Difference, ...]:
    return differences(exchange, LOG, observed, start="refused")


def test_dates_and_the_headers_of_the_codec_are_not_compared() -> None:
    assert found() == ()


@pytest.mark.parametrize(
    ("observed", "difference"),
    [
        (
            replace(OBSERVED, request=Wire(("PUT", "/x", "HTTP/1.1"), OBSERVED.request.headers)),  # type: ignore[union-attr]
            Difference("request line", "GET /x", "PUT /x"),
        ),
        (
            replace(OBSERVED, request=Wire(("GET", "/x"), (("host", "a"),))),
            Difference("request header x-a", "1", "(absent)"),
        ),
        (
            replace(OBSERVED, request=Wire(("GET", "/x"), (("host", "b"), ("x-a", "1")))),
            Difference("request header host", "a", "b"),
        ),
        (
            replace(OBSERVED, request=None),
            Difference("request", "forwarded", "not forwarded"),
        ),
        (
            replace(OBSERVED, response=None),
            Difference("response", "a response", "none"),
        ),
        (
            replace(OBSERVED, response=Wire(("HTTP/1.1", "503", "x"), (("date", DATE),))),
            Difference("response status", "200", "503"),
        ),
        (
            replace(OBSERVED, response=Wire(("HTTP/1.1", "200", "OK"), (("date", DATE),), b"\x1b")),
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
def test_difference_has_its_place_and_both_values(
    observed: Observed, difference: Difference
) -> None:
    assert found(observed=observed) == (difference,)


def test_start_is_compared_alone_if_either_refuses() -> None:
    assert found(None, Observed("1.40.0", "Unable to create")) == ()
    assert found(None) == (Difference("start", "refused", "starts"),)
