"""The simulation of docs/capacity.md against real downloads from a real `wasmer`."""

import asyncio
import hashlib
import os
import time
from pathlib import Path

from tests.bench.capacity import Rollout, simulate
from tests.bench.measure import cpu_seconds
from tests.parts import envoy, wasmer, wire

SIZE = 1 << 20
FEW, MANY = 30, 150


async def herd(server: wasmer.Wasmer, name: str, clients: int) -> float:
    """Processor seconds, the server's and the clients', until all have it, each on a connection of its own."""
    url, pid = f"http://{server.host}/wasm/{name}", server.process.pid
    begun = time.process_time() + cpu_seconds(pid)
    answers = await asyncio.gather(*(wire.get(url, timeout=90) for _ in range(clients)))
    seconds = time.process_time() + cpu_seconds(pid) - begun
    assert [len(one.body) for one in answers] == [SIZE] * clients
    return seconds


async def test_capacity_model_predicts_the_time_of_a_large_herd_from_small_ones(
    tmp_path: Path,
) -> None:
    """In processor time, which other programs do not change; within a factor of three: a tick of the clock is 10 ms."""
    content = os.urandom(SIZE)
    name = hashlib.sha256(content).hexdigest()
    blobs = tmp_path / "cache/blobs"
    blobs.mkdir(parents=True)
    (blobs / name).write_bytes(content)
    template = envoy.listeners_yaml([1], cluster="none")
    async with wasmer.standalone(tmp_path, template=template) as server:
        await herd(server, name, 5)  # hashed, everything warm
        few = [await herd(server, name, FEW) for _ in range(3)]
        many = [await herd(server, name, MANY) for _ in range(2)]
    rate = FEW * SIZE / sorted(few)[1]
    plan = Rollout(
        pods=MANY, module=SIZE, replicas=1, chains=1, network=rate, request_cpu=0, byte_cpu=0
    )
    foretold = simulate(plan).seconds
    assert foretold / 3 < min(many) < foretold * 3
