"""ObjectSession: bytes, validators, redirects and statuses."""

import threading
from dataclasses import replace

import pytest

from autowasm.errors import (
    AddressBlocked,
    AutoWasmError,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
)
from autowasm.net.addresspolicy import AddressPolicy
from autowasm.net.pools import Pools
from autowasm.net.proxy import EnvironmentProxies
from autowasm.net.session import ObjectSession
from autowasm.settings import Outgoing
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.unit.net.objectsessions import LIMITS, LOOPBACK, failure, opened, read


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
async def test_a_redirect_to_a_host_that_cannot_exist_is_reported(target: str) -> None:
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


async def test_answer_that_is_not_http_is_an_unavailable_object() -> None:
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


async def test_name_service_that_gives_no_answer_is_named() -> None:
    release = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        release.wait()
        return []

    with Pools() as pools:
        async with ObjectSession(
            outgoing=Outgoing(),
            limits=replace(LIMITS, dns_timeout=0.1),
            pools=pools,
            policy=LOOPBACK,
            resolver=hang,
        ) as session:
            try:
                error = await failure(session, "http://some.example/x.wasm")
            finally:
                release.set()
    assert (type(error), error.reason) == (SourceUnavailable, "ObjectUnavailable")
    assert "no answer from the name service in 0.1 s" in str(error)


async def test_proxy_that_cannot_be_reached_is_named() -> None:
    with Pools() as pools:
        async with ObjectSession(
            outgoing=Outgoing(),
            limits=LIMITS,
            pools=pools,
            policy=None,
            proxies=EnvironmentProxies.read({"HTTP_PROXY": "http://bob:secret@127.0.0.1:1"}),
        ) as session:
            error = await failure(session, "http://some.example/x.wasm")
    assert (type(error), error.reason) == (SourceUnavailable, "ObjectUnavailable")
    assert "cannot connect to the proxy 127.0.0.1:1" in str(error)
