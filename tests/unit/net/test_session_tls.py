"""ObjectSession: certificates, servers with and without TLS, proxies."""

import asyncio
import ssl
from pathlib import Path

import pytest

from autowasm.net.pools import Pools
from autowasm.net.proxy import EnvironmentProxies
from autowasm.net.session import ObjectSession
from autowasm.settings import Outgoing
from tests.fakes.forwardproxy import ForwardProxy
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.fakes.tlsserver import TlsServer
from tests.parts.certificates import Authority
from tests.unit.net.objectsessions import LIMITS, failure, opened, read


async def test_only_trusted_certificates_are_accepted(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(body=b"module")

    files = await asyncio.to_thread(Authority().issue, tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    async with ScriptedServer(script, tls=context) as server:
        async with opened(ca_file=files.authority) as session:
            assert await read(session, server.url) == b"module"
        async with opened() as session:
            error = await failure(session, f"{server.url}/?secret")
    assert error.reason == "CertificateInvalid"


async def test_https_does_not_redirect_to_http(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(302, headers={"Location": "http://127.0.0.1/x?secret"})

    files = await asyncio.to_thread(Authority().issue, tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    async with (
        ScriptedServer(script, tls=context) as server,
        opened(ca_file=files.authority) as session,
    ):
        error = await failure(session, server.url)
    assert "from https to plain http" in str(error)


async def test_an_object_is_asked_for_through_the_proxy_of_a_person(tmp_path: Path) -> None:
    files = Authority().issue(tmp_path, hosts=("objects.example",))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)

    async def script(exchange: Exchange) -> None:
        await exchange.send(body=b"module")

    async with ScriptedServer(script, tls=context) as server, ForwardProxy(server.host) as proxy:
        proxies = EnvironmentProxies.read({"HTTPS_PROXY": proxy.host})
        with Pools() as pools:
            async with ObjectSession(
                outgoing=Outgoing(ca_file=files.authority),
                limits=LIMITS,
                pools=pools,
                policy=None,
                proxies=proxies,
            ) as session:
                assert await read(session, "https://objects.example/m.wasm") == b"module"
                assert await read(session, f"https://{server.host}/m.wasm") == b"module"
        assert proxy.asked == ["CONNECT objects.example:443 HTTP/1.1"], "loopback is asked directly"


async def test_a_proxy_that_refuses_an_object_is_named() -> None:
    async with ForwardProxy("127.0.0.1:1", refuses_with=407) as proxy:
        proxies = EnvironmentProxies.read({"HTTPS_PROXY": f"http://bob:secret@{proxy.host}"})
        with Pools() as pools:
            async with ObjectSession(
                outgoing=Outgoing(), limits=LIMITS, pools=pools, policy=None, proxies=proxies
            ) as session:
                error = await failure(session, "https://objects.example/m.wasm")
    assert error.reason == "ProxyRefused"
    assert "status 407" in str(error)


def _server_context(folder: Path, *, newest: ssl.TLSVersion) -> ssl.SSLContext:
    files = Authority().issue(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    context.maximum_version = newest
    return context


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_server_that_wants_a_client_certificate_is_said_to_want_one(
    tmp_path: Path, newest: ssl.TLSVersion
) -> None:
    context = _server_context(tmp_path, newest=newest)
    context.verify_mode = ssl.CERT_REQUIRED
    trust = tmp_path / "server-ca.pem"
    with TlsServer(context) as server:
        async with opened(ca_file=trust) as session:
            error = await failure(session, f"https://{server.host}/m.wasm?secret=1")
    assert error.reason == "TlsFailed"
    assert "client certificate, which is not supported" in str(error)


async def test_a_server_without_tls_is_said_to_have_none() -> None:
    with TlsServer(None) as server:
        async with opened() as session:
            error = await failure(session, f"https://{server.host}/m.wasm?secret=1")
    assert "the server does not speak TLS" in str(error)
    assert "http:// in its URL" in str(error)


async def test_plain_http_to_a_port_with_tls_names_https(tmp_path: Path) -> None:
    with TlsServer(_server_context(tmp_path, newest=ssl.TLSVersion.TLSv1_3)) as server:
        async with opened() as session:
            error = await failure(session, f"http://{server.host}/m.wasm")
    assert "write https:// in its URL" in str(error)
