"""ObjectSession against a server that does what it should not."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autowasm.errors import (
    AddressBlocked,
    AutoWasmError,
    ContentRejected,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
)
from autowasm.limits import MIB, Limits
from autowasm.net.environproxy import EnvironmentProxies
from autowasm.net.policy import AddressPolicy
from autowasm.net.pools import Pools
from autowasm.net.session import ObjectSession
from autowasm.settings import Outgoing
from tests.fakes.handshakes import HandshakeServer
from tests.fakes.proxy import ForwardProxy
from tests.fakes.scripted import Exchange, ScriptedServer
from tests.parts.certificates import Authority

LIMITS = Limits(
    connect_timeout=1.0,
    answer_timeout=0.5,
    fetch_timeout=5.0,
    minimum_rate=1000,
    minimum_rate_after=0.4,
    layer_bytes=MIB,
)
LOOPBACK = AddressPolicy(allow=["127.0.0.0/8", "::1"])


@contextlib.asynccontextmanager
async def opened(
    *,
    limits: Limits = LIMITS,
    policy: AddressPolicy | None = LOOPBACK,
    ca_file: Path | None = None,
    on_request: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[ObjectSession]:
    with Pools() as pools:
        outgoing = Outgoing(ca_file=ca_file)
        async with ObjectSession(
            outgoing=outgoing, limits=limits, pools=pools, policy=policy, on_request=on_request
        ) as session:
            yield session


async def read(session: ObjectSession, url: str) -> bytes:
    async with session.stream_get(url) as stream:
        return b"".join([chunk async for chunk in stream])


async def failure(session: ObjectSession, url: str) -> AutoWasmError:
    with pytest.raises(AutoWasmError) as caught:
        await read(session, url)
    assert "secret" not in str(caught.value)
    return caught.value


async def test_streams_the_bytes_and_shows_the_validators() -> None:
    body = bytes(range(256)) * 2000

    async def script(exchange: Exchange) -> None:
        await exchange.send(body=body, headers={"ETag": '"a"', "Last-Modified": "yesterday"})

    async with (
        ScriptedServer(script) as server,
        opened() as session,
        session.stream_get(f"{server.url}/m.wasm?secret=%2Fx+y") as stream,
    ):
        assert (stream.etag, stream.last_modified) == ('"a"', "yesterday")
        assert stream.content_length == len(body)
        assert b"".join([chunk async for chunk in stream]) == body
    [request] = server.requests
    assert request.target == "/m.wasm?secret=%2Fx+y", "a signed query arrives as it was signed"
    assert request.headers["accept-encoding"] == "identity"
    assert "cookie" not in request.headers


@pytest.mark.parametrize("value", ["\x80\xff", '"\xe9"', f'"{"x" * 1023}"', '"a\tb"'])
async def test_validators_that_cannot_be_kept_count_as_none(value: str) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(body=b"x", headers={"ETag": value, "Last-Modified": value})

    async with (
        ScriptedServer(script) as server,
        opened() as session,
        session.stream_get(f"{server.url}/m.wasm") as stream,
    ):
        assert (stream.etag, stream.last_modified) == (None, None)


async def test_bytes_are_not_decompressed_on_the_way() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(body=b"\x1f\x8bnot really", headers={"Content-Encoding": "gzip"})

    async with ScriptedServer(script) as server, opened() as session:
        assert await read(session, server.url) == b"\x1f\x8bnot really"


async def test_follows_redirects_to_the_end() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.request.target == "/end":
            await exchange.send(body=b"module")
        else:
            await exchange.send(302, headers={"Location": "/end", "Set-Cookie": "a=b"})

    told: list[str] = []
    async with ScriptedServer(script) as server, opened(on_request=told.append) as session:
        assert await read(session, f"{server.url}/start") == b"module"
        assert told == [server.host] * 2
    assert "cookie" not in server.requests[1].headers


async def test_stops_at_the_redirect_limit() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(302, headers={"Location": "/again?secret"})

    async with ScriptedServer(script) as server, opened() as session:
        error = await failure(session, server.url)
    assert error.reason == "TooManyRedirects"
    assert len(server.requests) == LIMITS.redirects + 1


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://0.0.0.0/",
    ],
)
async def test_a_redirect_to_metadata_is_blocked(target: str) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(302, headers={"Location": target})

    async with ScriptedServer(script) as server, opened() as session:
        error = await failure(session, server.url)
    assert isinstance(error, AddressBlocked)
    assert "never allowed" in str(error)


async def test_a_redirect_to_another_scheme_is_blocked() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(302, headers={"Location": "file:///etc/passwd"})

    async with ScriptedServer(script) as server, opened() as session:
        assert isinstance(await failure(session, server.url), AddressBlocked)


@pytest.mark.parametrize("target", ["http://xn--a/", "http://a..b/"])
async def test_a_redirect_to_a_host_that_cannot_be_is_told_so(target: str) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(302, headers={"Location": target})

    async with ScriptedServer(script) as server, opened() as session:
        error = await failure(session, server.url)
    assert target.rstrip("/") in str(error)
    assert "not HTTP" not in str(error)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_loopback_is_blocked_by_default_before_anything_is_sent(host: str) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(body=b"inside")

    async with ScriptedServer(script) as server, opened(policy=AddressPolicy()) as session:
        port = server.host.rpartition(":")[2]
        error = await failure(session, f"http://{host}:{port}/?secret")
    assert isinstance(error, AddressBlocked)
    assert "--allow-private-host" in str(error)
    assert server.connections == 0


async def test_without_a_policy_loopback_is_open() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(body=b"mine")

    async with ScriptedServer(script) as server, opened(policy=None) as session:
        assert await read(session, server.url) == b"mine"


@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [
        (404, SourceNotFound, "ObjectNotFound"),
        (410, SourceNotFound, "ObjectNotFound"),
        (403, SourceDenied, "Unauthorized"),
        (503, SourceUnavailable, "ObjectUnavailable"),
        (206, SourceUnavailable, "UnexpectedAnswer"),
        (304, SourceUnavailable, "UnexpectedAnswer"),
    ],
)
async def test_a_status_becomes_the_right_error(
    status: int, expected: type[AutoWasmError], reason: str
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(status)

    async with ScriptedServer(script) as server, opened() as session:
        error = await failure(session, f"{server.url}/x?secret")
    assert (type(error), error.reason) == (expected, reason)


async def test_retry_after_is_passed_on() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(429, headers={"Retry-After": "30"})

    async with ScriptedServer(script) as server, opened() as session:
        error = await failure(session, server.url)
    assert isinstance(error, SourceUnavailable)
    assert error.retry_after == 30.0


async def test_no_answer_ends_long_before_the_fetch_would() -> None:
    limits = replace(LIMITS, fetch_timeout=600)
    async with ScriptedServer(Exchange.hang) as server, opened(limits=limits) as session:
        error = await failure(session, f"{server.url}/x?secret")
        await server.all_gone()
    assert error.reason == "Timeout"


async def test_an_answer_header_that_drips_ends_in_time() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        await exchange.drip(b"x", every=0.02)

    async with ScriptedServer(script) as server, opened() as session:
        assert (await failure(session, server.url)).reason == "Timeout"
        await server.all_gone()


@pytest.mark.parametrize("every", [0.02, 60.0])
async def test_a_body_that_drips_or_stops_is_cut(every: float) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Length": "100000"})
        await exchange.drip(b"x", every=every)

    limits = replace(LIMITS, fetch_timeout=600)
    async with ScriptedServer(script) as server, opened(limits=limits) as session:
        began = time.monotonic()
        error = await failure(session, f"{server.url}/x?secret")
        assert time.monotonic() - began > 0.35
        await server.all_gone()
    assert error.reason == "TooSlow"


async def test_the_callers_own_slowness_is_not_the_servers() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(body=b"x" * 200_000)

    total = 0
    async with (
        ScriptedServer(script) as server,
        opened() as session,
        session.stream_get(server.url) as stream,
    ):
        async for chunk in stream:
            if not total:
                await asyncio.sleep(LIMITS.minimum_rate_after * 1.5)
            total += len(chunk)
    assert total == 200_000


async def test_the_whole_fetch_has_a_deadline() -> None:
    limits = Limits(fetch_timeout=0.3, minimum_rate=1, minimum_rate_after=10)

    async def script(exchange: Exchange) -> None:
        await exchange.head(200, {})
        await exchange.drip(b"x" * 1000, every=0.01)

    async with ScriptedServer(script) as server, opened(limits=limits) as session:
        error = await failure(session, f"{server.url}/x?secret")
        await server.all_gone()
    assert (error.reason, "0.3 s" in str(error)) == ("Timeout", True)


async def test_an_endless_body_is_cut_at_the_limit() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(200, {"Connection": "close"})
        await exchange.drip(b"x" * 65536, every=0)

    async with ScriptedServer(script) as server, opened() as session:
        error = await failure(session, f"{server.url}/x?secret")
        await server.all_gone()
    assert isinstance(error, ContentRejected)
    assert error.reason == "TooLarge"


async def test_an_announced_size_beyond_the_limit_is_not_even_read() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Length": str(LIMITS.layer_bytes + 1)})
        await exchange.hang()

    async with ScriptedServer(script) as server, opened() as session:
        assert (await failure(session, server.url)).reason == "TooLarge"


async def test_a_body_cut_short_is_noticed() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Length": "1000"})
        exchange.writer.write(b"x" * 10)
        exchange.writer.close()

    async with ScriptedServer(script) as server, opened() as session:
        error = await failure(session, f"{server.url}/x?secret")
    assert (type(error), error.reason) == (SourceUnavailable, "ObjectUnavailable")


async def test_an_endless_error_page_is_not_read() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(404, {})
        await exchange.drip(b"x" * 65536, every=0)

    async with ScriptedServer(script) as server, opened() as session:
        assert isinstance(await failure(session, server.url), SourceNotFound)
        await server.all_gone()


async def test_what_is_not_http_is_said_so() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.writer.write(b"SSH-2.0-x\r\n\r\n")

    async with ScriptedServer(script) as server, opened() as session:
        assert (await failure(session, server.url)).reason == "ObjectUnavailable"


async def test_a_refused_connection_is_unavailable() -> None:
    async with ScriptedServer(Exchange.hang) as server:
        url = server.url
    async with opened() as session:
        error = await failure(session, f"{url}/x?secret")
    assert (type(error), error.reason) == (SourceUnavailable, "ObjectUnavailable")


async def test_a_name_that_does_not_exist_is_unavailable() -> None:
    async with opened() as session:
        error = await failure(session, "http://does-not-exist.invalid/x?secret")
    assert error.reason == "ObjectUnavailable"


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


async def test_cancelling_a_stream_closes_its_connection() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(200, {})
        await exchange.drip(b"x" * 1000, every=0.01)

    async with ScriptedServer(script) as server, opened() as session:
        task = asyncio.create_task(read(session, server.url), name="read")
        async with asyncio.timeout(5):
            while not server.requests:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.all_gone()


S3_EXPIRED = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>'
S3_TOKEN = (
    b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
)
SIGNED = "?X-Amz-Date=20250101T000000Z&X-Amz-Expires=60&X-Amz-Signature=secret"


@pytest.mark.parametrize(
    ("status", "body", "query", "says"),
    [
        (403, S3_EXPIRED, SIGNED, ["AccessDenied: Request has expired", "has expired at 2025-01-01T00:01:00Z"]),
        (403, S3_EXPIRED, "?X-Amz-Signature=secret", ["Request has expired", "the signature in its URL has expired"]),
        (400, S3_TOKEN, SIGNED, ["status 400 (ExpiredToken: The provided token has expired.)", "new URL into the spec"]),
        (403, b"", "?sv=1&sig=secret", ["it may have expired, or the URL was changed"]),
        (403, b"", "", ["use a URL that needs none, or a signed one"]),
        (404, b"<Error><Code>NoSuchKey</Code><Message>no key</Message></Error>", "", ["NoSuchKey: no key"]),
        (418, b"<html><title>Blocked by policy</title></html>", "", ["status 418 (Blocked by policy)", "web page"]),
        (400, b"Client sent an HTTP request to an HTTPS server.", "", ["TLS (https); write https:// in its URL"]),
    ],
)  # fmt: skip
async def test_a_refusal_has_the_words_of_the_object_store(
    status: int, body: bytes, query: str, says: list[str]
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(status, body)

    async with ScriptedServer(script) as server, opened() as session:
        message = str(await failure(session, f"{server.url}/m.wasm{query}"))
    for part in says:
        assert part in message, message
    if query:
        assert "or a signed one" not in message


async def test_an_error_body_that_drips_delays_the_status_by_its_timeout_only() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(403, {"Content-Length": "1000"})
        await exchange.drip(b"x", every=0.05)

    limits = replace(LIMITS, error_body_timeout=0.3)
    async with ScriptedServer(script) as server, opened(limits=limits) as session:
        error = await failure(session, f"{server.url}/m.wasm")
        await server.all_gone()
    assert isinstance(error, SourceDenied)


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
    with HandshakeServer(context) as server:
        async with opened(ca_file=trust) as session:
            error = await failure(session, f"https://{server.host}/m.wasm?secret=1")
    assert error.reason == "TlsFailed"
    assert "client certificate, which is not supported" in str(error)


async def test_a_server_without_tls_is_said_to_have_none() -> None:
    with HandshakeServer(None) as server:
        async with opened() as session:
            error = await failure(session, f"https://{server.host}/m.wasm?secret=1")
    assert "it does not speak TLS" in str(error)
    assert "http:// in its URL" in str(error)


async def test_plain_http_to_a_port_with_tls_names_https(tmp_path: Path) -> None:
    with HandshakeServer(_server_context(tmp_path, newest=ssl.TLSVersion.TLSv1_3)) as server:
        async with opened() as session:
            error = await failure(session, f"http://{server.host}/m.wasm")
    assert "write https:// in its URL" in str(error)


async def test_a_value_of_the_query_that_a_server_sends_back_is_not_shown() -> None:
    async def script(exchange: Exchange) -> None:
        said = "<Error><Code>AuthenticationFailed</Code><Message>not sig=secret/value&amp;sp=r nor secret%2Fvalue</Message></Error>"
        await exchange.send(403, said.encode(), {"Content-Type": "application/xml"})

    async with ScriptedServer(script) as server, opened() as session:
        error = await failure(session, f"{server.url}/m.wasm?sig=secret%2Fvalue&sv=2024")
    assert "AuthenticationFailed" in str(error)


async def test_a_signature_that_a_redirect_made_is_not_blamed_on_the_spec() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.request.target == "/m.wasm":
            to = {"Location": "/o?se=2020-01-01T00:00Z&sig=secret"}
            await exchange.send(302, headers=to)
        else:
            await exchange.send(403, b"<Error><Code>AuthenticationFailed</Code></Error>")

    async with ScriptedServer(script) as server, opened() as session:
        error = await failure(session, f"{server.url}/m.wasm")
    assert "the server that redirects there must sign the URL again" in str(error)
    assert "spec" not in str(error)


@pytest.mark.parametrize(
    ("status", "code"),
    [(409, "PublicAccessNotPermitted"), (404, "ResourceNotFound")],
)
async def test_an_object_that_may_be_private_is_said_to_need_a_signed_url(
    status: int, code: str
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(status, f"<Error><Code>{code}</Code></Error>".encode())

    async with ScriptedServer(script) as server, opened() as session:
        error = await failure(session, f"{server.url}/m.wasm")
        signed = await failure(session, f"{server.url}/m.wasm?sig=secret&se=2099-01-01")
    assert "objects are fetched without credentials" in str(error)
    assert "objects are fetched without credentials" not in str(signed)
