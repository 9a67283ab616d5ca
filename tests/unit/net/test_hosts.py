"""Lists of hosts as operators write them."""

import pytest

from autowasm.net.hosts import matches_host, names_host, split_port


@pytest.mark.parametrize(
    ("entries", "host", "named"),
    [
        (["r.example"], "r.example", True),
        (["R.example"], "r.EXAMPLE:5000", True),
        (["r.example:5000"], "r.example:5000", True),
        (["r.example:5000"], "r.example", False),
        (["r.example:5000"], "r.example:5001", False),
        (["*.example"], "r.example", False),
        (["[::1]"], "[::1]:80", True),
        (["::1"], "::1", True),
        ([], "r.example", False),
    ],
)
def test_names_host(entries: list[str], host: str, named: bool) -> None:
    assert names_host(entries, host) is named


@pytest.mark.parametrize(
    ("entry", "host", "matches"),
    [
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com:443", True),
        (".example.com", "a.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "aexample.com", False),
        ("*.example.com:8443", "a.example.com", False),
        ("*", "anything:1", True),
        ("example.com", "example.com.evil.example", False),
    ],
)
def test_matches_host(entry: str, host: str, matches: bool) -> None:
    assert matches_host(entry, host) is matches


@pytest.mark.parametrize(
    ("host", "parts"),
    [
        ("a:1", ("a", "1")),
        ("a", ("a", "")),
        ("[::1]:80", ("[::1]", "80")),
        ("::1", ("::1", "")),
        ("[::1]", ("[::1]", "")),
        ("a:b", ("a:b", "")),
    ],
)
def test_split_port(host: str, parts: tuple[str, str]) -> None:
    assert split_port(host) == parts
