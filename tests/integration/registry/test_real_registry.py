"""RegistryClient against distribution's registry and go-containerregistry's."""

import asyncio
import contextlib
import hashlib
import json
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from autowasm.digest import Digest
from autowasm.errors import (
    AutoWasmError,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
)
from autowasm.limits import MIB, Limits
from autowasm.net.addresspolicy import AddressPolicy
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry import mediatypes
from autowasm.registry.client import RegistryClient, ResolvedImage
from autowasm.registry.credentials import Credential
from autowasm.registry.manifest import Descriptor
from autowasm.registry.package import Layer, Package
from autowasm.settings import Outgoing
from tests.parts import registry
from tests.parts.certificates import Authority

BOB = Credential("bob", "s3cret")
LIMITS = Limits(attempt_backoff=0.05)


def first_layer(resolved: ResolvedImage) -> Descriptor:
    return (resolved.manifest.layers or ())[0]


def layer_of(
    content: bytes | Path, data: bytes, media_type: str = mediatypes.WASM_CONTENT
) -> Layer:
    return Layer(media_type, Digest.of(data), len(data), content)


def described(layer: Layer) -> dict[str, object]:
    return {"mediaType": layer.media_type, "digest": str(layer.digest), "size": layer.size}


def package_of(module: bytes, *, content: Path | None = None) -> Package:
    config = layer_of(b"{}", b"{}", mediatypes.WASM_CONFIG)
    layer = layer_of(content or module, module)
    manifest = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "config": described(config),
        "layers": [described(layer)],
    }
    return Package(config, (layer,), json.dumps(manifest).encode(), mediatypes.OCI_MANIFEST)


@contextlib.asynccontextmanager
async def client(
    *, outgoing: Outgoing | None = None, limits: Limits = LIMITS
) -> AsyncIterator[RegistryClient]:
    outgoing = outgoing or Outgoing(plain_http=frozenset({"127.0.0.1"}))
    policy = AddressPolicy(allow=["127.0.0.0/8"])
    with Pools(transfers=4) as pools:
        made = RegistryClient(outgoing=outgoing, limits=limits, pools=pools, policy=policy)
        try:
            yield made
        finally:
            await made.close()


async def fails(
    client: RegistryClient, reference: ImageReference, credential: Credential | None = None
) -> AutoWasmError:
    with pytest.raises(AutoWasmError) as caught:
        await client.resolve(reference, credential=credential)
    assert "s3cret" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", ["distribution", "crane"])
async def test_pushes_and_pulls_by_tag_and_by_digest(kind: str, tmp_path: Path) -> None:
    module = b"\0asm" + bytes(range(256)) * 40_000
    source = tmp_path / "module.wasm"
    await asyncio.to_thread(source.write_bytes, module)
    package = package_of(module, content=source)
    async with getattr(registry, kind)(tmp_path) as server, client() as registry_client:
        reference = ImageReference.parse(f"{server.host}/team/filter:v1")
        sent: list[int] = []
        pushed = await registry_client.push(
            reference, package, credential=None, on_bytes=sent.append
        )
        assert pushed == Digest.of(package.manifest)
        assert sum(sent) >= len(module)
        sent.clear()
        assert (
            await registry_client.push(reference, package, credential=None, on_bytes=sent.append)
            == pushed
        )
        assert sum(sent) < 1000, "what is there is not sent again"
        assert await registry_client.head(reference, credential=None) == pushed
        for asked in (reference, reference.pinned(pushed)):
            resolved = await registry_client.resolve(asked, credential=None)
            assert resolved.digest == pushed
            target = tmp_path / "layer"
            layer = first_layer(resolved)
            await registry_client.download(asked, layer, target, credential=None)
            assert await asyncio.to_thread(target.read_bytes) == module


@pytest.mark.parametrize("kind", ["distribution", "crane"])
async def test_missing_image_is_reported_as_not_found(kind: str, tmp_path: Path) -> None:
    async with getattr(registry, kind)(tmp_path) as server, client() as registry_client:
        for text in ("no/such:v1", f"no/such@{Digest.of(b'x')}"):
            error = await fails(registry_client, ImageReference.parse(f"{server.host}/{text}"))
            assert (type(error), error.reason) == (SourceNotFound, "ImageNotFound")


async def test_passwords_right_wrong_and_missing(tmp_path: Path) -> None:
    package = package_of(b"\0asm module")
    async with (
        registry.distribution(tmp_path, users={"bob": "s3cret"}) as server,
        client() as registry_client,
    ):
        reference = ImageReference.parse(f"{server.host}/team/filter:v1")
        with pytest.raises(SourceDenied, match="no login was sent"):
            await registry_client.push(reference, package, credential=None)
        await registry_client.push(reference, package, credential=BOB)
        assert (await registry_client.resolve(reference, credential=BOB)).manifest.layers
        assert isinstance(await fails(registry_client, reference), SourceDenied)
        wrong = Credential("bob", "not-s3cret")
        error = await fails(registry_client, reference, wrong)
        assert isinstance(error, SourceDenied)
        assert "'bob'" in str(error)


async def test_tls_with_an_authority_of_its_own(tmp_path: Path) -> None:
    files = await asyncio.to_thread(Authority().issue, tmp_path / "tls")
    package = package_of(b"\0asm module")
    async with registry.distribution(tmp_path, tls=files) as server:
        reference = ImageReference.parse(f"{server.host}/team/filter:v1")
        trusting = Outgoing(ca_file=files.authority)
        async with client(outgoing=trusting) as registry_client:
            await registry_client.push(reference, package, credential=None)
            assert (await registry_client.resolve(reference, credential=None)).manifest.layers
        async with client(outgoing=Outgoing()) as registry_client:
            error = await fails(registry_client, reference)
            assert (type(error), error.reason) == (SourceUnavailable, "CertificateInvalid")
        careless = Outgoing(insecure=frozenset({server.host}))
        async with client(outgoing=careless) as registry_client:
            assert (await registry_client.resolve(reference, credential=None)).manifest.layers
        plain = Outgoing(plain_http=frozenset({"127.0.0.1"}))
        async with client(outgoing=plain) as registry_client:
            assert (await fails(registry_client, reference)).reason == "TlsFailed"


async def test_a_certificate_for_another_name_is_not_trusted(tmp_path: Path) -> None:
    files = await asyncio.to_thread(Authority().issue, tmp_path / "tls", addresses=("127.0.0.9",))
    async with (
        registry.distribution(tmp_path, tls=files) as server,
        client(outgoing=Outgoing(ca_file=files.authority)) as registry_client,
    ):
        error = await fails(registry_client, ImageReference.parse(f"{server.host}/a:b"))
    assert error.reason == "CertificateInvalid"
    assert "127.0.0.1" in str(error)


async def test_https_to_a_plain_registry_advises_plain_http(tmp_path: Path) -> None:
    async with registry.crane(tmp_path) as server, client(outgoing=Outgoing()) as registry_client:
        error = await fails(registry_client, ImageReference.parse(f"{server.host}/a:b"))
    assert (type(error), error.reason) == (SourceUnavailable, "TlsFailed")
    assert "plain http" in str(error)


async def test_a_stopped_registry_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    async with registry.distribution(tmp_path) as server, client() as registry_client:
        reference = ImageReference.parse(f"{server.host}/team/filter:v1")
        pushed = await registry_client.push(reference, package_of(b"\0asm"), credential=None)
        await server.stop()
        error = await fails(registry_client, reference)
        assert (type(error), error.reason) == (SourceUnavailable, "RegistryUnavailable")
        await server.start()
        assert (await registry_client.resolve(reference, credential=None)).digest == pushed


async def test_an_index_resolves_to_its_image(tmp_path: Path) -> None:
    package = package_of(b"\0asm module")
    async with registry.distribution(tmp_path) as server, client() as registry_client:
        reference = ImageReference.parse(f"{server.host}/team/filter:v1")
        child = await registry_client.push(reference, package, credential=None)
        entry: Mapping[str, object] = {
            "mediaType": mediatypes.OCI_MANIFEST,
            "digest": str(child),
            "size": len(package.manifest),
        }
        index = json.dumps(
            {"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": [entry]}
        ).encode()
        pushed = await registry_client.push(
            replace(reference, tag="index"),
            replace(package, manifest=index, media_type=mediatypes.OCI_INDEX),
            credential=None,
        )
        resolved = await registry_client.resolve(replace(reference, tag="index"), credential=None)
        assert resolved.digest == pushed != child
        assert first_layer(resolved).digest == Digest.of(b"\0asm module")


async def test_memory_does_not_grow_with_the_layer(tmp_path: Path) -> None:
    """48 MiB pass through far less memory, both ways."""
    block = hashlib.sha256(b"x").digest() * 32_768
    source = tmp_path / "module.wasm"

    def write() -> bytes:
        module = block * 48
        source.write_bytes(module)
        return module

    package = package_of(await asyncio.to_thread(write), content=source)
    async with registry.crane(tmp_path) as server, client() as registry_client:
        reference = ImageReference.parse(f"{server.host}/team/filter:v1")
        tracemalloc.start()
        try:
            await registry_client.push(reference, package, credential=None)
            resolved = await registry_client.resolve(reference, credential=None)
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            await registry_client.download(
                reference, first_layer(resolved), tmp_path / "layer", credential=None
            )
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak - before < 8 * MIB
