"""The simulation of docs/capacity.md against real downloads from a real `wasmer`."""

import asyncio
import hashlib
import os
import time
from pathlib import Path

from tests.bench.capacity import Rollout, simulate
from tests.parts import envoy, wasmer, wire

SIZE = 1 << 20
FEW, MANY = 30, 150


async def herd(url: str, clients: int) -> float:
    """Seconds until all of them have it, each on a connection of its own."""
    begun = time.perf_counter()
    answers = await asyncio.gather(*(wire.get(url, timeout=90) for _ in range(clients)))
    seconds = time.perf_counter() - begun
    assert [len(one.body) for one in answers] == [SIZE] * clients
    return seconds


async def test_a_large_herd_takes_as_long_as_small_ones_foretell(tmp_path: Path) -> None:
    """Within a factor of three: this machine is shared, and the clients are slower than the server."""
    content = os.urandom(SIZE)
    name = hashlib.sha256(content).hexdigest()
    blobs = tmp_path / "cache/blobs"
    blobs.mkdir(parents=True)
    (blobs / name).write_bytes(content)
    template = envoy.listeners_yaml([1], cluster="none")
    async with wasmer.standalone(tmp_path, template=template) as server:
        url = f"http://{server.host}/wasm/{name}"
        await herd(url, 5)  # hashed, everything warm
        few = [await herd(url, FEW) for _ in range(3)]
        many = [await herd(url, MANY) for _ in range(2)]
    rate = FEW * SIZE / sorted(few)[1]
    plan = Rollout(
        pods=MANY, module=SIZE, replicas=1, chains=1, network=rate, request_cpu=0, byte_cpu=0
    )
    foretold = simulate(plan).seconds
    assert foretold / 3 < min(many) < foretold * 3
