"""Who is sent which login, and how often: RegistryClient against registries and token endpoints that misbehave."""

import asyncio
import base64
import contextlib
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from autowasm.digest import Digest
from autowasm.errors import AddressBlocked, AutoWasmError, SourceDenied, SourceUnavailable
from autowasm.limits import Limits
from autowasm.net.policy import AddressPolicy
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry import media
from autowasm.registry.client import RegistryClient
from autowasm.registry.credentials import Credential
from autowasm.registry.push import make_package
from autowasm.settings import Outgoing
from tests.fakes.scripted import Exchange, ScriptedServer
from tests.parts.certificates import Authority

LIMITS = Limits(connect_timeout=1, answer_timeout=2, fetch_timeout=10, attempt_backoff=0.01)
BOB = Credential("bob", "s3cret")
BASIC = "Basic " + base64.b64encode(b"bob:s3cret").decode()
EMPTY = {
    "mediaType": media.WASM_CONFIG,
    "size": 2,
    "digest": f"sha256:{hashlib.sha256(b'{}').hexdigest()}",
}
LAYER = b"\0asm layer"
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": media.OCI_MANIFEST,
        "config": EMPTY,
        "layers": [
            {"mediaType": media.WASM_CONTENT, "digest": str(Digest.of(LAYER)), "size": len(LAYER)}
        ],
    }
).encode()


@dataclass
class Guarded:
    """A registry that wants `accepts` in Authorization, and says `challenge` otherwise."""

    challenge: str
    accepts: set[str] = field(default_factory=set)
    served: int = 0

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.request.headers.get("authorization") not in self.accepts:
            await exchange.send(401, headers={"WWW-Authenticate": self.challenge})
            return
        self.served += 1
        blob = "/blobs/" in exchange.request.target
        kind = "application/octet-stream" if blob else media.OCI_MANIFEST
        await exchange.send(body=LAYER if blob else MANIFEST, headers={"Content-Type": kind})


@dataclass
class Tokens:
    """A token endpoint: token `t1`, `t2`, … for each request that has the right login."""

    registry: Guarded
    accepts: set[str | None]
    refuses_with: int = 401
    given: int = 0

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.request.headers.get("authorization") not in self.accepts:
            await exchange.send(self.refuses_with)
            return
        self.given += 1
        token = f"t{self.given}"
        self.registry.accepts = {f"Bearer {token}"}  # the one before has expired
        await exchange.send(body=json.dumps({"token": token}).encode())


def reference(server: ScriptedServer, name: str = "team/filter") -> ImageReference:
    return ImageReference.parse(f"{server.host}/{name}:v1")


@contextlib.asynccontextmanager
async def client(
    limits: Limits = LIMITS,
    on_request: Callable[[str], None] = lambda _: None,
    **outgoing: object,
) -> AsyncIterator[RegistryClient]:
    settings = replace(Outgoing(plain_http=frozenset({"127.0.0.1"})), **outgoing)  # type: ignore[arg-type]
    policy = AddressPolicy(allow=["127.0.0.0/8"], deny=["127.0.0.66/32"])
    with Pools(transfers=8) as pools:
        made = RegistryClient(
            outgoing=settings, limits=limits, pools=pools, policy=policy, on_request=on_request
        )
        try:
            yield made
        finally:
            await made.close()


async def fails(work: Awaitable[object]) -> AutoWasmError:
    with pytest.raises(AutoWasmError) as caught:
        await work
    assert "s3cret" not in str(caught.value)
    return caught.value


def sent(server: ScriptedServer) -> list[str | None]:
    return [request.headers.get("authorization") for request in server.requests]


async def test_a_token_realm_on_another_host_gets_the_login_and_nobody_else_does() -> None:
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


async def test_every_request_is_told_with_its_host() -> None:
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
    """Forty fetches of twenty images at once, again and again: what the account sees is counted."""
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
    """127.0.0.66 stands for what the operator has closed; metadata is closed whatever he opens."""
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
            await exchange.send(body=MANIFEST, headers={"Content-Type": media.OCI_MANIFEST})

    async with ScriptedServer(script) as server, client() as made:
        for name in ("private/a", "private/b", "private/c"):
            error = await fails(made.resolve(reference(server, name), credential=BOB))
            assert isinstance(error, SourceUnavailable)
            assert 100 < (error.retry_after or 0) <= 120
        assert len(server.requests) == 2, "one without, one with the login, then none"
        assert (await made.resolve(reference(server, "public/a"), credential=None)).manifest.layers


async def test_the_rate_for_a_host_holds_over_all_repositories() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(body=MANIFEST, headers={"Content-Type": media.OCI_MANIFEST})

    loop = asyncio.get_running_loop()
    async with ScriptedServer(script) as server, client(host_rate=20.0, host_burst=2) as made:
        began = loop.time()
        await asyncio.gather(
            *(made.resolve(reference(server, f"a/b{n}"), credential=None) for n in range(12))
        )
        assert 0.45 < loop.time() - began < 3
    assert len(server.requests) == 12


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
            await exchange.send(body=MANIFEST, headers={"Content-Type": media.OCI_MANIFEST})
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


async def test_a_ping_that_redirects_cannot_name_who_gets_the_login() -> None:
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
    assert "to which the registry redirects" in str(error)
    assert sent(server) == [None]
    assert sent(storage) == [None]


async def test_a_registry_that_sends_the_password_back_does_not_get_it_into_a_message() -> None:
    async def script(exchange: Exchange) -> None:
        got = exchange.request.headers.get("authorization", "")
        body = json.dumps({"errors": [{"code": "X", "message": f"no {got} s3cret"}]}).encode()
        await exchange.send(401, body, {"WWW-Authenticate": "Basic realm=r"})

    async with ScriptedServer(script) as server, client() as made:
        error = await fails(made.resolve(reference(server), credential=BOB))
    assert BASIC.removeprefix("Basic ") not in str(error)
    assert "wrong, has expired or may not do this" in str(error)


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
