"""Logins and tokens: to which hosts they are sent, and how often."""

import asyncio
import base64

import pytest

from autowasm.errors import AddressBlocked, SourceDenied, SourceUnavailable
from autowasm.registry import mediatypes
from autowasm.registry.credentials import Credential
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.unit.registry.access import (
    BASIC,
    BOB,
    LIMITS,
    MANIFEST,
    Guarded,
    Tokens,
    client,
    fails,
    reference,
    sent,
)


async def test_a_token_realm_on_another_host_gets_the_login_and_no_other_host_does() -> None:
    registry = Guarded("")
    tokens = Tokens(registry, {BASIC})
    async with ScriptedServer(tokens) as auth, ScriptedServer(registry) as server, client() as made:
        # Unquoted, several challenges in one header, one of them not known.
        registry.challenge = (
            f'Negotiate abc=, Bearer realm="{auth.url}/token",service=reg, Basic realm=x'
        )
        assert (await made.resolve(reference(server), credential=BOB)).manifest.layers
    assert sent(auth) == [BASIC]
    assert sent(server) == [None, "Bearer t1"], "the registry never sees the password"


async def test_every_request_is_reported_with_its_host() -> None:
    registry, told = Guarded(""), list[str]()
    async with (
        ScriptedServer(Tokens(registry, {BASIC})) as auth,
        ScriptedServer(registry) as server,
        client(on_request=told.append) as made,
    ):
        registry.challenge = f'Bearer realm="{auth.url}/token"'
        await made.head(reference(server), credential=BOB)
        assert told == [server.host, auth.host, server.host]
        assert len(server.requests) + len(auth.requests) == 3


async def test_a_token_that_expires_in_mid_pull_is_renewed_once() -> None:
    registry = Guarded("")
    tokens = Tokens(registry, {BASIC})
    async with ScriptedServer(tokens) as auth, ScriptedServer(registry) as server, client() as made:
        registry.challenge = f'Bearer realm="{auth.url}/token"'
        resolved = await made.resolve(reference(server), credential=BOB)
        registry.accepts = set()  # t1 has expired
        again = await made.resolve(reference(server), credential=BOB)
        assert again.digest == resolved.digest
        assert tokens.given == 2

        registry.accepts = set()
        tokens.registry = Guarded("")  # from now on new tokens are worth nothing
        error = await fails(made.resolve(reference(server), credential=BOB))
    assert isinstance(error, SourceDenied)
    assert tokens.given == 3, "one new token, not one after the other"


@pytest.mark.parametrize("kind", ["basic", "token", "forbidden", "oauth"])
async def test_a_wrong_password_reaches_the_account_only_a_few_times(kind: str) -> None:
    """Forty fetches of twenty images at once, repeatedly: the logins of the account are counted."""
    credential = Credential("", "", identity_token="s3cret") if kind == "oauth" else BOB
    registry = Guarded('Basic realm="r"')
    refuses = {"forbidden": 403, "oauth": 400}.get(kind, 401)
    tokens = Tokens(registry, set(), refuses_with=refuses)
    async with ScriptedServer(tokens) as auth, ScriptedServer(registry) as server, client() as made:
        if kind != "basic":
            registry.challenge = f'Bearer realm="{auth.url}/token"'
        errors = await asyncio.gather(
            *(
                fails(made.resolve(reference(server, f"team/f{n % 20}"), credential=credential))
                for n in range(40)
            )
        )
        assert {type(error) for error in errors} == {SourceDenied}
        logins = len(auth.requests) + sum(value is not None for value in sent(server))
        assert logins == LIMITS.login_refusals


async def test_a_right_password_is_not_slowed_down_by_a_repository_that_it_may_not_read() -> None:
    allowed = Guarded('Basic realm="r"', {BASIC})

    async def script(exchange: Exchange) -> None:
        authorized = "authorization" in exchange.request.headers
        if authorized and "/secret/" in exchange.request.target:
            await exchange.send(403)
        else:
            await allowed(exchange)

    async with ScriptedServer(script) as server, client() as made:
        for _ in range(5):
            error = await fails(made.resolve(reference(server, "secret/x"), credential=BOB))
            assert isinstance(error, SourceDenied)
            await made.resolve(reference(server), credential=BOB)


async def test_a_password_that_was_changed_is_noticed_and_counted() -> None:
    registry = Guarded('Basic realm="r"', {BASIC})
    async with ScriptedServer(registry) as server, client() as made:
        await made.resolve(reference(server), credential=BOB)
        registry.accepts = set()
        for _ in range(10):
            await fails(made.resolve(reference(server), credential=BOB))
        shown = sent(server)[2:]
    assert sum(value is not None for value in shown) == LIMITS.login_refusals


async def test_a_rotated_secret_is_used_at_once() -> None:
    new = Credential("bob", "n3w")
    registry = Guarded('Basic realm="r"', {"Basic " + base64.b64encode(b"bob:n3w").decode()})
    async with ScriptedServer(registry) as server, client() as made:
        for _ in range(5):
            await fails(made.resolve(reference(server), credential=BOB))
        assert (await made.resolve(reference(server), credential=new)).manifest.layers


async def test_a_redirect_sees_neither_password_nor_token_and_may_ask_for_none() -> None:
    async def elsewhere(exchange: Exchange) -> None:
        await exchange.send(401, headers={"WWW-Authenticate": 'Basic realm="give it to me"'})

    async with ScriptedServer(elsewhere) as thief:

        async def script(exchange: Exchange) -> None:
            if exchange.request.headers.get("authorization") == BASIC:
                await exchange.send(307, headers={"Location": f"{thief.url}/x"})
            else:
                await exchange.send(401, headers={"WWW-Authenticate": "Basic"})

        async with ScriptedServer(script) as server, client() as made:
            assert isinstance(
                await fails(made.resolve(reference(server), credential=BOB)), SourceDenied
            )
        assert sent(thief) == [None]


@pytest.mark.parametrize("token", [False, True])
async def test_a_token_endpoint_that_redirects_hands_nothing_on(token: bool) -> None:
    credential = Credential("", "", identity_token="s3cret") if token else BOB

    async def thief(exchange: Exchange) -> None:
        await exchange.send(body=b'{"token": "x"}')

    async with ScriptedServer(thief) as other:

        async def endpoint(exchange: Exchange) -> None:
            await exchange.send(307, headers={"Location": f"{other.url}/token"})

        async with ScriptedServer(endpoint) as auth:
            registry = Guarded(f'Bearer realm="{auth.url}/token"')
            async with ScriptedServer(registry) as server, client() as made:
                error = await fails(made.resolve(reference(server), credential=credential))
        assert all(b"s3cret" not in request.body for request in other.requests)
        assert not any(sent(other))
        if token:
            assert (type(error), error.reason) == (AddressBlocked, "UrlNotAllowed")
            assert other.requests == []


async def test_a_token_realm_is_judged_as_any_address() -> None:
    """127.0.0.66 stands for a blocked address; metadata addresses are blocked with any setting."""
    for realm, says in (
        ("http://127.0.0.66/token", "--deny-cidr"),
        ("http://169.254.169.254/latest", "never allowed"),
        ("http://[::ffff:169.254.169.254]/latest", "never allowed"),
    ):
        async with ScriptedServer(Guarded(f'Bearer realm="{realm}"')) as server, client() as made:
            error = await fails(made.resolve(reference(server), credential=BOB))
        assert isinstance(error, AddressBlocked)
        assert says in str(error)


async def test_a_registry_token_is_sent_as_it_is_and_to_no_token_endpoint() -> None:
    async def never(exchange: Exchange) -> None:
        await exchange.send(500)

    token = Credential("", "", registry_token="jwt-s3cret")
    async with ScriptedServer(never) as auth:
        registry = Guarded(f'Bearer realm="{auth.url}"', {"Bearer jwt-s3cret"})
        async with ScriptedServer(registry) as server, client() as made:
            assert (await made.resolve(reference(server), credential=token)).manifest.layers
            registry.accepts = set()
            for _ in range(5):
                error = await fails(made.resolve(reference(server), credential=token))
                assert isinstance(error, SourceDenied)
                assert "the token" in str(error)
            assert sum(value is not None for value in sent(server)[2:]) == LIMITS.login_refusals
        assert auth.requests == []


async def test_an_identity_token_is_exchanged_for_an_access_token() -> None:
    registry = Guarded("", {"Bearer access"})

    async def oauth(exchange: Exchange) -> None:
        assert exchange.request.method == "POST"
        assert b"grant_type=refresh_token" in exchange.request.body
        assert b"refresh_token=s3cret" in exchange.request.body
        await exchange.send(body=b'{"access_token": "access", "expires_in": 60}')

    async with ScriptedServer(oauth) as auth, ScriptedServer(registry) as server, client() as made:
        registry.challenge = f'Bearer realm="{auth.url}/token",service="reg"'
        credential = Credential("", "", identity_token="s3cret")
        assert (await made.resolve(reference(server), credential=credential)).manifest.layers
    assert "s3cret" not in "".join(request.target for request in auth.requests)


async def test_retry_after_holds_for_every_repository_of_the_credential_and_no_other() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.request.headers.get("authorization") == BASIC:
            await exchange.send(429, headers={"Retry-After": "120"})
        elif "/private/" in exchange.request.target:
            await exchange.send(401, headers={"WWW-Authenticate": "Basic"})
        else:
            await exchange.send(body=MANIFEST, headers={"Content-Type": mediatypes.OCI_MANIFEST})

    async with ScriptedServer(script) as server, client() as made:
        for name in ("private/a", "private/b", "private/c"):
            error = await fails(made.resolve(reference(server, name), credential=BOB))
            assert isinstance(error, SourceUnavailable)
            assert 100 < (error.retry_after or 0) <= 120
        assert len(server.requests) == 2, "one without, one with the login, then none"
        assert (await made.resolve(reference(server, "public/a"), credential=None)).manifest.layers


async def test_the_rate_for_a_host_holds_over_all_repositories() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(body=MANIFEST, headers={"Content-Type": mediatypes.OCI_MANIFEST})

    loop = asyncio.get_running_loop()
    async with ScriptedServer(script) as server, client(host_rate=20.0, host_burst=2) as made:
        began = loop.time()
        await asyncio.gather(
            *(made.resolve(reference(server, f"a/b{n}"), credential=None) for n in range(12))
        )
        assert loop.time() - began > 0.45, "ten of them wait for 50 ms each"
    assert len(server.requests) == 12
