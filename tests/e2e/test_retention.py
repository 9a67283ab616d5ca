"""The modules that a running `wasmer` retains: budget, share of a namespace, grace period, and a restart in between (issue 5)."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.parts import envoy, registry, wasmer, wat, wire
from tests.parts.registry import RegistryServer
from tests.parts.wasmer import Wasmer

SIZE = 1024 * 1024
BUDGET = (
    "--disk-budget", "4500Ki", "--namespace-disk-budget", "2500Ki",
    "--preflight", "off",  # the whole budget is for blobs
)  # fmt: skip


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[RegistryServer]:
    """A registry for the test; tags are pushed with `push`."""
    async with registry.distribution(tmp_path / "registry") as server:
        yield server


async def push(images: RegistryServer, directory: Path, tag: str) -> str:
    """A module that no other tag has; returns its sha256."""
    module = wat.padded(wat.header_filter(tag), size=SIZE)
    file = directory / f"{tag}.wasm"
    await asyncio.to_thread(file.write_bytes, module)
    client = wasmer.wasmc(directory)
    await client.run("push", f"{images.host}/filters/hello:{tag}", "-f", str(file))
    return hashlib.sha256(module).hexdigest()


def apply(
    process: Wasmer, images: RegistryServer, name: str, tag: str, *, namespace: str = "default"
) -> None:
    process.apply(
        {
            "apiVersion": "wasm.tcm.io/v1alpha1",
            "kind": "AutoWasm",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "filter": {"source": {"registry": {"image": f"{images.host}/filters/hello:{tag}"}}},
                "selector": {"matchLabels": {"app": name}},
            },
        }
    )


def standalone(
    directory: Path, images: RegistryServer, *arguments: str
) -> AbstractAsyncContextManager[Wasmer]:
    return wasmer.standalone(
        directory,
        template=envoy.listeners_yaml([1], cluster="web"),
        plain_http=[images.host],
        arguments=arguments,
    )


async def served(process: Wasmer, sha256: str) -> bool:
    return (await wire.request("GET", f"http://{process.host}/wasm/{sha256}")).status == 200


async def published(process: Wasmer, name: str, sha256: str, *, namespace: str = "default") -> None:
    """Wait until the EnvoyFilter names it."""
    async with asyncio.timeout(30):
        while sha256 not in str(
            await asyncio.to_thread(process.envoyfilter, name, namespace=namespace)
        ):
            await asyncio.sleep(0.02)


async def test_old_versions_make_room_and_a_namespace_stays_within_its_share(
    tmp_path: Path, images: RegistryServer
) -> None:
    digests = {tag: await push(images, tmp_path, tag) for tag in "abcdefg"}
    async with standalone(tmp_path / "wasmer", images, *BUDGET) as process:
        for tag in "abgcd":  # one after the other, in a store with space for four
            apply(process, images, "first", tag)
            await published(process, "first", digests[tag])
        assert await process.metric("autowasm_blob_bytes") == 4 * SIZE
        assert await process.metric("autowasm_blobs_evicted_total") == 1

        apply(process, images, "second", "e")
        await published(process, "second", digests["e"])
        apply(process, images, "third", "f")
        status = await process.wait_phase("third", "Failed")
        fetched = next(c for c in status["conditions"] if c["type"] == "Fetched")
        assert fetched["reason"] == "NamespaceShareExceeded"
        assert "namespace default" in status["message"]
        apply(process, images, "other", "f", namespace="elsewhere")
        await published(process, "other", digests["f"], namespace="elsewhere")

        apply(process, images, "second", "c")  # a new version for a full namespace
        await process.process.kill()
        await process.start()
        await published(process, "second", digests["c"])
        assert (await process.wait_phase("third", "Failed"))["phase"] == "Failed"
        for tag in "dcf":
            assert await served(process, digests[tag])

        process.delete("second")
        await process.wait_phase("third", "Synced", timeout=60)


async def test_grace_period_counts_over_a_kill(tmp_path: Path, images: RegistryServer) -> None:
    digests = {tag: await push(images, tmp_path, tag) for tag in ("a", "b")}
    async with standalone(tmp_path / "wasmer", images, "--blob-grace", "4s") as process:
        for name in digests:
            apply(process, images, name, name)
            await process.wait_phase(name, "Synced")
        process.delete("b")
        async with asyncio.timeout(20):
            while await asyncio.to_thread(process.envoyfilter, "b"):
                await asyncio.sleep(0.02)
        assert await served(process, digests["b"])
        await process.process.kill()
        await process.start()
        async with asyncio.timeout(30):
            while await process.metric("autowasm_blobs") != 1:
                await asyncio.sleep(0.05)
        assert await process.metric("autowasm_blobs_evicted_total") == 1
        assert await served(process, digests["a"])
        assert await process.metric("autowasm_blobs_pinned") == 1
