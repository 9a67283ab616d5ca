"""The sources of one tenant never delay those of another (ADR 11, ADR 21)."""

import asyncio

import pytest

from tests.hostile import inputs
from tests.hostile.conftest import autowasm
from tests.hostile.origin import Origin, chunked, endless_headers, steady
from tests.parts.wasmer import Wasmer

MIB = 1024 * 1024
ABOVE_THE_LEAST_RATE = 96 * 1024
"""Bytes a second: just fast enough not to be cut, so such a body occupies its place for five minutes."""


@pytest.mark.timeout(240)
async def test_two_namespaces_with_slow_bodies_do_not_close_a_host_to_a_third(
    server: Wasmer, hosts: list[Origin]
) -> None:
    host = hosts[0]
    slow = [(name, name[0] * 3) for name in ("a1", "a2", "a3", "b1", "b2", "b3")]
    for name, namespace in slow:
        url = host.act(f"/{name}", steady(ABOVE_THE_LEAST_RATE, size=31 * MIB))
        server.apply(autowasm(name, namespace=namespace, url=url))
    async with asyncio.timeout(60):
        # All places of the host are taken.
        while sum(host.requests[f"/{name}"] for name, _ in slow) < 4:
            await asyncio.sleep(0.05)

    url = host.serve("/good", inputs.hello())
    server.apply(autowasm("good", namespace="ccc", url=url))
    async with asyncio.timeout(90):
        while server.status("good", namespace="ccc").get("phase") != "Synced":
            await server.process.check()
            await asyncio.sleep(0.1)

    # It was fetched while they continued, not because they had ended.
    phases = [server.status(name, namespace=namespace).get("phase") for name, namespace in slow]
    assert "Failed" not in phases
    assert sum(host.requests[f"/{name}"] for name, _ in slow) == 4


@pytest.mark.timeout(240)
async def test_a_host_that_never_answers_rightly_delays_no_other_host(
    server: Wasmer, hosts: list[Origin]
) -> None:
    bad, good = hosts[0], hosts[1]

    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    ways = {
        "silent": silent,
        "drip": chunked(b"a", pause=1.0),
        "headers": endless_headers,
        "endless": chunked(bytes(MIB)),
    }
    for number in range(40):
        way = list(ways)[number % 4]
        url = bad.act(f"/{way}{number}", ways[way])
        server.apply(autowasm(f"bad{number}", namespace=f"ns{number % 5}", url=url))
    async with asyncio.timeout(60):
        while bad.requests.total() < 4:
            await asyncio.sleep(0.05)
    url = good.serve("/good", inputs.hello())
    begin = asyncio.get_running_loop().time()
    server.apply(autowasm("good", namespace="ns0", url=url))
    async with asyncio.timeout(60):
        while server.status("good", namespace="ns0").get("phase") != "Synced":
            await server.process.check()
            await asyncio.sleep(0.05)
    assert asyncio.get_running_loop().time() - begin < 20
