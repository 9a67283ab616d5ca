"""The registry client: credentials, tokens and where they may go."""

import asyncio
import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from autowasm.errors import (
    AddressBlocked,
    AutoWasmError,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
)
from autowasm.net.addresspolicy import AddressPolicy
from autowasm.reference import ImageReference
from autowasm.registry.credentials import Credential
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.unit.registry.clients import (
    LAYER,
    LIMITS,
    FakeRegistry,
    first_layer,
    scripted_registry,
)

BOB = Credential("bob", "s3cret")


@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [
        (404, SourceNotFound, "ImageNotFound"),
        (401, SourceDenied, "Unauthorized"),
        (403, SourceDenied, "Unauthorized"),
        (400, SourceUnavailable, "UnexpectedAnswer"),
    ],
)
async def test_a_refusal_is_asked_for_once(
    status: int, expected: type[AutoWasmError], reason: str
) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.send(status, b"x" * 100)

    async with scripted_registry(refuse) as scripted:
        error = await scripted.fails()
    assert (type(error), error.reason) == (expected, reason)
    assert len(scripted.server.requests) == 1


async def test_a_wrong_password_is_sent_once() -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.send(401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    async with scripted_registry(refuse) as scripted:
        error = await scripted.fails(credential=BOB)
        assert isinstance(error, SourceDenied)
        assert "'bob'" in str(error)
    assert ["authorization" in request.headers for request in scripted.server.requests] == [
        False,
        True,
    ]


async def test_the_password_is_not_sent_again_to_a_registry_that_refused_it_before() -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.send(401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    async with scripted_registry(refuse) as scripted:
        await scripted.fails(credential=BOB)
        await scripted.fails(credential=BOB)
    sent = [request for request in scripted.server.requests if "authorization" in request.headers]
    assert len(sent) == 2, "once for each operation"


def bearer(realm: str) -> dict[str, str]:
    return {
        "WWW-Authenticate": f'Bearer realm="{realm}",service="s",scope="repository:team/filter:pull"'
    }


async def test_the_credential_goes_to_the_token_realm_and_the_token_to_the_registry() -> None:
    async def tokens(exchange: Exchange) -> None:
        await exchange.send(body=b'{"token": "t0"}')

    async with ScriptedServer(tokens) as realm:

        async def ask(exchange: Exchange) -> bool:
            if exchange.request.headers.get("authorization") == "Bearer t0":
                return False
            await exchange.send(401, headers=bearer(f"{realm.url}/token"))
            return True

        async with scripted_registry(FakeRegistry(before=ask)) as scripted:
            await scripted.resolve(credential=BOB)
            await scripted.resolve(credential=BOB)
            assert len(realm.requests) == 1, "the token is kept"
            await scripted.resolve(credential=None)
    basic = "Basic " + base64.b64encode(b"bob:s3cret").decode()
    assert [request.headers.get("authorization") for request in realm.requests] == [basic, None]
    assert all("Basic" not in r.headers.get("authorization", "") for r in scripted.server.requests)


async def test_an_expired_token_is_renewed_once() -> None:
    valid = ["t1"]

    async def script(exchange: Exchange) -> bool:
        if exchange.request.target.startswith("/token"):
            await exchange.send(body=json.dumps({"token": valid[0]}).encode())
            return True
        if exchange.request.headers.get("authorization") == f"Bearer {valid[0]}":
            return False
        await exchange.send(401, headers=bearer(f"{scripted.server.url}/token"))
        return True

    async with scripted_registry(FakeRegistry(before=script)) as scripted:
        await scripted.resolve()
        valid[0] = "t2"
        await scripted.resolve()
    tokens = [request for request in scripted.server.requests if "/token" in request.target]
    assert len(tokens) == 2


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, SourceDenied), (503, SourceUnavailable), (400, SourceUnavailable)],
)
async def test_a_token_realm_that_refuses(status: int, expected: type[AutoWasmError]) -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.request.target.startswith("/token"):
            await exchange.send(status)
        else:
            await exchange.send(401, headers=bearer(f"{scripted.server.url}/token?secret=s3cret"))

    async with scripted_registry(script, limits=replace(LIMITS, attempts=1)) as scripted:
        assert type(await scripted.fails(credential=BOB)) is expected
    assert len(scripted.server.requests) == 2


async def test_an_endless_token_is_cut() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.request.target.startswith("/token"):
            await exchange.head(200, {})
            await exchange.drip(b"x" * 1000, every=0)
        else:
            await exchange.send(401, headers=bearer(f"{scripted.server.url}/token"))

    async with scripted_registry(script) as scripted:
        assert (await scripted.fails()).reason == "TooLarge"


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest", "http://[fd00:ec2::254]/"])
async def test_a_redirect_to_metadata_is_blocked(target: str) -> None:
    """Istio's wasm-ssrf-redirect-dial-context, replayed."""

    async def redirect(exchange: Exchange) -> None:
        await exchange.send(307, headers={"Location": target})

    async with scripted_registry(redirect) as scripted:
        error = await scripted.fails()
    assert isinstance(error, AddressBlocked)
    assert "never allowed" in str(error)


async def test_a_token_realm_at_metadata_is_blocked() -> None:
    """Istio's wasm-ssrf-bearer-realm, replayed."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(401, headers=bearer("http://169.254.169.254/token"))

    async with scripted_registry(script) as scripted:
        assert isinstance(await scripted.fails(credential=BOB), AddressBlocked)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_loopback_is_blocked_unless_allowed(host: str) -> None:
    async with scripted_registry(FakeRegistry(), policy=AddressPolicy()) as scripted:
        port = scripted.server.host.rpartition(":")[2]
        reference = ImageReference.parse(f"{host}:{port}/team/filter:v1")
        with pytest.raises(AddressBlocked, match="--allow-private-host"):
            await scripted.client.resolve(reference, credential=None)
        assert scripted.server.connections == 0


async def test_a_redirected_layer_gets_no_credential(tmp_path: Path) -> None:
    async def storage(exchange: Exchange) -> None:
        await exchange.send(body=LAYER)

    async with ScriptedServer(storage) as elsewhere:

        async def redirect(exchange: Exchange) -> bool:
            if "authorization" not in exchange.request.headers:
                await exchange.send(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
                return True
            if "/blobs/" not in exchange.request.target:
                return False
            location = f"{elsewhere.url}/b?sig=a%2Fb"
            await exchange.send(307, b"moved", headers={"Location": location})
            return True

        async with scripted_registry(FakeRegistry(before=redirect)) as scripted:
            layer = first_layer(await scripted.resolve(credential=BOB))
            target = tmp_path / "layer"
            await scripted.client.download(scripted.reference(), layer, target, credential=BOB)
            assert await asyncio.to_thread(target.read_bytes) == LAYER
    [request] = elsewhere.requests
    assert "authorization" not in request.headers
    assert request.target == "/b?sig=a%2Fb"


async def test_a_host_that_we_were_redirected_to_cannot_ask_for_the_credential(
    tmp_path: Path,
) -> None:
    async def thief(exchange: Exchange) -> None:
        realm = f"{elsewhere.url}/token"
        await exchange.send(401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})

    async with ScriptedServer(thief) as elsewhere:

        async def redirect(exchange: Exchange) -> bool:
            if "/blobs/" in exchange.request.target:
                await exchange.send(307, headers={"Location": f"{elsewhere.url}/b"})
                return True
            return False

        async with scripted_registry(FakeRegistry(before=redirect)) as scripted:
            layer = first_layer(await scripted.resolve(credential=BOB))
            with pytest.raises(SourceDenied):
                await scripted.client.download(
                    scripted.reference(), layer, tmp_path / "layer", credential=BOB
                )
    assert [request.target for request in elsewhere.requests] == ["/b"]


async def test_a_token_is_never_shared_between_credentials_or_repositories() -> None:
    async def script(exchange: Exchange) -> bool:
        if exchange.request.headers.get("authorization"):
            return False
        await exchange.send(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        return True

    async with scripted_registry(FakeRegistry(before=script)) as scripted:
        await scripted.resolve(credential=BOB)
        await scripted.fails(credential=None)
        await scripted.resolve("team/other:v1", credential=BOB)
    first_of_each = [scripted.server.requests[place].headers for place in (0, 2, 3)]
    assert all("authorization" not in headers for headers in first_of_each)


async def test_forbidden_request_is_not_repeated_with_the_same_login() -> None:
    """403 to a login that the registry knows, with a challenge as on 401."""

    async def script(exchange: Exchange) -> bool:
        headers = {"WWW-Authenticate": 'Basic realm="r"'}
        if "authorization" not in exchange.request.headers:
            await exchange.send(401, headers=headers)
        elif exchange.request.target.endswith("/secret"):
            await exchange.send(403, headers=headers)
        else:
            return False
        return True

    async with scripted_registry(FakeRegistry(before=script)) as scripted:
        await scripted.resolve(credential=BOB)
        before = len(scripted.server.requests)
        assert isinstance(await scripted.fails("team/filter:secret", credential=BOB), SourceDenied)
        assert len(scripted.server.requests) == before + 1
        await scripted.resolve(credential=BOB)
