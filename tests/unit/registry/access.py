"""A registry client that pulls with a login, and registries that require one."""

import base64
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest

from autowasm.digest import Digest
from autowasm.errors import AutoWasmError
from autowasm.limits import Limits
from autowasm.net.addresspolicy import AddressPolicy
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry import mediatypes
from autowasm.registry.client import RegistryClient
from autowasm.registry.credentials import Credential
from autowasm.settings import Outgoing
from tests.fakes.scriptedserver import Exchange, ScriptedServer

LIMITS = Limits(connect_timeout=60, answer_timeout=60, fetch_timeout=600, attempt_backoff=0.01)


BOB = Credential("bob", "s3cret")


BASIC = "Basic " + base64.b64encode(b"bob:s3cret").decode()


EMPTY = {
    "mediaType": mediatypes.WASM_CONFIG,
    "size": 2,
    "digest": f"sha256:{hashlib.sha256(b'{}').hexdigest()}",
}


LAYER = b"\0asm layer"


MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "config": EMPTY,
        "layers": [
            {
                "mediaType": mediatypes.WASM_CONTENT,
                "digest": str(Digest.of(LAYER)),
                "size": len(LAYER),
            }
        ],
    }
).encode()


@dataclass
class Guarded:
    """A registry that requires `accepts` in Authorization, and answers `challenge` otherwise."""

    challenge: str
    accepts: set[str] = field(default_factory=set)
    served: int = 0

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.request.headers.get("authorization") not in self.accepts:
            await exchange.send(401, headers={"WWW-Authenticate": self.challenge})
            return
        self.served += 1
        blob = "/blobs/" in exchange.request.target
        kind = "application/octet-stream" if blob else mediatypes.OCI_MANIFEST
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
