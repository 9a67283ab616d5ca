"""Disks lose stored modules, or hold other bytes: no client gets a wrong answer, and wasmer restores the modules without intervention."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos import disks
from tests.chaos.checks import Audited, unharmed
from tests.chaos.newcomer import newcomer
from tests.parts import wat, wire
from tests.parts.fleet import Fleet
from tests.parts.installation import Document

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

LARGE = 16 * 1024 * 1024
"""Bytes: more than the kernel buffers for one connection, so that a client can stop in the middle."""


async def _writes(fleet: Fleet, since: int) -> list[str]:
    written = await fleet.installation.writes(since)
    return [str(one) for one in written if one.resource == "envoyfilters"]


async def test_disks_emptied_under_running_replicas_fill_again(mesh: Fleet) -> None:
    """No answer is wrong or later than its deadline: requests wait until the first copy has come from the source."""
    audited = await Audited.begin(mesh)
    files = [
        disks.blob_file(replica, digest)
        for replica in mesh.replicas
        for digest in mesh.wanted.values()
    ]
    before = [disks.identity(file) for file in files]
    async with unharmed(mesh):
        for replica in mesh.replicas:
            await asyncio.to_thread(disks.empty, replica)
        async with newcomer(mesh, row="emptied"):
            await mesh.settled()
    after = [disks.identity(file) for file in files]
    assert all(now != then for now, then in zip(after, before, strict=True)), (
        "the fault had an effect"
    )
    assert await _writes(mesh, audited.since) == []


async def test_all_replicas_start_with_empty_disks(mesh: Fleet) -> None:
    audited = await Audited.begin(mesh)
    async with unharmed(mesh):
        await disks.stop_all(mesh)
        await mesh.lose_disk(*mesh.replicas)
        async with asyncio.TaskGroup() as group:
            group.create_task(disks.start_all(mesh))
            async with newcomer(mesh, row="empty"):
                await mesh.settled()
    assert await _writes(mesh, audited.since) == []


async def test_all_replicas_start_with_empty_disks_after_the_tag_has_moved(mesh: Fleet) -> None:
    """The record names the manifest by its digest: the published manifest is fetched, not the current one of the tag."""
    first, second = mesh.module("data"), mesh.module("data")
    digest = await mesh.apply("data", module=first, image=await _push(mesh, "moving", first))
    await mesh.settled()
    mesh.announce()
    audited = await Audited.begin(mesh)
    async with unharmed(mesh):
        await _push(mesh, "moving", second)
        await disks.stop_all(mesh)
        await mesh.lose_disk(*mesh.replicas)
        async with asyncio.TaskGroup() as group:
            group.create_task(disks.start_all(mesh))
            async with newcomer(mesh, row="moved"):
                await mesh.settled()
        assert mesh.wanted["data"] == digest
    assert await _writes(mesh, audited.since) == []


@pytest.mark.chaos
async def test_module_without_any_copy_is_lost_until_a_refresh(mesh: Fleet) -> None:
    """A sidecar that requests it gets 503: no copy of it exists. Proxies that run it continue to run it."""
    first = mesh.module("data")
    image = await _push(mesh, "deleted", first)
    lost = await mesh.apply("data", module=first, image=image)
    await mesh.settled()
    mesh.announce()
    published = await mesh.installation.envoyfilter("data")
    found = await mesh.installation.get("data")
    async with unharmed(mesh):
        await disks.stop_all(mesh)
        await mesh.lose_disk(*mesh.replicas)
        await disks.delete_image(mesh, found["status"]["module"]["image"])
        mesh.withdraw(lost)
        async with asyncio.TaskGroup() as group:
            group.create_task(disks.start_all(mesh))
            async with newcomer(mesh, row="lost"):
                await mesh.installation.wait_until(lambda: _is_lost(mesh), timeout=90)
        for replica in mesh.replicas:
            url = f"http://{replica.host}/wasm/{lost}"
            patience = {"x-envoy-expected-rq-timeout-ms": "1000"}
            answer = await wire.request("GET", url, headers=patience, timeout=10)
            assert answer.status == 503, "the fault had an effect"
        live = await mesh.installation.envoyfilter("data")
        assert live["spec"] == published["spec"], "what is published is held on to"

        second = wat.header_filter("data-refreshed", name="hello")
        await _push(mesh, "deleted", second)
        await mesh.installation.kubectl.run("annotate", "aw", "data", "wasm.tcm.io/refresh=1")
        mesh.wanted["data"] = hashlib.sha256(second).hexdigest()
        await mesh.settled(timeout=90)
        mesh.announce()
        await mesh.load.wait_for("data-refreshed", timeout=60)


async def _is_lost(mesh: Fleet) -> Document | None:
    """The condition reports it."""
    found = await mesh.installation.get("data")
    conditions = found["status"].get("conditions", [])
    reasons = {one["reason"] for one in conditions if one["type"] == "Fetched"}
    return found if reasons == {"PublishedModuleLost"} else None


@pytest.mark.parametrize("damage", [disks.truncate, disks.overwrite, disks.replace])
async def test_damaged_blob_is_never_served(mesh: Fleet, damage: Callable[[Path], None]) -> None:
    """The damage is on all replicas, so only the source has the module; later requests are not affected."""
    digest = mesh.wanted["data"]
    before = [await one.metric("autowasm_blobs_damaged_total") for one in mesh.replicas]
    async with unharmed(mesh):
        async with (
            mesh.between_downloads()
        ):  # the damage may affect bytes that are already in a socket
            for replica in mesh.replicas:
                await asyncio.to_thread(damage, disks.blob_file(replica, digest))
        async with newcomer(mesh, row=damage.__name__):
            await mesh.settled()
        after = [await one.metric("autowasm_blobs_damaged_total") for one in mesh.replicas]
        assert all(now > then for now, then in zip(after, before, strict=True)), (
            "the fault had an effect"
        )


@pytest.mark.parametrize("damage", [disks.truncate, disks.overwrite, disks.replace])
async def test_blob_damaged_in_the_middle_of_a_download(
    mesh: Fleet, damage: Callable[[Path], None]
) -> None:
    """A response that has begun is the right module or is cut: never complete and wrong."""
    module = wat.padded(mesh.module("large"), size=LARGE)
    digest = await mesh.apply("large", module=module)
    await mesh.settled()
    replica = await mesh.follower()
    async with unharmed(mesh), disks.stopped_client(replica, digest) as client:
        await asyncio.to_thread(damage, disks.blob_file(replica, digest))
        body, announced = await client.body()
        assert announced == LARGE
        if damage is disks.replace:
            assert body == module, "the file that was opened is sent"
        else:
            assert len(body) < announced, "broken off"
        answer = await wire.get(f"http://{replica.host}/wasm/{digest}", timeout=60)
        assert answer.status == 200
        assert answer.body == module
        await mesh.settled()


async def _push(fleet: Fleet, tag: str, module: bytes) -> str:
    return await fleet.installation.push(tag, module)
