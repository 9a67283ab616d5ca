"""Messages when a registry refuses or sends an unexpected answer."""

import asyncio
import json
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from autowasm.errors import SourceDenied
from autowasm.registry.credentials import Credential
from autowasm.registry.package import make_package
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.parts.certificates import Authority
from tests.unit.registry.access import (
    BASIC,
    BOB,
    LAYER,
    LIMITS,
    client,
    fails,
    reference,
)


async def test_a_registry_that_sends_the_password_back_does_not_get_it_into_a_message() -> None:
    async def script(exchange: Exchange) -> None:
        got = exchange.request.headers.get("authorization", "")
        body = json.dumps({"errors": [{"code": "X", "message": f"no {got} s3cret"}]}).encode()
        await exchange.send(401, body, {"WWW-Authenticate": "Basic realm=r"})

    async with ScriptedServer(script) as server, client() as made:
        error = await fails(made.resolve(reference(server), credential=BOB))
    assert BASIC.removeprefix("Basic ") not in str(error)
    assert "wrong, has expired or lacks permission" in str(error)


async def test_an_error_body_that_never_ends_delays_the_status_by_its_timeout_only() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(403, {"Content-Length": "1000", "Content-Type": "text/plain"})
        await exchange.drip(b"x", every=0.05)

    limits = replace(LIMITS, error_body_timeout=0.3, fetch_timeout=60)
    async with ScriptedServer(script) as server, client(limits) as made:
        async with asyncio.timeout(30):
            error = await fails(made.resolve(reference(server), credential=None))
        await server.all_gone()
    assert isinstance(error, SourceDenied)
    assert "status 403 (xx" in str(error)


async def test_a_page_instead_of_a_manifest_is_named_so() -> None:
    async def script(exchange: Exchange) -> None:
        body = b"<html><title>Sign in</title></html>"
        await exchange.send(200, body, {"Content-Type": "text/html; charset=utf-8"})

    async with ScriptedServer(script) as server, client() as made:
        error = await fails(made.resolve(reference(server), credential=None))
    assert error.reason == "UnexpectedAnswer"
    assert "a web page (Sign in)" in str(error)


async def test_an_upload_that_goes_on_in_plain_http_at_the_same_host_stays_in_https(
    tmp_path: Path,
) -> None:
    files = Authority().issue(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)

    async def script(exchange: Exchange) -> None:
        if exchange.request.method == "HEAD":
            await exchange.send(404)
        elif exchange.request.method == "POST":
            location = (
                "http://127.0.0.1/v2/team/filter/blobs/uploads/1"  # a proxy ends TLS before it
            )
            await exchange.send(202, headers={"Location": location})
        else:
            await exchange.send(201)

    module = tmp_path / "module"
    module.write_bytes(LAYER)
    package = await asyncio.to_thread(
        make_package, "artifact", module, abi="0.2.1", workdir=tmp_path
    )
    async with (
        ScriptedServer(script, tls=context) as server,
        client(plain_http=frozenset(), ca_file=files.authority) as made,
    ):
        await made.push(reference(server), package, credential=None)
    uploads = [asked for asked in server.requests if "digest=" in asked.target]
    assert LAYER in [asked.body for asked in uploads]


@pytest.mark.parametrize("credential", [None, BOB])
async def test_a_login_is_advised_against_a_rate_limit_only_where_there_is_none(
    credential: Credential | None,
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(429, headers={"Retry-After": "60"})

    async with ScriptedServer(script) as server, client() as made:
        error = await fails(made.resolve(reference(server), credential=credential))
    assert "status 429; too many requests" in str(error)
    assert ("spec.secret" in str(error)) is (credential is None)
