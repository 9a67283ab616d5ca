"""How connections of requests are made: names, policy, and both in a transfer's thread."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import requests

from autowasm.errors import AddressBlocked
from autowasm.limits import Limits
from autowasm.net.addresspolicy import AddressPolicy, Purpose
from autowasm.net.dialer import NETWORK_ERRORS, DialedAdapter, Dialer
from autowasm.net.pools import Pools
from autowasm.net.transfer import Transfer, run_transfer
from tests.fakes.scriptedserver import Exchange, ScriptedServer

LIMITS = Limits(dns_timeout=0.2, connect_timeout=1.0)
OPEN = AddressPolicy(allow=["127.0.0.0/8", "::1"])


async def ok(exchange: Exchange) -> None:
    await exchange.send(body=b"ok")


@contextlib.contextmanager
def name_service_that_hangs(pools: Pools) -> Iterator[None]:
    """Every thread for names is busy with a lookup that does not end."""
    release = threading.Event()
    for _ in range(64):
        pools.names.submit(release.wait)
    try:
        yield
    finally:
        release.set()


async def get(
    pools: Pools, url: str, *, policy: AddressPolicy | None = OPEN, limits: Limits = LIMITS
) -> bytes:
    def work(_: Transfer) -> bytes:
        dialer = Dialer(names=pools.names, policy=policy, purpose=Purpose.REGISTRY, limits=limits)
        adapter = DialedAdapter(dialer=dialer, tls=lambda *_: ssl.create_default_context())
        with requests.Session() as session:
            session.trust_env = False
            session.mount("http://", adapter)
            with session.get(url, timeout=5) as response:
                return response.content

    return await run_transfer(pools.transfer, work, what=url, deadline=10, limits=limits)


async def test_names_and_addresses_are_connected_to() -> None:
    async with ScriptedServer(ok) as server:
        port = server.host.rpartition(":")[2]
        with Pools(transfers=1) as pools:
            assert await get(pools, server.url) == b"ok"
            assert await get(pools, f"http://localhost:{port}/") == b"ok"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001"])
async def test_no_way_of_writing_loopback_gets_past_the_policy(host: str) -> None:
    async with ScriptedServer(ok) as server:
        port = server.host.rpartition(":")[2]
        with Pools(transfers=1) as pools, pytest.raises(AddressBlocked, match="loopback"):
            await get(pools, f"http://{host}:{port}/", policy=AddressPolicy())
    assert server.connections == 0


async def test_a_name_service_that_hangs_is_waited_for_a_bounded_time() -> None:
    with (
        Pools(transfers=1) as pools,
        name_service_that_hangs(pools),
        pytest.raises(NETWORK_ERRORS, match="no answer from the name service"),
    ):
        await get(pools, "http://some.example/")


async def test_a_name_service_that_hangs_does_not_touch_plain_addresses() -> None:
    async with ScriptedServer(ok) as server:
        with Pools(transfers=1) as pools, name_service_that_hangs(pools):
            assert await get(pools, server.url) == b"ok"


async def test_cancelling_ends_a_lookup_at_once() -> None:
    limits = replace(LIMITS, dns_timeout=60)
    with Pools(transfers=1) as pools, name_service_that_hangs(pools):
        task = asyncio.create_task(get(pools, "http://some.example/", limits=limits), name="get")
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(30):
            await pools.transfer.run(int)


async def test_an_unanswered_connect_is_ended_by_the_loop() -> None:
    """A listener with a full backlog drops connection attempts, like a dead host."""
    limits = replace(LIMITS, connect_timeout=60.0)
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        with Pools(transfers=1) as pools:
            task = asyncio.create_task(
                get(pools, f"http://127.0.0.1:{address[1]}/", limits=limits), name="get"
            )
            async with asyncio.timeout(30):
                done, _ = await asyncio.wait({task}, timeout=0.3)
                assert not done, "the connection is still being made"
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            async with asyncio.timeout(30):
                await pools.transfer.run(int)


async def test_unanswered_connect_fails_at_its_deadline() -> None:
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        with (
            Pools(transfers=1) as pools,
            pytest.raises(NETWORK_ERRORS, match="was not made in time"),
        ):
            await get(
                pools,
                f"http://127.0.0.1:{address[1]}/",
                limits=replace(LIMITS, connect_timeout=0.2),
            )


async def test_name_with_a_label_that_is_too_long_is_no_host_name() -> None:
    with Pools(transfers=1) as pools, pytest.raises(NETWORK_ERRORS, match="not a host name"):
        await get(pools, f"http://{'a' * 64}.example/")
