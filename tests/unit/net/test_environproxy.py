"""HTTPS_PROXY, HTTP_PROXY and NO_PROXY as golang.org/x/net/http/httpproxy reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autowasm.errors import UsageError
from autowasm.net.proxy import EnvironmentProxies, NoProxy, Proxy

PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "direct"),
    [
        # The table of proxy_test.go, and the documentation of NO_PROXY there.
        ("", "localhost", 80, True),
        ("", "127.0.0.1", 80, True),
        ("", "127.7.7.7", 80, True),
        ("", "::1", 80, True),
        ("", "[::1]", 80, True),
        ("", "example.com", 80, False),
        ("*", "example.com", 80, True),
        ("a.example, * ,b", "example.com", 80, True),
        ("foobar.com", "foobar.com", 80, True),
        ("foobar.com", "www.foobar.com", 80, True),
        ("foobar.com", "foofoobar.com", 80, False),
        ("foobar.com", "foobar.com.evil", 80, False),
        (".barbaz.net", "www.barbaz.net", 80, True),
        (".barbaz.net", "barbaz.net", 80, False),
        ("*.barbaz.net", "www.barbaz.net", 80, True),
        ("*.barbaz.net", "barbaz.net", 80, False),
        ("FooBar.com", "www.fooBAR.COM.", 80, True),
        (" foobar.com ,x", "foobar.com", 80, True),
        ("foobar.com:443", "foobar.com", 443, True),
        ("foobar.com:443", "foobar.com", 80, False),
        (".foobar.com:443", "a.foobar.com", 443, True),
        ("192.168.1.1", "192.168.1.1", 80, True),
        ("192.168.1.1", "192.168.1.11", 80, False),
        ("192.168.1.1:1234", "192.168.1.1", 1234, True),
        ("192.168.1.1:1234", "192.168.1.1", 80, False),
        ("192.168.1.0/24", "192.168.1.77", 80, True),
        ("192.168.1.0/24", "192.168.2.77", 80, False),
        ("192.168.1.0/24", "192.168.1.77.example", 80, False),
        ("2001:db8::52:0:2d1", "[2001:db8::52:0:2d1]", 80, True),
        ("[2001:db8::52:0:2d1]:5000", "2001:db8::52:0:2d1", 5000, True),
        ("[2001:db8::52:0:2d1]:5000", "2001:db8::52:0:2d1", 80, False),
        ("2001:db8::/32", "2001:db8::1", 80, True),
        ("fe80::/10", "2001:db8::1", 80, False),
        (":443", "example.com", 443, False),
        (",,", "example.com", 80, False),
        ("192.168.1.0/99", "192.168.1.0", 80, False),
    ],
)  # fmt: skip
def test_no_proxy_is_read_as_go_reads_it(no_proxy: str, host: str, port: int, direct: bool) -> None:
    assert NoProxy.parse(no_proxy).covers(host, port) is direct


def test_the_variable_of_the_scheme_counts_and_the_upper_case_name_wins() -> None:
    proxies = EnvironmentProxies.read(
        {
            "HTTPS_PROXY": PROXY,
            "https_proxy": "http://other:1",
            "http_proxy": "plain.example:8080",
            "no_proxy": "direct.example",
        }
    )
    assert proxies.proxy_for("r.example", 443, tls=True) == Proxy("proxy.example", 3128)
    assert proxies.proxy_for("r.example", 80, tls=False) == Proxy("plain.example", 8080)
    assert proxies.proxy_for("direct.example", 443, tls=True) is None
    assert EnvironmentProxies.read({"HTTPS_PROXY": PROXY}).proxy_for("r", 80, tls=False) is None
    assert EnvironmentProxies.read({"ALL_PROXY": PROXY}).proxy_for("r", 443, tls=True) is None
    assert EnvironmentProxies.read({"HTTPS_PROXY": " "}).proxy_for("r", 443, tls=True) is None


@pytest.mark.parametrize(
    "value",
    [
        "https://bob:s3cret@proxy.example:3128",
        "socks5://bob:s3cret@proxy.example:1080",
        "http://bob:s3cret@proxy.example:99999",
        "http://bob:s3cret@[::1",
        "bob:s3cret@",
        "bob:s3cret://proxy.example",
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable_where_it_counts(value: str) -> None:
    proxies = EnvironmentProxies.read({"HTTPS_PROXY": value, "NO_PROXY": "direct.example"})
    assert proxies.proxy_for("direct.example", 443, tls=True) is None
    assert proxies.proxy_for("localhost", 5000, tls=True) is None
    with pytest.raises(UsageError, match=r"^HTTPS_PROXY: ") as caught:
        proxies.proxy_for("r.example", 443, tls=True)
    assert "s3cret" not in str(caught.value) + repr(proxies)


@given(st.text(max_size=200), st.text(max_size=60), st.integers(1, 65535))
def test_any_no_proxy_is_read(no_proxy: str, host: str, port: int) -> None:
    assert NoProxy.parse(no_proxy).covers(host, port) in {True, False}
    assert NoProxy.parse(f"{no_proxy},*").covers(host, port)
