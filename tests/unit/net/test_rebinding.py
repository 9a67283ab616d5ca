"""Name services that change their answer between two lookups (DNS rebinding).

The address of the connection itself is checked, so there is no gap between check and use; each further connection,
after a redirect or a broken one, is checked again.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from autowasm.errors import AddressBlocked, AutoWasmError
from autowasm.limits import Limits
from autowasm.net.addresspolicy import AddressPolicy
from autowasm.net.pools import Pools
from autowasm.net.session import ObjectSession
from autowasm.reference import ImageReference
from autowasm.registry.client import RegistryClient
from autowasm.settings import Outgoing
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.parts import ports

LIMITS = Limits(connect_timeout=60, answer_timeout=60, fetch_timeout=600, attempt_backoff=0.01)
POLICY = AddressPolicy(allow=["127.0.0.1/32"])
"""127.0.0.1 stands for an address of the internet; all other loopback addresses for private ones."""
METADATA = "169.254.169.254"


@dataclass
class FickleNames:
    """Returns the answers in order, then repeats the last one."""

    answers: list[list[str]]
    lookups: list[str] = field(default_factory=list)

    def __call__(self, host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        self.lookups.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            entry
            for address in answer
            for entry in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
        ]


@asynccontextmanager
async def objects(names: FickleNames) -> AsyncIterator[ObjectSession]:
    with Pools() as pools:
        async with ObjectSession(
            outgoing=Outgoing(), limits=LIMITS, pools=pools, policy=POLICY, resolver=names
        ) as session:
            yield session


@asynccontextmanager
async def registries(
    names: FickleNames, *, policy: AddressPolicy = POLICY
) -> AsyncIterator[RegistryClient]:
    with Pools(transfers=1) as pools:
        outgoing = Outgoing(plain_http=frozenset({"evil.example"}))
        client = RegistryClient(
            outgoing=outgoing, limits=LIMITS, pools=pools, policy=policy, resolver=names
        )
        try:
            yield client
        finally:
            await client.close()


async def read(session: ObjectSession, url: str) -> bytes:
    async with session.stream_get(url) as stream:
        return b"".join([chunk async for chunk in stream])


async def again(exchange: Exchange) -> None:
    """The first answer redirects to the same name, and closes the connection."""
    if exchange.request.target == "/end":
        await exchange.send(body=b"inside")
    else:
        await exchange.send(302, headers={"Location": "/end", "Connection": "close"})
        exchange.writer.close()


@pytest.mark.parametrize("inside", ["127.0.0.2", METADATA, "::ffff:127.0.0.2", "::1"])
async def test_an_object_whose_name_moves_inside_is_not_followed(inside: str) -> None:
    names = FickleNames([["127.0.0.1"], [inside]])
    async with ScriptedServer(again) as server, objects(names) as session:
        port = server.host.rpartition(":")[2]
        with pytest.raises(AddressBlocked):
            await read(session, f"http://evil.example:{port}/")
        assert len(server.requests) == 1
    assert names.lookups == ["evil.example"] * 2, "one lookup for each connection: nothing between"


async def test_name_with_allowed_and_blocked_addresses_reaches_only_the_allowed_ones() -> None:
    names = FickleNames([[METADATA, "127.0.0.2", "127.0.0.1"]])
    async with ScriptedServer(again) as server, objects(names) as session:
        port = server.host.rpartition(":")[2]
        assert await read(session, f"http://evil.example:{port}/end") == b"inside"


@pytest.mark.parametrize("inside", ["127.0.0.2", METADATA, "::1"])
async def test_a_registry_whose_name_moves_inside_is_not_asked_again(inside: str) -> None:
    async def broken(exchange: Exchange) -> None:
        exchange.writer.close()  # so that the client connects a second time

    names = FickleNames([["127.0.0.1"], [inside]])
    policy = AddressPolicy(allow=["127.0.0.1/32"], deny=["127.0.0.2/32"])
    async with ScriptedServer(broken) as server, registries(names, policy=policy) as client:
        reference = ImageReference.parse(f"evil.example:{server.host.rpartition(':')[2]}/a:b")
        with pytest.raises(AddressBlocked):
            await client.resolve(reference, credential=None)
        assert server.connections == 1
    assert len(names.lookups) == 2


async def test_a_token_realm_whose_name_moves_inside_gets_no_login() -> None:
    async def script(exchange: Exchange) -> None:
        port = server.host.rpartition(":")[2]
        realm = f'Bearer realm="http://auth.example:{port}/token"'
        await exchange.send(401, headers={"WWW-Authenticate": realm})

    names = FickleNames([["127.0.0.1"], [METADATA]])
    async with ScriptedServer(script) as server, registries(names) as client:
        reference = ImageReference.parse(f"evil.example:{server.host.rpartition(':')[2]}/a:b")
        with pytest.raises(AddressBlocked, match="never allowed"):
            await client.resolve(reference, credential=None)
    assert names.lookups == ["evil.example", "auth.example"]


ANSWERS = [
    ["127.0.0.2"],
    ["127.0.0.2", "127.0.0.3"],
    ["127.0.0.1", "127.0.0.2"],
    ["127.0.0.2", "127.0.0.1"],
    ["::ffff:127.0.0.2", "127.0.0.1"],
]


@pytest.mark.parametrize("answer", ANSWERS, ids="+".join)
@pytest.mark.parametrize("kind", ["object", "registry"])
async def test_no_answer_of_a_name_service_tells_an_open_port_from_a_closed_one(
    kind: str, answer: list[str]
) -> None:
    """A real port that listens at 127.0.0.2, inside, and one that does not. 127.0.0.1 refuses both."""
    connected: list[object] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer.get_extra_info("peername"))
        writer.close()

    async def said(port: int) -> tuple[str, str]:
        names = FickleNames([answer])
        with pytest.raises(AutoWasmError) as caught:
            await fetch(kind, names, port)
        return caught.value.reason, str(caught.value).replace(str(port), "PORT")

    port = ports.free_port()
    closed = await said(port)
    server = await asyncio.start_server(accept, "127.0.0.2", port)
    async with server:
        assert await said(port) == closed
    assert connected == []
    assert (closed[0] == "AddressNotAllowed") == ("127.0.0.1" not in answer)


async def fetch(kind: str, names: FickleNames, port: int) -> None:
    if kind == "object":
        async with objects(names) as session:
            await read(session, f"http://evil.example:{port}/")
        return
    async with registries(names) as client:
        await client.resolve(ImageReference.parse(f"evil.example:{port}/a:b"), credential=None)
