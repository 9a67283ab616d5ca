"""Statuses and Retry-After."""

import datetime

import pytest

from autowasm.errors import SourceDenied, SourceNotFound, SourceUnavailable
from autowasm.net.answers import LONGEST_RETRY_AFTER, Answerer, error_for, retry_after

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
IMAGE = Answerer(
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
        (204, SourceUnavailable, "UnexpectedAnswer"),
        (400, SourceUnavailable, "UnexpectedAnswer"),
        (418, SourceUnavailable, "UnexpectedAnswer"),
    ],
)
def test_a_status_says_what_to_do(status: int, expected: type[Exception], reason: str) -> None:
    error = error_for(status, {}, answerer=IMAGE)
    assert type(error) is expected
    assert error.reason == reason
    assert "image r.example/a:b" in str(error)
    assert str(status) in str(error)


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
        ("Fri, 02 Jan 2026 03:00:00 GMT", 0.0),
        ("9" * 400, LONGEST_RETRY_AFTER),
        ("-5", None),
        ("soon", None),
        ("²", None),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, now=NOW) == seconds
