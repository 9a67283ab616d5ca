"""The operator's proxy: the requests through it, their form, and the requests that bypass it."""

import base64
import ssl
from pathlib import Path

import pytest
import requests

from autowasm.errors import AddressBlocked, SourceUnavailable, UsageError
from autowasm.limits import Limits
from autowasm.net.addresspolicy import AddressPolicy, Purpose
from autowasm.net.dialer import DialedAdapter, Dialer
from autowasm.net.pools import Pools
from autowasm.net.proxy import Proxy, ProxyRules, written_addresses
from autowasm.net.tls import client_context
from autowasm.net.transfer import Transfer, run_transfer
from tests.fakes.forwardproxy import ForwardProxy
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.parts.certificates import Authority

LIMITS = Limits(dns_timeout=60, connect_timeout=60)
LOGIN = "Basic " + base64.b64encode(b"us%er:p:w").decode()


async def ok(exchange: Exchange) -> None:
    await exchange.send(body=b"ok")


async def get(url: str, rules: ProxyRules, *, authority: Path | None = None) -> bytes:
    def work(_: Transfer) -> bytes:
        dialer = Dialer(
            names=pools.names,
            policy=AddressPolicy(),
            purpose=Purpose.REGISTRY,
            limits=LIMITS,
            proxies=rules,
        )
        context = client_context(*([authority] if authority else []))
        with requests.Session() as session:
            session.trust_env = False
            for scheme in ("http://", "https://"):
                session.mount(scheme, DialedAdapter(dialer=dialer, tls=lambda *_: context))
            with session.get(url, timeout=5, headers={"Authorization": "theirs"}) as response:
                return response.content

    with Pools(transfers=1) as pools:
        return await run_transfer(pools.transfer, work, what=url, deadline=10, limits=LIMITS)


def through(proxy: ForwardProxy, *exceptions: str, login: str = "") -> ProxyRules:
    return ProxyRules(Proxy.parse(f"http://{login}{proxy.host}"), exceptions)


async def test_plain_http_is_asked_of_the_proxy_with_the_whole_url() -> None:
    async with ScriptedServer(ok) as server, ForwardProxy(server.host, LOGIN) as proxy:
        rules = through(proxy, login="us%25er:p%3Aw@")
        assert await get("http://no.such.example/v2/?a=%2F", rules) == b"ok"
        assert proxy.asked == ["GET http://no.such.example/v2/?a=%2F HTTP/1.1"]
    assert server.requests[0].headers["host"] == "no.such.example"


async def test_https_goes_through_a_tunnel_and_the_proxy_sees_no_login_of_the_registry(
    tmp_path: Path,
) -> None:
    files = Authority().issue(tmp_path, hosts=("registry.example",))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    async with ScriptedServer(ok, tls=context) as server, ForwardProxy(server.host) as proxy:
        url = "https://registry.example/v2/"
        assert await get(url, through(proxy), authority=files.authority) == b"ok"
        assert proxy.asked == ["CONNECT registry.example:443 HTTP/1.1"]
        assert b"theirs" not in proxy.heads[0]
        with pytest.raises(requests.exceptions.SSLError):
            await get("https://other.example/", through(proxy), authority=files.authority)
    assert server.requests[0].headers["authorization"] == "theirs"
    assert "proxy-authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "[::ffff:169.254.169.254]",
        "metadata.google.internal",
        "localhost",
        "x.localhost.",
        "127.1",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_address_rules_apply_to_the_host_in_the_url(scheme: str, host: str) -> None:
    async with ForwardProxy("127.0.0.1:1") as proxy:
        with pytest.raises(AddressBlocked):
            await get(f"{scheme}://{host}/", through(proxy))
        assert proxy.asked == []


async def test_no_proxy_hosts_are_connected_directly_and_checked_by_the_policy() -> None:
    async with ScriptedServer(ok) as server, ForwardProxy(server.host) as proxy:
        with pytest.raises(AddressBlocked, match="loopback"):
            await get(server.url, through(proxy, "127.0.0.0/8"))
        assert proxy.asked == []


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "status 403"),
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000, "head of its response is too long"),
    ],
)
async def test_a_proxy_that_opens_no_tunnel_is_named(answer: bytes, says: str) -> None:
    async with ForwardProxy("127.0.0.1:1", answer=answer) as proxy:
        with pytest.raises(SourceUnavailable, match=says) as caught:
            await get("https://registry.example/", through(proxy, login="me:s3cret@"))
    assert caught.value.reason == "ProxyRefused"
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://p:1", "socks5://p:1", "p:3128", "http://", "http://p:x", "http://u:s3cret@p/x"]
)
def test_invalid_proxy_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UsageError, match="--registry-proxy") as caught:
        Proxy.parse(url)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(Proxy.parse("http://u:s3cret@p:1"))


@pytest.mark.parametrize(
    ("entry", "host", "direct"),
    [
        ("example.com", "example.com", True),
        ("example.com", "a.b.Example.com", True),
        (".example.com", "a.example.com", True),
        ("example.com", "badexample.com", False),
        ("*", "anything", True),
        ("example.com:5000", "example.com", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "example.com", False),
        ("fd00::/8", "fd00::1", True),
    ],
)
def test_exceptions_are_read_as_no_proxy_is(entry: str, host: str, direct: bool) -> None:
    rules = ProxyRules(Proxy.parse("http://proxy:3128"), (entry,))
    assert (rules.proxy_for(host, 443) is None) is direct


def test_an_ordinary_name_means_no_address() -> None:
    assert list(written_addresses("registry.example")) == []
