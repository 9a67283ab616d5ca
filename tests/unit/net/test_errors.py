"""Statuses and Retry-After."""

import dataclasses
import datetime

import pytest

from autowasm.errors import SourceDenied, SourceNotFound, SourceUnavailable
from autowasm.net.errors import (
    MAX_RETRY_AFTER,
    Operation,
    Responder,
    error_for,
    parse_message,
    retry_after,
    usual_meaning,
)

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
IMAGE = Responder(
    what="image r.example/a:b",
    not_found="ImageNotFound",
    unavailable="RegistryUnavailable",
    denied_hint="give a credential",
)


@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [
        (404, SourceNotFound, "ImageNotFound"),
        (410, SourceNotFound, "ImageNotFound"),
        (401, SourceDenied, "Unauthorized"),
        (403, SourceDenied, "Unauthorized"),
        (408, SourceUnavailable, "RegistryUnavailable"),
        (425, SourceUnavailable, "RegistryUnavailable"),
        (429, SourceUnavailable, "RegistryUnavailable"),
        (500, SourceUnavailable, "RegistryUnavailable"),
        (503, SourceUnavailable, "RegistryUnavailable"),
        (501, SourceUnavailable, "UnexpectedAnswer"),
        (204, SourceUnavailable, "UnexpectedAnswer"),
        (400, SourceUnavailable, "UnexpectedAnswer"),
        (418, SourceUnavailable, "UnexpectedAnswer"),
    ],
)
def test_status_code_selects_error_type_and_reason(
    status: int, expected: type[Exception], reason: str
) -> None:
    error = error_for(status, {}, answerer=IMAGE)
    assert type(error) is expected
    assert error.reason == reason
    assert "image r.example/a:b" in str(error)
    assert str(status) in str(error)


@pytest.mark.parametrize(
    ("status", "doing", "body", "says"),
    [
        (403, Operation.READ, b'{"errors":[{"code":"DENIED","message":"quota"}]}', "status 403 (DENIED: quota)"),
        (404, Operation.READ, b'{"errors":[{"code":"NAME_UNKNOWN","message":"no"}]}', "does not exist: status 404 (NAME_UNKNOWN: no)"),
        (404, Operation.UPLOAD, b"", "is not possible: status 404; the repository may have to be created first"),
        (405, Operation.UPLOAD, b"", "a read-only mirror or a pull-through cache does not accept uploads"),
        (405, Operation.READ, b"", "may not be a registry"),
        (409, Operation.UPLOAD_MANIFEST, b"", "immutable"),
        (412, Operation.UPLOAD_MANIFEST, b"", "immutable"),
        (413, Operation.UPLOAD, b"<html><title>413 Request Entity Too Large</title>", "413 Request Entity Too Large"),
        (413, Operation.UPLOAD, b"", "client_max_body_size"),
        (418, Operation.READ, b"I am a teapot\nsecond", "status 418 (I am a teapot)"),
        (429, Operation.READ, b"", "too many requests"),
        (502, Operation.READ, b"", "a proxy got no valid response"),
        (503, Operation.READ, b"<html><h1>No server is available</h1></html>", "status 503 (No server is available); overloaded"),
        (403, Operation.READ, b"<html><title>Blocked</title></html>", "status 403 (Blocked); the answer is a web page"),
        (418, Operation.READ, b"<html><title>Blocked</title></html>", "status 418 (Blocked); the answer is a web page"),
        (504, Operation.READ, b"", "no response in time"),
    ],
)  # fmt: skip
def test_message_has_the_status_code_its_meaning_and_the_servers_text(
    status: int, doing: Operation, body: bytes, says: str
) -> None:
    answerer = dataclasses.replace(IMAGE, doing=doing)
    message = str(error_for(status, {}, answerer=answerer, message=parse_message(body)))
    assert str(status) in message
    assert says in message


@pytest.mark.parametrize(
    "body",
    [
        b"Client sent an HTTP request to an HTTPS server.\n",
        b"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>",
        b"<p>Reason: You're speaking plain HTTP to an SSL-enabled server port.</p>",
        b"Bad Request\nThis combination of host and port requires TLS.",
    ],
)
def test_plain_http_to_a_port_with_tls_is_named_so(body: bytes) -> None:
    answerer = dataclasses.replace(IMAGE, tls_hint="write https://")
    error = error_for(400, {}, answerer=answerer, message=parse_message(body, "text/plain"))
    assert "TLS (https)" in str(error)
    assert "write https://" in str(error)


def test_no_advice_to_use_tls_where_tls_was_spoken() -> None:
    assert "TLS" not in str(error_for(400, {}, answerer=IMAGE))


def test_a_redirect_that_is_not_followed_says_where_it_leads() -> None:
    error = error_for(302, {"Location": "https://login.example/x?next=s3cret"}, answerer=IMAGE)
    assert "redirects to https://login.example/x; " in str(error)
    assert "s3cret" not in str(error)


@pytest.mark.parametrize("doing", list(Operation))
def test_meanings_are_one_phrase(doing: Operation) -> None:
    for status in range(100, 600):
        meaning = usual_meaning(status, doing=doing)
        assert not meaning.endswith(".")
        assert meaning.isprintable()


def test_later_answers_carry_retry_after() -> None:
    error = error_for(429, {"Retry-After": "17"}, answerer=IMAGE)
    assert isinstance(error, SourceUnavailable)
    assert error.retry_after == 17.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Friday, 02-Jan-26 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2026 03:05:05 -0000", 60.0),
        ("Fri, 02 Jan 2026 03:00:00 GMT", 0.0),
        ("9" * 400, MAX_RETRY_AFTER),
        ("-5", None),
        ("soon", None),
        ("²", None),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, now=NOW) == seconds
