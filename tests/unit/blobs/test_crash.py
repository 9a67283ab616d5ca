"""A writer killed at any moment leaves a store that is whole."""

import asyncio
import hashlib
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.net.pools import Pools
from autowasm.telemetry.metrics import Metrics

SIZES = (100, 70_000, 900_000)
ROUNDS = 6
SECONDS = 3.0


def _write_for_ever(directory: str, seed: int, begun: "multiprocessing.synchronize.Event") -> None:
    async def write() -> None:
        rng = random.Random(seed)
        with Pools() as pools:
            async with BlobStore(Path(directory), pools=pools, metrics=Metrics()) as store:
                while True:
                    data = rng.randbytes(rng.choice(SIZES))
                    digest = Sha256Hex(hashlib.sha256(data).hexdigest())
                    async with store.stage() as stage:
                        stage.path.write_bytes(data)
                        await store.commit(stage, digest)
                    begun.set()
                    if rng.random() < 0.2:
                        await store.discard(digest)

    asyncio.run(write())


async def _check(directory: Path) -> int:
    with Pools() as pools:
        metrics = Metrics()
        async with BlobStore(directory, pools=pools, metrics=metrics) as store:
            assert list((directory / "staging").iterdir()) == []
            for digest in store.digests():
                data = (directory / "blobs" / digest).read_bytes()
                assert hashlib.sha256(data).hexdigest() == digest
            assert {path.name for path in (directory / "blobs").iterdir()} == store.digests()
            await store.verify_all()
            assert metrics.registry.get_sample_value("autowasm_blobs_damaged_total") == 0
            count = len(store.digests())
            for digest in list(store.digests())[8:]:  # keep the check short
                await store.discard(digest)
            return count


async def test_every_indexed_blob_is_whole_after_kill_at_random_moments(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["autowasm.blobs.store", "autowasm.telemetry.metrics"])
    rng = random.Random(5)
    ends = time.monotonic() + SECONDS
    stored = rounds = 0
    while rounds < 2 or (rounds < ROUNDS and time.monotonic() < ends):
        begun = context.Event()
        writer = context.Process(target=_write_for_ever, args=(str(tmp_path), rounds, begun))
        writer.start()
        while not begun.is_set():
            assert writer.is_alive()
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05 * rng.random())
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        stored += await _check(tmp_path)
        rounds += 1
    assert stored > 0
