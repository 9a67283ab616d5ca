"""RegistryClient against a registry that does what no real one can be made to do."""

import asyncio
import base64
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from autowasm.digest import Digest
from autowasm.errors import (
    AddressBlocked,
    AutoWasmError,
    ContentRejected,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    StorageError,
)
from autowasm.limits import MIB, Limits
from autowasm.net.policy import AddressPolicy
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry import transport  # noqa: F401 - its import takes longer than these tests' deadlines
from autowasm.registry.client import RegistryClient
from autowasm.registry.credentials import Credential
from autowasm.registry.manifest import Descriptor, Manifest
from autowasm.settings import Outgoing
from tests.fakes.scripted import Exchange, ScriptedServer

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
LIMITS = Limits(
    connect_timeout=1.0,
    answer_timeout=0.5,
    fetch_timeout=5.0,
    minimum_rate=1000,
    minimum_rate_after=0.4,
    attempt_backoff=0.05,
    attempt_wait=1.0,
    layer_bytes=MIB,
    manifest_bytes=65536,
    token_bytes=4096,
)
LOOPBACK = AddressPolicy(allow=["127.0.0.0/8"])
BOB = Credential("bob", "s3cret")
LAYER = bytes(range(256)) * 1000
TRANSFERS = 2


def manifest_of(layer: bytes) -> bytes:
    described = {
        "mediaType": "application/wasm",
        "digest": str(Digest.of(layer)),
        "size": len(layer),
    }
    config = {"mediaType": "application/json", "digest": str(Digest.of(b"{}")), "size": 2}
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config,
        "layers": [described],
    }
    return json.dumps(document).encode()


MANIFEST = manifest_of(LAYER)


def first_layer(manifest: Manifest) -> Descriptor:
    return (manifest.layers or ())[0]


@dataclass
class FakeRegistry:
    """The honest answers; a test replaces the one that it is about."""

    manifest: bytes = MANIFEST
    media_type: str = MANIFEST_TYPE
    by_digest: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    layer: bytes = LAYER
    before: Callable[[Exchange], Awaitable[bool]] | None = None
    """May answer instead: then it returns True."""

    async def __call__(self, exchange: Exchange) -> None:
        if self.before is not None and await self.before(exchange):
            return
        target = exchange.request.target
        version = target.rpartition("/")[2]
        if "/blobs/" in target:
            await exchange.send(body=self.layer)
        elif version in self.by_digest:
            body, media_type = self.by_digest[version]
            await exchange.send(body=body, headers={"Content-Type": media_type})
        else:
            headers = {
                "Content-Type": self.media_type,
                "Docker-Content-Digest": str(Digest.of(self.manifest)),
            }
            await exchange.send(body=self.manifest, headers=headers)


@dataclass
class Stage:
    client: RegistryClient
    server: ScriptedServer
    pools: Pools

    def reference(self, text: str = "team/filter:v1") -> ImageReference:
        return ImageReference.parse(f"{self.server.host}/{text}")

    async def resolve(
        self, text: str = "team/filter:v1", *, credential: Credential | None = None
    ) -> Manifest:
        resolved = await self.client.resolve(self.reference(text), credential=credential)
        return resolved.manifest

    async def fails(
        self, text: str = "team/filter:v1", *, credential: Credential | None = None
    ) -> AutoWasmError:
        with pytest.raises(AutoWasmError) as caught:
            await self.resolve(text, credential=credential)
        assert "s3cret" not in str(caught.value)
        return caught.value

    async def download_fails(self, destination: Path) -> AutoWasmError:
        layer = first_layer(await self.resolve())
        with pytest.raises(AutoWasmError) as caught:
            await self.client.download(self.reference(), layer, destination, credential=None)
        return caught.value

    async def assert_threads_are_free(self) -> None:
        barrier = threading.Barrier(TRANSFERS)
        async with asyncio.timeout(1):
            await asyncio.gather(*(self.pools.transfer.run(barrier.wait) for _ in range(TRANSFERS)))


@contextlib.asynccontextmanager
async def staged(
    script: Callable[[Exchange], Awaitable[None]],
    *,
    limits: Limits = LIMITS,
    policy: AddressPolicy | None = LOOPBACK,
) -> AsyncIterator[Stage]:
    async with ScriptedServer(script) as server:
        with Pools(transfers=TRANSFERS) as pools:
            outgoing = Outgoing(plain_http=frozenset({"127.0.0.1"}))
            client = RegistryClient(outgoing=outgoing, limits=limits, pools=pools, policy=policy)
            try:
                yield Stage(client, server, pools)
            finally:
                await client.close()


async def test_resolves_and_downloads(tmp_path: Path) -> None:
    told: list[int] = []
    async with staged(FakeRegistry()) as stage:
        resolved = await stage.client.resolve(stage.reference(), credential=None)
        assert resolved.digest == Digest.of(MANIFEST)
        layer = first_layer(resolved.manifest)
        target = tmp_path / "layer"
        await stage.client.download(
            stage.reference(), layer, target, credential=None, on_bytes=told.append
        )
        assert await asyncio.to_thread(target.read_bytes) == LAYER
        assert sum(told) == len(LAYER)
        assert stage.server.connections == 1, "the connection is used again"
    assert {request.headers["accept-encoding"] for request in stage.server.requests} == {"identity"}
    assert all("authorization" not in request.headers for request in stage.server.requests)


async def test_follows_an_index_to_its_child() -> None:
    child = str(Digest.of(MANIFEST))
    described = {
        "mediaType": MANIFEST_TYPE,
        "digest": child,
        "size": len(MANIFEST),
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [described]})
    registry = FakeRegistry(
        manifest=index.encode(), media_type=INDEX_TYPE, by_digest={child: (MANIFEST, MANIFEST_TYPE)}
    )
    async with staged(registry) as stage:
        resolved = await stage.client.resolve(stage.reference(), credential=None)
        assert resolved.digest == Digest.of(index.encode())
        assert first_layer(resolved.manifest).size == len(LAYER)
        registry.by_digest = {child: (MANIFEST + b" ", MANIFEST_TYPE)}
        error = await stage.fails()
    assert error.reason == "SizeMismatch"


async def test_a_manifest_that_is_not_the_pinned_one_is_rejected() -> None:
    async with staged(FakeRegistry()) as stage:
        error = await stage.fails(f"team/filter@{Digest.of(b'another')}")
    assert (type(error), error.reason) == (ContentRejected, "DigestMismatch")


async def test_a_manifest_that_is_not_the_announced_one_is_rejected() -> None:
    async def lie(exchange: Exchange) -> bool:
        headers = {"Docker-Content-Digest": str(Digest.of(b"another"))}
        await exchange.send(body=MANIFEST, headers=headers)
        return True

    async with staged(FakeRegistry(before=lie)) as stage:
        assert (await stage.fails()).reason == "DigestMismatch"


async def test_a_manifest_without_announced_digest_is_hashed() -> None:
    async def silent(exchange: Exchange) -> bool:
        await exchange.send(body=MANIFEST, headers={"Content-Type": MANIFEST_TYPE})
        return True

    async with staged(FakeRegistry(before=silent)) as stage:
        resolved = await stage.client.resolve(stage.reference(), credential=None)
        assert resolved.digest == Digest.of(MANIFEST)
        assert await stage.client.head(stage.reference(), credential=None) is None


async def test_head_tells_the_announced_digest() -> None:
    async with staged(FakeRegistry()) as stage:
        assert await stage.client.head(stage.reference(), credential=None) == Digest.of(MANIFEST)
    assert [request.method for request in stage.server.requests] == ["HEAD"]


async def test_a_refused_head_is_no_verdict_on_the_image() -> None:
    async def refuse_head(exchange: Exchange) -> bool:
        if exchange.request.method != "HEAD":
            return False
        await exchange.head(403, {"Content-Length": "0"})
        return True

    async with staged(FakeRegistry(before=refuse_head)) as stage:
        assert await stage.client.head(stage.reference(), credential=None) is None
        resolved = await stage.client.resolve(stage.reference(), credential=None)
        assert resolved.digest == Digest.of(MANIFEST)


async def test_an_endless_manifest_is_cut() -> None:
    async def endless(exchange: Exchange) -> bool:
        await exchange.head(200, {})
        await exchange.drip(b"x" * 10_000, every=0)
        return True

    async with staged(FakeRegistry(before=endless)) as stage:
        error = await stage.fails()
        await stage.server.all_gone()
    assert (type(error), error.reason) == (ContentRejected, "TooLarge")


async def test_a_compressed_manifest_is_not_decompressed() -> None:
    async def compressed(exchange: Exchange) -> bool:
        await exchange.send(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
        return True

    async with staged(FakeRegistry(before=compressed)) as stage:
        assert (await stage.fails()).reason == "ManifestInvalid"


async def test_a_wrong_layer_is_rejected(tmp_path: Path) -> None:
    async with staged(FakeRegistry(layer=LAYER[:-1] + b"!")) as stage:
        error = await stage.download_fails(tmp_path / "layer")
    assert (type(error), error.reason) == (ContentRejected, "DigestMismatch")


@pytest.mark.parametrize("layer", [LAYER + b"!", LAYER[:-1]])
async def test_a_layer_of_another_size_is_rejected(layer: bytes, tmp_path: Path) -> None:
    async with staged(FakeRegistry(layer=layer)) as stage:
        error = await stage.download_fails(tmp_path / "layer")
    assert (type(error), error.reason) == (ContentRejected, "SizeMismatch")


async def test_an_endless_layer_is_cut_at_its_size(tmp_path: Path) -> None:
    async def endless(exchange: Exchange) -> bool:
        if "/blobs/" not in exchange.request.target:
            return False
        await exchange.head(200, {})
        await exchange.drip(b"x" * 100_000, every=0)
        return True

    async with staged(FakeRegistry(before=endless)) as stage:
        error = await stage.download_fails(tmp_path / "layer")
        await stage.server.all_gone()
    assert error.reason == "SizeMismatch"
    assert (tmp_path / "layer").stat().st_size <= len(LAYER) + LIMITS.transfer_chunk


async def test_a_layer_beyond_the_limit_is_not_asked_for(tmp_path: Path) -> None:
    async with staged(FakeRegistry(), limits=replace(LIMITS, layer_bytes=1000)) as stage:
        error = await stage.download_fails(tmp_path / "layer")
    assert (type(error), error.reason) == (ContentRejected, "TooLarge")
    assert len(stage.server.requests) == 1


async def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    async with staged(FakeRegistry()) as stage:
        error = await stage.download_fails(tmp_path / "missing" / "layer")
    assert (type(error), error.reason) == (StorageError, "StorageUnavailable")


@pytest.mark.parametrize("every", [0.02, 60.0])
async def test_a_layer_that_drips_or_stops_is_cut_and_its_thread_is_free(
    every: float, tmp_path: Path
) -> None:
    async def drip(exchange: Exchange) -> bool:
        if "/blobs/" not in exchange.request.target:
            return False
        await exchange.head(200, {"Content-Length": str(len(LAYER))})
        await exchange.drip(b"x", every=every)
        return True

    limits = replace(LIMITS, fetch_timeout=600)
    async with staged(FakeRegistry(before=drip), limits=limits) as stage:
        began = time.monotonic()
        error = await stage.download_fails(tmp_path / "layer")
        assert time.monotonic() - began > 0.35
        await stage.assert_threads_are_free()
        await stage.server.all_gone()
    assert (type(error), error.reason) == (SourceUnavailable, "TooSlow")


async def test_a_silent_registry_is_given_up_in_time_and_its_thread_is_free() -> None:
    async with staged(Exchange.hang, limits=replace(LIMITS, fetch_timeout=600)) as stage:
        error = await stage.fails()
        await stage.assert_threads_are_free()
        await stage.server.all_gone()
    assert (type(error), error.reason) == (SourceUnavailable, "Timeout")


async def test_an_answer_header_that_drips_is_given_up_in_time() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        await exchange.drip(b"x", every=0.02)

    async with staged(script) as stage:
        assert (await stage.fails()).reason == "Timeout"
        await stage.assert_threads_are_free()


async def test_the_whole_fetch_has_one_deadline() -> None:
    async def later(exchange: Exchange) -> None:
        await asyncio.sleep(0.2)
        await exchange.send(503)

    limits = replace(LIMITS, fetch_timeout=0.5, attempts=10_000)
    async with staged(later, limits=limits) as stage:
        error = await stage.fails()
    assert isinstance(error, SourceUnavailable)


async def test_cancelling_frees_the_thread_and_the_connection() -> None:
    async with staged(Exchange.hang, limits=replace(LIMITS, answer_timeout=30)) as stage:
        task = asyncio.create_task(stage.resolve(), name="resolve")
        async with asyncio.timeout(5):
            while not stage.server.requests:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stage.assert_threads_are_free()
        await stage.server.all_gone()


async def test_later_answers_are_tried_again() -> None:
    statuses = [503, 429]

    async def later(exchange: Exchange) -> bool:
        if not statuses:
            return False
        await exchange.send(statuses.pop(), headers={"Retry-After": "0"})
        return True

    async with staged(FakeRegistry(before=later)) as stage:
        assert first_layer(await stage.resolve()).size == len(LAYER)
    assert len(stage.server.requests) == 3


async def test_tries_are_bounded() -> None:
    async def later(exchange: Exchange) -> None:
        await exchange.send(503)

    async with staged(later) as stage:
        error = await stage.fails()
    assert (type(error), error.reason) == (SourceUnavailable, "RegistryUnavailable")
    assert len(stage.server.requests) == LIMITS.attempts


async def test_a_long_retry_after_is_left_to_the_caller() -> None:
    async def later(exchange: Exchange) -> None:
        await exchange.send(429, headers={"Retry-After": "120"})

    async with staged(later) as stage:
        error = await stage.fails()
    assert isinstance(error, SourceUnavailable)
    assert error.retry_after == 120
    assert len(stage.server.requests) == 1


async def test_a_broken_connection_is_tried_again(tmp_path: Path) -> None:
    broken = [True]

    async def break_once(exchange: Exchange) -> bool:
        if "/blobs/" not in exchange.request.target or not broken:
            return False
        broken.clear()
        await exchange.head(200, {"Content-Length": str(len(LAYER))})
        exchange.writer.write(LAYER[:1000])
        exchange.writer.close()
        return True

    async with staged(FakeRegistry(before=break_once)) as stage:
        layer = first_layer(await stage.resolve())
        target = tmp_path / "layer"
        await stage.client.download(stage.reference(), layer, target, credential=None)
        assert await asyncio.to_thread(target.read_bytes) == LAYER


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

    async with staged(refuse) as stage:
        error = await stage.fails()
    assert (type(error), error.reason) == (expected, reason)
    assert len(stage.server.requests) == 1


async def test_a_wrong_password_is_sent_once() -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.send(401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    async with staged(refuse) as stage:
        error = await stage.fails(credential=BOB)
        assert isinstance(error, SourceDenied)
        assert "'bob'" in str(error)
    assert ["authorization" in request.headers for request in stage.server.requests] == [
        False,
        True,
    ]


async def test_the_password_is_not_sent_again_to_a_registry_that_refused_it_before() -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.send(401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    async with staged(refuse) as stage:
        await stage.fails(credential=BOB)
        await stage.fails(credential=BOB)
    sent = [request for request in stage.server.requests if "authorization" in request.headers]
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

        async with staged(FakeRegistry(before=ask)) as stage:
            await stage.resolve(credential=BOB)
            await stage.resolve(credential=BOB)
            assert len(realm.requests) == 1, "the token is kept"
            await stage.resolve(credential=None)
    basic = "Basic " + base64.b64encode(b"bob:s3cret").decode()
    assert [request.headers.get("authorization") for request in realm.requests] == [basic, None]
    assert all("Basic" not in r.headers.get("authorization", "") for r in stage.server.requests)


async def test_an_expired_token_is_renewed_once() -> None:
    valid = ["t1"]

    async def script(exchange: Exchange) -> bool:
        if exchange.request.target.startswith("/token"):
            await exchange.send(body=json.dumps({"token": valid[0]}).encode())
            return True
        if exchange.request.headers.get("authorization") == f"Bearer {valid[0]}":
            return False
        await exchange.send(401, headers=bearer(f"{stage.server.url}/token"))
        return True

    async with staged(FakeRegistry(before=script)) as stage:
        await stage.resolve()
        valid[0] = "t2"
        await stage.resolve()
    tokens = [request for request in stage.server.requests if "/token" in request.target]
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
            await exchange.send(401, headers=bearer(f"{stage.server.url}/token?secret=s3cret"))

    async with staged(script, limits=replace(LIMITS, attempts=1)) as stage:
        assert type(await stage.fails(credential=BOB)) is expected
    assert len(stage.server.requests) == 2


async def test_an_endless_token_is_cut() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.request.target.startswith("/token"):
            await exchange.head(200, {})
            await exchange.drip(b"x" * 1000, every=0)
        else:
            await exchange.send(401, headers=bearer(f"{stage.server.url}/token"))

    async with staged(script) as stage:
        assert (await stage.fails()).reason == "TooLarge"


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest", "http://[fd00:ec2::254]/"])
async def test_a_redirect_to_metadata_is_blocked(target: str) -> None:
    """Istio's wasm-ssrf-redirect-dial-context, replayed."""

    async def redirect(exchange: Exchange) -> None:
        await exchange.send(307, headers={"Location": target})

    async with staged(redirect) as stage:
        error = await stage.fails()
    assert isinstance(error, AddressBlocked)
    assert "never allowed" in str(error)


async def test_a_token_realm_at_metadata_is_blocked() -> None:
    """Istio's wasm-ssrf-bearer-realm, replayed."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(401, headers=bearer("http://169.254.169.254/token"))

    async with staged(script) as stage:
        assert isinstance(await stage.fails(credential=BOB), AddressBlocked)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_loopback_is_blocked_unless_allowed(host: str) -> None:
    async with staged(FakeRegistry(), policy=AddressPolicy()) as stage:
        port = stage.server.host.rpartition(":")[2]
        reference = ImageReference.parse(f"{host}:{port}/team/filter:v1")
        with pytest.raises(AddressBlocked, match="--allow-private-host"):
            await stage.client.resolve(reference, credential=None)
        assert stage.server.connections == 0


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

        async with staged(FakeRegistry(before=redirect)) as stage:
            layer = first_layer(await stage.resolve(credential=BOB))
            target = tmp_path / "layer"
            await stage.client.download(stage.reference(), layer, target, credential=BOB)
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

        async with staged(FakeRegistry(before=redirect)) as stage:
            layer = first_layer(await stage.resolve(credential=BOB))
            with pytest.raises(SourceDenied):
                await stage.client.download(
                    stage.reference(), layer, tmp_path / "layer", credential=BOB
                )
    assert [request.target for request in elsewhere.requests] == ["/b"]


async def test_an_endless_redirect_body_is_not_read() -> None:
    async def redirect(exchange: Exchange) -> None:
        await exchange.head(307, {"Location": "/v2/again"})
        await exchange.drip(b"x" * 65536, every=0)

    async with staged(redirect) as stage:
        error = await stage.fails()
        await stage.server.all_gone()
    assert error.reason == "TooManyRedirects"


async def test_a_token_is_never_shared_between_credentials_or_repositories() -> None:
    async def script(exchange: Exchange) -> bool:
        if exchange.request.headers.get("authorization"):
            return False
        await exchange.send(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        return True

    async with staged(FakeRegistry(before=script)) as stage:
        await stage.resolve(credential=BOB)
        await stage.fails(credential=None)
        await stage.resolve("team/other:v1", credential=BOB)
    first_of_each = [stage.server.requests[place].headers for place in (0, 2, 3)]
    assert all("authorization" not in headers for headers in first_of_each)


async def test_nothing_listens() -> None:
    async with staged(FakeRegistry()) as stage:
        async with ScriptedServer(Exchange.hang) as other:
            host = other.host
        with pytest.raises(SourceUnavailable, match="refused") as caught:
            await stage.client.resolve(ImageReference.parse(f"{host}/a:b"), credential=None)
    assert caught.value.reason == "RegistryUnavailable"


async def test_a_name_that_does_not_exist() -> None:
    async with staged(FakeRegistry(), limits=replace(LIMITS, attempts=1)) as stage:
        reference = ImageReference.parse("does-not-exist.invalid/a:b")
        with pytest.raises(SourceUnavailable) as caught:
            await stage.client.resolve(reference, credential=None)
    assert caught.value.reason in ("RegistryUnavailable", "Timeout")


async def test_a_closed_client_keeps_no_connection() -> None:
    async with staged(FakeRegistry()) as stage:
        await stage.resolve()
        await stage.client.close()
        await stage.server.all_gone()


async def test_idle_connections_are_bounded() -> None:
    async with staged(FakeRegistry(), limits=replace(LIMITS, idle_registries=2)) as stage:
        for number in range(5):
            await stage.resolve(f"team/filter{number}:v1")
        async with asyncio.timeout(5):
            while stage.server.connections - stage.server.gone > 2:
                await asyncio.sleep(0.01)
