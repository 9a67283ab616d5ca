"""Answers of a server that are no success, as classes."""

import json
from typing import Any

import pytest

from autowasm.kube import errors
from autowasm.kube.errors import ApiError, from_response


def status(code: int, reason: str = "", message: str = "no", **details: Any) -> bytes:
    document = {"kind": "Status", "code": code, "reason": reason, "message": message}
    return json.dumps({**document, "details": details}).encode()


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (400, "BadRequest", errors.BadRequest),
        (401, "Unauthorized", errors.Unauthorized),
        (403, "Forbidden", errors.Forbidden),
        (404, "NotFound", errors.NotFound),
        (409, "Conflict", errors.Conflict),
        (409, "AlreadyExists", errors.AlreadyExists),
        (410, "Expired", errors.Expired),
        (410, "Gone", errors.Expired),
        (422, "Invalid", errors.Invalid),
        (429, "TooManyRequests", errors.TooManyRequests),
        (500, "InternalError", errors.ServerError),
        (503, "ServiceUnavailable", errors.ServerError),
        (504, "Timeout", errors.ServerError),
        (405, "MethodNotAllowed", ApiError),
        (302, "", errors.UnexpectedAnswer),
    ],
)
def test_each_status_is_a_class(code: int, reason: str, kind: type[ApiError]) -> None:
    error = from_response(code, status(code, reason), request="GET /api/v1/pods")
    assert type(error) is kind
    assert (error.code, error.reason) == (code, reason)
    assert str(error).startswith(f"GET /api/v1/pods: {code}")


def test_the_wait_of_the_header_stands_before_that_of_the_body() -> None:
    body = status(429, retryAfterSeconds=7)
    assert from_response(429, body).retry_after == 7
    assert from_response(429, body, retry_after=3).retry_after == 3
    assert from_response(429, status(429)).retry_after is None


@pytest.mark.parametrize(
    "body",
    [
        status(504, "Timeout", causes=[{"reason": "ResourceVersionTooLarge"}]),
        status(504, "Timeout", "Too large resource version: 9, current: 5"),
    ],
)
def test_a_position_from_the_future_is_distinguished_from_other_timeouts(body: bytes) -> None:
    assert type(from_response(504, body)) is errors.TooLargeResourceVersion


def test_a_terminating_namespace_is_distinguished_from_missing_rights() -> None:
    body = status(403, "Forbidden", causes=[{"reason": "NamespaceTerminating"}])
    error = from_response(403, body)
    assert isinstance(error, errors.Forbidden)
    assert error.namespace_terminating
    plain = from_response(403, status(403, "Forbidden"))
    assert isinstance(plain, errors.Forbidden)
    assert not plain.namespace_terminating


@pytest.mark.parametrize(
    "body", [b"", b"Unauthorized", b"<html>" + b"x" * 10_000, b"\xff\xfe", b"[]", b'{"a": 1}']
)
def test_a_body_that_is_no_status_does_no_harm(body: bytes) -> None:
    error = from_response(401, body)
    assert isinstance(error, errors.Unauthorized)
    assert len(str(error)) < 300


def test_a_long_text_is_cut_and_put_on_one_line() -> None:
    error = from_response(400, status(400, message="line\n" * 1000))
    assert "\n" not in str(error)
    assert len(str(error)) < 300
