"""Addresses to listen on."""

import resource
import socket

import pytest

from autowasm.errors import UsageError
from autowasm.server import app as sockets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[::]:8081", ("::", 8081)),
        (":8081", ("::", 8081)),
        ("*:0", ("::", 0)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_reads_addresses(text: str, expected: tuple[str, int]) -> None:
    assert sockets.parse_listen(text) == expected


@pytest.mark.parametrize(
    "text", ["", "8081", "::1:80", "host.example:80", "1.2.3.4:", "1.2.3.4:70000", "[::]:x", "1.2:3"]
)  # fmt: skip
def test_malformed_listen_address_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="cannot listen on"):
        sockets.parse_listen(text)


def test_all_addresses_means_both_ip_versions() -> None:
    with sockets.listening_socket("[::]:0", backlog=16) as listener:
        port = listener.getsockname()[1]
        assert listener.getblocking() is False
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            pass
        if listener.family == socket.AF_INET6:
            assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0


def test_falls_back_to_ipv4_where_there_is_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    # No machine that builds this project lacks IPv6 altogether; its absence has exactly this error.
    real = socket.socket

    def without_ipv6(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, kind)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    with sockets.listening_socket("[::]:0", backlog=16) as listener:
        assert listener.family == socket.AF_INET


def test_a_taken_port_is_named() -> None:
    with sockets.listening_socket("127.0.0.1:0", backlog=1) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=str(port)):
            sockets.listening_socket(f"127.0.0.1:{port}", backlog=1)


def test_raises_the_descriptor_limit_to_the_maximum() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[0]), before[1]))
        allowed = sockets.raise_descriptor_limit()
        assert allowed == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
