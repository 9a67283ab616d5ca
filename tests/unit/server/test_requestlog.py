"""Ids of requests, and their log lines."""

import re

import pytest
import structlog
from aiohttp.test_utils import make_mocked_request

from autowasm.server import requestlog

ENVOYS = "0f5c3c7e-6d0f-9d3b-8a55-0d2f6f1f2a11"


def test_envoys_id_is_taken() -> None:
    request = make_mocked_request("GET", "/wasm/x", headers={"x-request-id": ENVOYS})
    assert requestlog.request_id(request) == ENVOYS


@pytest.mark.parametrize(
    "given", ["", "short", "a" * 65, "with space in it", "tab\tin it here", "é" * 10]
)
def test_an_id_that_is_not_well_formed_is_replaced_once(given: str) -> None:
    request = make_mocked_request("GET", "/wasm/x", headers={"x-request-id": given})
    first = requestlog.request_id(request)
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert requestlog.request_id(request) == first


def test_only_answers_other_than_200_and_304_are_reported_and_never_with_a_query() -> None:
    log = requestlog.RequestLog()
    request = make_mocked_request("GET", "/wasm/x?token=secret", headers={"x-request-id": ENVOYS})
    with structlog.testing.capture_logs() as events:
        for status in (200, 304, 404):
            log.answered(request, status)
    (told,) = [event for event in events if event["log_level"] == "info"]
    assert (told["request_id"], told["path"], told["status"]) == (ENVOYS, "/wasm/x", 404)
    assert "secret" not in str(events)


def test_a_flood_is_reported_at_a_bounded_pace_and_counted() -> None:
    now = 0.0
    log = requestlog.RequestLog(now=lambda: now)
    request = make_mocked_request("GET", "/wasm/x")
    with structlog.testing.capture_logs() as events:
        for _ in range(1_000):
            log.answered(request, 404)
        now = 1.0
        log.answered(request, 404)
    assert len(events) == requestlog.LINES + 1
    assert events[-1]["suppressed"] == 1_000 - requestlog.LINES
