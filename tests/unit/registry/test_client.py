"""The registry client: manifests, indexes and layers."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autowasm.digest import Digest, HashedFile, Signature
from autowasm.errors import (
    AddressBlocked,
    ContentRejected,
    SourceDenied,
    SourceNotFound,
    StorageError,
)
from autowasm.registry.package import make_package
from tests.fakes.scriptedserver import Exchange
from tests.unit.registry.clients import (
    LAYER,
    LIMITS,
    MANIFEST,
    MANIFEST_TYPE,
    FakeRegistry,
    first_layer,
    scripted_registry,
)

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


async def test_resolves_and_downloads(tmp_path: Path) -> None:
    told: list[int] = []
    async with scripted_registry(FakeRegistry()) as scripted:
        resolved = await scripted.client.resolve(scripted.reference(), credential=None)
        assert resolved.digest == Digest.of(MANIFEST)
        layer = first_layer(resolved.manifest)
        target = tmp_path / "layer"
        file = await scripted.client.download(
            scripted.reference(), layer, target, credential=None, on_bytes=told.append
        )
        assert await asyncio.to_thread(target.read_bytes) == LAYER
        with target.open("rb") as written:
            assert file == HashedFile(Digest.of(LAYER).hex, Signature.of(written.fileno()))
        assert sum(told) == len(LAYER)
        assert scripted.server.connections == 1, "the connection is used again"
    assert {request.headers["accept-encoding"] for request in scripted.server.requests} == {
        "identity"
    }
    assert all("authorization" not in request.headers for request in scripted.server.requests)


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
    async with scripted_registry(registry) as scripted:
        resolved = await scripted.client.resolve(scripted.reference(), credential=None)
        assert resolved.digest == Digest.of(index.encode())
        assert first_layer(resolved.manifest).size == len(LAYER)
        registry.by_digest = {child: (MANIFEST + b" ", MANIFEST_TYPE)}
        error = await scripted.fails()
    assert error.reason == "SizeMismatch"


async def test_a_manifest_that_is_not_the_pinned_one_is_rejected() -> None:
    async with scripted_registry(FakeRegistry()) as scripted:
        error = await scripted.fails(f"team/filter@{Digest.of(b'another')}")
    assert (type(error), error.reason) == (ContentRejected, "DigestMismatch")


async def test_a_manifest_that_is_not_the_announced_one_is_rejected() -> None:
    async def lie(exchange: Exchange) -> bool:
        headers = {"Docker-Content-Digest": str(Digest.of(b"another"))}
        await exchange.send(body=MANIFEST, headers=headers)
        return True

    async with scripted_registry(FakeRegistry(before=lie)) as scripted:
        assert (await scripted.fails()).reason == "DigestMismatch"


async def test_a_manifest_without_announced_digest_is_hashed() -> None:
    async def silent(exchange: Exchange) -> bool:
        await exchange.send(body=MANIFEST, headers={"Content-Type": MANIFEST_TYPE})
        return True

    async with scripted_registry(FakeRegistry(before=silent)) as scripted:
        resolved = await scripted.client.resolve(scripted.reference(), credential=None)
        assert resolved.digest == Digest.of(MANIFEST)
        assert await scripted.client.head(scripted.reference(), credential=None) is None


async def test_head_tells_the_announced_digest() -> None:
    async with scripted_registry(FakeRegistry()) as scripted:
        assert await scripted.client.head(scripted.reference(), credential=None) == Digest.of(
            MANIFEST
        )
    assert [request.method for request in scripted.server.requests] == ["HEAD"]


async def test_a_refused_head_is_no_verdict_on_the_image() -> None:
    async def refuse_head(exchange: Exchange) -> bool:
        if exchange.request.method != "HEAD":
            return False
        await exchange.head(403, {"Content-Length": "0"})
        return True

    async with scripted_registry(FakeRegistry(before=refuse_head)) as scripted:
        assert await scripted.client.head(scripted.reference(), credential=None) is None
        resolved = await scripted.client.resolve(scripted.reference(), credential=None)
        assert resolved.digest == Digest.of(MANIFEST)


async def test_an_endless_manifest_is_cut() -> None:
    async def endless(exchange: Exchange) -> bool:
        await exchange.head(200, {})
        await exchange.drip(b"x" * 10_000, every=0)
        return True

    async with scripted_registry(FakeRegistry(before=endless)) as scripted:
        error = await scripted.fails()
        await scripted.server.all_gone()
    assert (type(error), error.reason) == (ContentRejected, "TooLarge")


async def test_a_compressed_manifest_is_not_decompressed() -> None:
    async def compressed(exchange: Exchange) -> bool:
        await exchange.send(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
        return True

    async with scripted_registry(FakeRegistry(before=compressed)) as scripted:
        assert (await scripted.fails()).reason == "ManifestInvalid"


async def test_a_wrong_layer_is_rejected(tmp_path: Path) -> None:
    async with scripted_registry(FakeRegistry(layer=LAYER[:-1] + b"!")) as scripted:
        error = await scripted.download_fails(tmp_path / "layer")
    assert (type(error), error.reason) == (ContentRejected, "DigestMismatch")


@pytest.mark.parametrize("layer", [LAYER + b"!", LAYER[:-1]])
async def test_a_layer_of_another_size_is_rejected(layer: bytes, tmp_path: Path) -> None:
    async with scripted_registry(FakeRegistry(layer=layer)) as scripted:
        error = await scripted.download_fails(tmp_path / "layer")
    assert (type(error), error.reason) == (ContentRejected, "SizeMismatch")


async def test_an_endless_layer_is_cut_at_its_size(tmp_path: Path) -> None:
    async def endless(exchange: Exchange) -> bool:
        if "/blobs/" not in exchange.request.target:
            return False
        await exchange.head(200, {})
        await exchange.drip(b"x" * 100_000, every=0)
        return True

    async with scripted_registry(FakeRegistry(before=endless)) as scripted:
        error = await scripted.download_fails(tmp_path / "layer")
        await scripted.server.all_gone()
    assert error.reason == "SizeMismatch"
    assert (tmp_path / "layer").stat().st_size <= len(LAYER) + LIMITS.transfer_chunk


async def test_a_layer_beyond_the_limit_is_not_asked_for(tmp_path: Path) -> None:
    async with scripted_registry(
        FakeRegistry(), limits=replace(LIMITS, layer_bytes=1000)
    ) as scripted:
        error = await scripted.download_fails(tmp_path / "layer")
    assert (type(error), error.reason) == (ContentRejected, "TooLarge")
    assert len(scripted.server.requests) == 1


async def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    async with scripted_registry(FakeRegistry()) as scripted:
        error = await scripted.download_fails(tmp_path / "missing" / "layer")
    assert (type(error), error.reason) == (StorageError, "StorageUnavailable")


async def test_an_endless_redirect_body_is_not_read() -> None:
    async def redirect(exchange: Exchange) -> None:
        await exchange.head(307, {"Location": "/v2/again"})
        await exchange.drip(b"x" * 65536, every=0)

    async with scripted_registry(redirect) as scripted:
        error = await scripted.fails()
        await scripted.server.all_gone()
    assert error.reason == "TooManyRedirects"


def _index(*children: bytes) -> bytes:
    described = [
        {
            "mediaType": MANIFEST_TYPE,
            "digest": str(Digest.of(child)),
            "size": len(child),
            "platform": {"os": "linux", "architecture": architecture},
        }
        for child, architecture in zip(children, ("amd64", "arm64"), strict=True)
    ]
    document = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": described}
    return json.dumps(document).encode()


def _missing(*digests: str) -> Callable[[Exchange], Awaitable[bool]]:
    async def answer(exchange: Exchange) -> bool:
        if exchange.request.target.rpartition("/")[2] not in digests:
            return False
        await exchange.send(404)
        return True

    return answer


async def test_mirror_that_copied_some_platforms_only_gives_one_of_those() -> None:
    other = MANIFEST + b" "
    index = _index(other, MANIFEST)
    registry = FakeRegistry(
        manifest=index,
        media_type=INDEX_TYPE,
        by_digest={str(Digest.of(MANIFEST)): (MANIFEST, MANIFEST_TYPE)},
        before=_missing(str(Digest.of(other))),
    )
    async with scripted_registry(registry) as scripted:
        resolved = await scripted.client.resolve(scripted.reference(), credential=None)
        assert resolved.child == Digest.of(MANIFEST)
        assert resolved.digest == Digest.of(index)


async def test_mirror_that_copied_nothing_but_the_index_has_no_image() -> None:
    other = MANIFEST + b" "
    digests = [str(Digest.of(child)) for child in (other, MANIFEST)]
    registry = FakeRegistry(
        manifest=_index(other, MANIFEST), media_type=INDEX_TYPE, before=_missing(*digests)
    )
    async with scripted_registry(registry) as scripted:
        error = await scripted.fails()
    assert (type(error), error.reason) == (SourceNotFound, "ImageNotFound")


async def test_index_within_an_index_is_rejected() -> None:
    inner = _index(MANIFEST, MANIFEST + b" ")
    index = _index(inner, MANIFEST)
    registry = FakeRegistry(
        manifest=index,
        media_type=INDEX_TYPE,
        by_digest={str(Digest.of(inner)): (inner, INDEX_TYPE)},
    )
    async with scripted_registry(registry) as scripted:
        error = await scripted.fails()
    assert (type(error), error.reason) == (ContentRejected, "ManifestInvalid")
    assert "an index in an index is not supported" in str(error)
    assert str(Digest.of(inner)) in str(error)


async def test_no_more_of_a_long_error_is_read_than_a_message_may_have() -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.head(403, {"Content-Type": "text/plain"})
        await exchange.drip(b"no " * 1000, every=0)

    async with scripted_registry(refuse) as scripted:
        error = await scripted.fails()
    assert isinstance(error, SourceDenied)
    assert "no no no" in str(error)
    assert len(str(error)) < 2000


async def _push(tmp_path: Path, *, location: str | None, announced: bytes | None = None) -> Any:
    async def script(exchange: Exchange) -> None:
        method = exchange.request.method
        if method == "HEAD":
            await exchange.send(404)
        elif method == "POST":
            path = "/v2/team/filter/blobs/uploads/1"
            await exchange.send(202, headers={"Location": location or path})
        elif announced is not None and "/manifests/" in exchange.request.target:
            await exchange.send(201, headers={"Docker-Content-Digest": str(Digest.of(announced))})
        else:
            await exchange.send(201)

    module = tmp_path / "module"
    module.write_bytes(LAYER)
    package = await asyncio.to_thread(
        make_package, "artifact", module, abi="0.2.1", workdir=tmp_path
    )
    async with scripted_registry(script) as scripted:
        return await scripted.client.push(scripted.reference(), package, credential=None)


async def test_registry_that_stores_another_manifest_than_was_sent_is_an_error(
    tmp_path: Path,
) -> None:
    with pytest.raises(ContentRejected, match="stored the manifest as") as caught:
        await _push(tmp_path, location=None, announced=b"another")
    assert caught.value.reason == "DigestMismatch"
    assert str(Digest.of(b"another")) in str(caught.value)


async def test_upload_that_goes_on_at_no_url_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AddressBlocked, match="an invalid URL") as caught:
        await _push(tmp_path, location="http://[::1/upload")
    assert caught.value.reason == "UrlNotAllowed"


async def test_connection_of_a_request_that_outlives_the_client_is_closed(tmp_path: Path) -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def wait(exchange: Exchange) -> bool:
        asked.set()
        await may_answer.wait()
        return False

    async with scripted_registry(FakeRegistry(before=wait)) as scripted:
        resolving = asyncio.create_task(scripted.resolve())
        await asked.wait()
        await scripted.client.close()
        may_answer.set()
        assert first_layer(await resolving).size == len(LAYER)
