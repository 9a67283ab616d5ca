"""A disk that is really full: stored modules are served, a new one is refused, and wasmer recovers without intervention."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.parts import envoy, registry, volume, wasmer, wat, wire
from tests.parts.registry import RegistryServer
from tests.parts.volume import Volume
from tests.parts.wasmer import Wasmer

MIB = 1024 * 1024
SIZE = 1 * MIB


@dataclass
class Downloads:
    """The answers to a steady stream of downloads of one module."""

    good: int = 0
    bad: list[str] = field(default_factory=list)
    killing: bool = False
    """While the server is killed, a connection may break."""


@dataclass
class SmallDisk:
    """The running parts."""

    directory: Path
    volume: Volume
    registry: RegistryServer
    wasmer: Wasmer

    async def push(self, tag: str) -> bytes:
        """A module that no other tag has, of SIZE bytes."""
        module = wat.padded(wat.header_filter(tag), size=SIZE)
        file = self.directory / f"{tag}.wasm"
        await asyncio.to_thread(file.write_bytes, module)
        client = wasmer.wasmc(self.directory)
        await client.run("push", self.image(tag), "-f", str(file))
        return module

    def image(self, tag: str) -> str:
        return f"{self.registry.host}/filters/hello:{tag}"

    def apply(self, name: str, tag: str) -> None:
        self.wasmer.apply(
            {
                "apiVersion": "wasm.tcm.io/v1alpha1",
                "kind": "AutoWasm",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {
                    "filter": {"source": {"registry": {"image": self.image(tag)}}},
                    "selector": {"matchLabels": {"app": name}},
                },
            }
        )

    @contextlib.asynccontextmanager
    async def downloading(self, module: bytes) -> AsyncIterator[Downloads]:
        """Download it repeatedly."""
        url = f"http://{self.wasmer.host}/wasm/{hashlib.sha256(module).hexdigest()}"
        downloads = Downloads()

        async def download() -> None:
            while True:
                try:
                    answer = await wire.request("GET", url, timeout=60)
                except OSError as error:
                    if not downloads.killing:
                        downloads.bad.append(repr(error))
                else:
                    if (answer.status, answer.body) == (200, module):
                        downloads.good += 1
                    else:
                        downloads.bad.append(f"{answer.status} with {len(answer.body)} bytes")
                await asyncio.sleep(0.02)

        task = asyncio.create_task(download())
        try:
            yield downloads
            assert not task.done(), task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def small_disk(tmp_path: Path) -> AsyncIterator[SmallDisk]:
    async with (
        registry.distribution(tmp_path / "registry") as server,
        volume.small_volume(tmp_path / "wasmer" / "cache", size=8 * MIB) as small,
        wasmer.standalone(
            tmp_path / "wasmer",
            template=envoy.listeners_yaml([1], cluster="web"),
            plain_http=[server.host],
            prefix=small.prefix,
            env=small.env,
        ) as process,
    ):
        yield SmallDisk(tmp_path, small, server, process)


def _reason(status: Mapping[str, Any]) -> str:
    reason: str = next(c["reason"] for c in status["conditions"] if c["type"] == "Fetched")
    return reason


async def test_full_disk_is_a_condition_harms_no_stored_blob_and_heals(
    small_disk: SmallDisk,
) -> None:
    module = await small_disk.push("world")
    small_disk.apply("first", "world")
    await small_disk.wasmer.wait_phase("first", "Synced")
    await small_disk.push("earth")

    async with small_disk.downloading(module) as downloads:
        await small_disk.volume.fill()
        small_disk.apply("second", "earth")
        status = await small_disk.wasmer.wait_phase("second", "Failed")
        assert _reason(status) == "StorageFull"
        assert str(small_disk.volume.directory) in status["message"]
        assert await small_disk.wasmer.metric("autowasm_storage_full") == 1
        assert await small_disk.wasmer.metric("autowasm_storage_refusals_total") >= 1
        assert await small_disk.wasmer.ready()
        assert (await small_disk.wasmer.wait_phase("first", "Synced"))["phase"] == "Synced"

        downloads.killing = True
        await small_disk.wasmer.process.kill()
        await small_disk.wasmer.start()  # on a disk that is still full
        downloads.killing = False
        await small_disk.wasmer.wait_phase("first", "Synced")
        before = downloads.good
        async with asyncio.timeout(60):
            while downloads.good < before + 5 or downloads.good <= 10:
                await asyncio.sleep(0.02)

        await small_disk.volume.free()
        await small_disk.wasmer.wait_phase("second", "Synced", timeout=60)
        assert await small_disk.wasmer.metric("autowasm_storage_full") == 0

    assert not downloads.bad
    assert await small_disk.wasmer.metric("autowasm_blobs") == 2


async def test_more_modules_than_the_volume_holds_leave_nothing_behind(
    small_disk: SmallDisk,
) -> None:
    """The budget is larger than the volume: those that fit are stored, the others are refused."""
    module = await small_disk.push("world")
    small_disk.apply("first", "world")
    await small_disk.wasmer.wait_phase("first", "Synced")
    for tag in range(8):
        await small_disk.push(f"v{tag}")

    async with small_disk.downloading(module) as downloads:
        for tag in range(8):
            small_disk.apply(f"next{tag}", f"v{tag}")
        async with asyncio.timeout(60):
            while not await small_disk.wasmer.metric("autowasm_storage_refusals_total"):
                if not small_disk.volume.real:
                    return  # a simulated disk does not fill up
                await asyncio.sleep(0.05)
            while await small_disk.wasmer.metric("autowasm_blobs") < 5 or downloads.good <= 10:
                await asyncio.sleep(0.05)
        await asyncio.sleep(1)  # and continues to retry

    assert not downloads.bad
    left = await asyncio.to_thread(lambda: list((small_disk.volume.view / "staging").iterdir()))
    assert len(left) <= 1  # at most the one that is being fetched
