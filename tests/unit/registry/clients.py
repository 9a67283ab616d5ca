"""A registry client on a scripted registry."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from autowasm.digest import Digest
from autowasm.errors import (
    AutoWasmError,
)
from autowasm.limits import MIB, Limits
from autowasm.net.addresspolicy import AddressPolicy
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry.client import RegistryClient
from autowasm.registry.credentials import Credential
from autowasm.registry.manifest import Descriptor, Manifest
from autowasm.settings import Outgoing
from tests.fakes.scriptedserver import Exchange, ScriptedServer

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


LIMITS = Limits(
    connect_timeout=60,
    answer_timeout=60,
    fetch_timeout=600,
    minimum_rate=1000,
    minimum_rate_after=60,
    attempt_backoff=0.05,
    attempt_wait=1.0,
    layer_bytes=MIB,
    manifest_bytes=65536,
    token_bytes=4096,
)


LOOPBACK = AddressPolicy(allow=["127.0.0.0/8"])


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
class ScriptedRegistry:
    """A registry that answers by a script, and the client that asks it."""

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
        async with asyncio.timeout(30):
            await asyncio.gather(*(self.pools.transfer.run(barrier.wait) for _ in range(TRANSFERS)))


@contextlib.asynccontextmanager
async def scripted_registry(
    script: Callable[[Exchange], Awaitable[None]],
    *,
    limits: Limits = LIMITS,
    policy: AddressPolicy | None = LOOPBACK,
) -> AsyncIterator[ScriptedRegistry]:
    async with ScriptedServer(script) as server:
        with Pools(transfers=TRANSFERS) as pools:
            outgoing = Outgoing(plain_http=frozenset({"127.0.0.1"}))
            client = RegistryClient(outgoing=outgoing, limits=limits, pools=pools, policy=policy)
            try:
                yield ScriptedRegistry(client, server, pools)
            finally:
                await client.close()
