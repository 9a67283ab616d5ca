"""The expiry of a signed URL, and the hint for one that is refused."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autowasm.net.errors import NO_MESSAGE, ServerMessage
from autowasm.net.session import is_signed, query_secrets, signature_hint, signed_until

NOW = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("query", "until"),
    [
        ("X-Amz-Date=20260101T100000Z&X-Amz-Expires=3600&X-Amz-Signature=a", "2026-01-01T11:00:00"),
        (
            "X-Goog-Date=20260101T100000Z&X-Goog-Expires=60&X-Goog-Signature=a",
            "2026-01-01T10:01:00",
        ),
        ("x-oss-date=20260101T100000Z&x-oss-expires=60&x-oss-signature=a", "2026-01-01T10:01:00"),
        ("q-sign-time=1767261600;1767265200&q-signature=a", "2026-01-01T11:00:00"),
        ("AWSAccessKeyId=a&Expires=1767265200&Signature=b", "2026-01-01T11:00:00"),
        ("sv=2024&se=2026-01-01T11%3A00%3A00Z&sig=a", "2026-01-01T11:00:00"),
        ("se=2026-01-01&sig=a", "2026-01-01T00:00:00"),
        ("se=2026-01-01", None),
        ("X-Amz-Date=x&X-Amz-Expires=60", None),
        ("X-Amz-Date=20260101T100000Z&X-Amz-Expires=-1", None),
        ("X-Amz-Date=99991231T235959Z&X-Amz-Expires=60&X-Amz-Signature=a", None),
        ("Expires=never", None),
        ("Expires=0", "1970-01-01T00:00:00"),
        ("Expires=" + "9" * 12, None),
        ("se=2026-01-01T12%3A00%3A00%2B01%3A00&sig=a", "2026-01-01T11:00:00"),
        ("se=0001-01-01T00%3A00%3A00%2B01%3A00&sig=a", None),
        ("se=tomorrow&sig=a", None),
        ("&".join(f"x{number}=1" for number in range(300)) + "&Expires=1767265200", None),
        ("Expires=" + "9" * 400, None),
        ("", None),
    ],
)
def test_the_end_is_read_from_the_query(query: str, until: str | None) -> None:
    found = signed_until(f"https://b.example/o?{query}")
    assert found == (datetime.datetime.fromisoformat(f"{until}+00:00") if until else None)


@pytest.mark.parametrize(
    ("query", "message", "hint"),
    [
        ("", NO_MESSAGE, "use a URL that needs none, or a signed one"),
        ("version=3", NO_MESSAGE, "use a URL that needs none, or a signed one"),
        ("Expires=1767265200&Signature=b", NO_MESSAGE, "has expired at 2026-01-01T11:00:00Z"),
        (
            "Expires=1867265200&Signature=b",
            NO_MESSAGE,
            "may have expired, or the URL was changed",
        ),
        ("X-Amz-Signature=b", ServerMessage("AccessDenied", "Request has expired"), "has expired;"),
        (
            "sig=b",
            ServerMessage("AuthenticationFailed", "Signature not valid yet"),
            "check the clock",
        ),
        (
            "se=2026-01-01T12%3A00%3A00%2B01%3A00&sig=b",
            NO_MESSAGE,
            "has expired at 2026-01-01T11:00:00Z",
        ),
        (
            "sig=b",
            ServerMessage("SignatureDoesNotMatch", ""),
            "URL was changed after it was signed",
        ),
    ],
)
def test_the_advice_fits_the_url(query: str, message: ServerMessage, hint: str) -> None:
    found = signature_hint(f"https://b.example/o?{query}", message, now=NOW)
    assert hint in found
    if is_signed(f"https://b.example/o?{query}"):
        assert "a signed one" not in found, "the URL is signed already"


def test_the_secrets_of_a_query_are_known_as_written_and_as_meant() -> None:
    assert query_secrets("https://b.example/o?v=4&sig=abc%2Bdefgh") == ("abc%2Bdefgh", "abc+defgh")


def test_a_malformed_url_has_no_signature_and_no_secrets() -> None:
    malformed = "https://[::1/o?sig=abcdefghij&se=2026-01-01"
    assert not is_signed(malformed)
    assert signed_until(malformed) is None
    assert query_secrets(malformed) == ()


@given(
    st.sampled_from(["x-amz", "x-goog", "x-oss"]),
    st.datetimes().map(lambda at: f"{at:%Y%m%dT%H%M%SZ}".rjust(16, "0")),
    st.integers(0, 10**14),
)
def test_any_date_and_duration_is_read(prefix: str, date: str, seconds: int) -> None:
    until = signed_until(f"https://b.example/o?{prefix}-date={date}&{prefix}-expires={seconds}")
    assert until is None or until.tzinfo is not None


@given(st.text(max_size=200))
def test_any_query_is_read(query: str) -> None:
    until = signed_until(f"https://b.example/o?{query}")
    assert until is None or until.tzinfo is not None
