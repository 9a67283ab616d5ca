"""Registries that hide private images, and the ping that names the token endpoint."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from autowasm.registry import mediatypes
from autowasm.registry.credentials import Credential
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.unit.registry.access import (
    BASIC,
    BOB,
    MANIFEST,
    Guarded,
    Tokens,
    client,
    fails,
    reference,
    sent,
)


@dataclass
class Hiding:
    """A registry that answers 404 to a request without a login that it accepts; `ping` answers `/v2/`."""

    accepts: set[str] = field(default_factory=set)
    ping: Callable[[Exchange], Awaitable[None]] | None = None
    refuses_with: int = 404

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.request.target == "/v2/" and self.ping is not None:
            await self.ping(exchange)
        elif exchange.request.headers.get("authorization") in self.accepts:
            await exchange.send(body=MANIFEST, headers={"Content-Type": mediatypes.OCI_MANIFEST})
        else:
            await exchange.send(self.refuses_with)


def challenges(challenge: str) -> Callable[[Exchange], Awaitable[None]]:
    async def ping(exchange: Exchange) -> None:
        await exchange.send(401, headers={"WWW-Authenticate": challenge})

    return ping


async def test_a_hidden_image_is_asked_for_with_a_token_that_the_ping_names() -> None:
    hiding = Hiding()
    tokens = Tokens(Guarded(""), {BASIC})
    async with ScriptedServer(tokens) as auth, ScriptedServer(hiding) as server, client() as made:
        hiding.ping = challenges(f'Bearer realm="{auth.url}/token",service="s"')
        hiding.accepts = {"Bearer t1"}
        assert (await made.resolve(reference(server), credential=BOB)).manifest.layers
        assert sent(server) == [None, None, "Bearer t1"]
        assert [request.target for request in server.requests][1] == "/v2/"
        assert "scope=repository%3Ateam%2Ffilter%3Apull" in auth.requests[0].target
    assert sent(auth) == [BASIC]


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_the_login_is_found_again_for_the_next_request(status: int) -> None:
    hiding = Hiding({BASIC}, challenges("Basic realm=r"), status)
    async with ScriptedServer(hiding) as server, client() as made:
        for _ in range(2):
            assert await made.head(reference(server), credential=BOB) is None
    assert sent(server) == [None, None, BASIC, BASIC], "asked once, kept with the connection"


async def test_without_a_credential_a_hidden_image_is_asked_for_once() -> None:
    hiding = Hiding({BASIC}, challenges("Basic realm=r"))
    async with ScriptedServer(hiding) as server, client() as made:
        error = await fails(made.resolve(reference(server), credential=None))
    assert error.reason == "ImageNotFound"
    assert "spec.secret" in str(error)
    assert sent(server) == [None]


async def test_a_redirected_ping_cannot_choose_the_recipient_of_the_login() -> None:
    thief = Hiding(ping=challenges("Basic realm=r"))
    async with ScriptedServer(thief) as other:
        thief.ping = challenges(f'Bearer realm="{other.url}/token"')

        async def elsewhere(exchange: Exchange) -> None:
            await exchange.send(307, headers={"Location": f"{other.url}/v2/"})

        hiding = Hiding({BASIC}, elsewhere)
        async with ScriptedServer(hiding) as server, client() as made:
            assert (await made.resolve(reference(server), credential=BOB)).manifest.layers
        assert sent(other) == [None]
        assert sent(server) == [None, None, BASIC]


async def test_an_identity_token_is_not_shown_where_nothing_asks_for_it() -> None:
    refresh = Credential("", "", identity_token="s3cret-refresh")

    async def open_ping(exchange: Exchange) -> None:
        await exchange.send(200)

    async with ScriptedServer(Hiding(set(), open_ping)) as server, client() as made:
        error = await fails(made.resolve(reference(server), credential=refresh))
    assert error.reason == "ImageNotFound"
    assert sent(server) == [None, None]


async def test_a_ping_that_says_later_is_asked_again_later() -> None:
    async def overloaded(exchange: Exchange) -> None:
        await exchange.send(503)

    async with ScriptedServer(Hiding({BASIC}, overloaded)) as server, client() as made:
        error = await fails(made.resolve(reference(server), credential=BOB))
    assert error.reason == "RegistryUnavailable"
    assert BASIC not in sent(server), "it is not known yet what the registry asks for"


async def test_a_refused_redirect_of_a_blob_is_not_answered_with_the_login() -> None:
    async def storage_script(exchange: Exchange) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
        await exchange.send(403, body, {"WWW-Authenticate": "Basic realm=r"})

    async with ScriptedServer(storage_script) as storage:

        async def script(exchange: Exchange) -> None:
            await exchange.send(307, headers={"Location": f"{storage.url}/x?sig=s3cret"})

        async with ScriptedServer(script) as server, client() as made:
            error = await fails(made.resolve(reference(server), credential=BOB))
    assert "AccessDenied: Request has expired" in str(error)
    assert "the registry redirected to " in str(error)
    assert sent(server) == [None]
    assert sent(storage) == [None]
