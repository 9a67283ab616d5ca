"""URLs in messages, and redirects."""

import pytest

from autowasm.errors import AddressBlocked, SourceUnavailable
from autowasm.net.urls import check_web_url, next_hop, origin, redact


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.example/x?X-Amz-Signature=secret", "https://a.example/x"),
        ("https://user:secret@a.example:8443/x#secret", "https://a.example:8443/x"),
        ("http://[::1]:5000/x", "http://[::1]:5000/x"),
        ("https://a.example:port/secret", "(a malformed URL)"),
        ("http://[::1/secret", "(a malformed URL)"),
        ("https://a.example/\x1b[31mred", "https://a.example/\\x1b[31mred"),
    ],
)
def test_redact_shows_only_where(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_redact_keeps_a_long_path_short() -> None:
    assert len(redact("https://a.example/" + "x" * 5000)) < 300


def test_origin_knows_default_ports_and_ignores_case() -> None:
    assert origin("HTTPS://A.example./x") == ("https", "a.example", 443)
    assert origin("http://a.example:80") == origin("http://a.example")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://a.example/x",
        "//a.example/x",
        "https:///x",
        "https://u:p@a.example/",
    ],
)
def test_only_plain_web_urls_are_accepted(url: str) -> None:
    with pytest.raises(AddressBlocked) as caught:
        check_web_url(url, what="the URL")
    assert caught.value.reason == "UrlNotAllowed"


def test_a_redirect_to_no_url_is_refused() -> None:
    with pytest.raises(AddressBlocked, match="redirects to an invalid URL") as caught:
        next_hop("https://a.example/x?secret", "http://[::1/z", hops=1, limit=5)
    assert caught.value.reason == "UrlNotAllowed"
    assert "secret" not in str(caught.value)


def test_next_hop_joins_relative_locations() -> None:
    assert next_hop("https://a.example/x/y?q=1", "../z", hops=1, limit=5) == "https://a.example/z"


def test_next_hop_may_go_up_to_https() -> None:
    target = next_hop("http://a.example/x", "https://b.example/y", hops=5, limit=5)
    assert target == "https://b.example/y"


def test_next_hop_refuses_a_step_down_to_http() -> None:
    with pytest.raises(AddressBlocked, match="from https to plain http"):
        next_hop("https://a.example/x", "http://a.example/x?secret", hops=1, limit=5)


def test_next_hop_refuses_other_schemes() -> None:
    with pytest.raises(AddressBlocked):
        next_hop("http://a.example/x", "file:///etc/passwd", hops=1, limit=5)


def test_next_hop_counts() -> None:
    with pytest.raises(SourceUnavailable) as caught:
        next_hop("http://a.example/x", "/y", hops=6, limit=5)
    assert caught.value.reason == "TooManyRedirects"


def test_a_redirect_to_nowhere_is_an_unexpected_answer() -> None:
    with pytest.raises(SourceUnavailable) as caught:
        next_hop("http://a.example/x", None, hops=1, limit=5)
    assert caught.value.reason == "UnexpectedAnswer"
