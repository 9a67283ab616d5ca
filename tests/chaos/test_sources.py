"""The registry fails while a change is applied: published modules are served, the status has the reason, and wasmer recovers without intervention.

In each case an AutoWasm gets a new image, a replica starts with an empty disk and a Pod's Envoy starts, all during the
fault. Published modules do not depend on the registry: the other replicas have them.
"""

import asyncio
import re

import pytest

from tests.chaos import registries
from tests.chaos.checks import unharmed
from tests.chaos.newcomer import newcomer
from tests.chaos.registries import RETRY_AFTER, FaultCase
from tests.parts.fleet import Fleet
from tests.parts.installation import Document

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

QUICK = [
    registries.DOWN,
    registries.BROKEN,
    registries.DENIED,
    registries.BUSY,
    registries.LYING,
    registries.LYING_MANIFEST,
    registries.LONGER,
    registries.SHORTER,
    registries.DRIPPING,
]
LONG = [registries.HANGING]


async def _explained(fleet: Fleet, case: FaultCase) -> Document:
    """The AutoWasm, once its status reports the problem with the source of this generation."""

    async def says() -> Document | None:
        found = await fleet.installation.get("data")
        status = found.get("status") or {}
        if status.get("observedGeneration") != found["metadata"]["generation"]:
            return None
        fetched = [one for one in status["conditions"] if one["type"] == "Fetched"]
        told = bool(fetched) and fetched[0]["status"] == "False"
        return fetched[0] if told else None

    condition = await fleet.installation.wait_until(says, timeout=120)
    assert condition["reason"] in {*case.reasons, "BackingOff"}, condition
    assert re.search(case.words, condition["message"]), condition
    return condition


async def _replaced(fleet: Fleet) -> None:
    """A follower starts with an empty disk, and has the published modules before any request."""
    replica = await fleet.follower()
    await fleet.kill(replica)
    await fleet.lose_disk(replica)
    await fleet.start(replica)
    assert await replica.metric("autowasm_blobs") >= len(fleet.wanted), "copied before asked"
    assert await replica.metric("autowasm_fetched_bytes_total") == 0, "no source gave them"


@pytest.mark.parametrize(
    "case",
    [*QUICK, *(pytest.param(one, marks=pytest.mark.chaos) for one in LONG)],
    ids=str,
)
async def test_registry_in_trouble_while_an_image_changes(mesh: Fleet, case: FaultCase) -> None:
    module = mesh.module("data")
    image = await mesh.push(module)
    published = await mesh.installation.envoyfilter("data")
    before = case.injected(mesh)
    begun = asyncio.get_running_loop().time()
    async with unharmed(mesh):
        async with case.lasting(mesh):
            await mesh.apply("data", module=module, image=image)
            await _explained(mesh, case)
            injected = case.injected(mesh) - before
            assert injected, "the fault had an effect"
            await _replaced(mesh)
            async with newcomer(mesh, row=str(case)):
                live = await mesh.installation.envoyfilter("data")
            assert live["spec"] == published["spec"], "what is published is held on to"
            if case is registries.BUSY:
                took = asyncio.get_running_loop().time() - begun
                assert case.injected(mesh) - before <= 1 + took / RETRY_AFTER, "asked too often"
        if case.other_login:
            await mesh.installation.kubectl.run(
                "annotate", "aw", "data", "wasm.tcm.io/refresh=again"
            )
        await mesh.settled(timeout=120)
        mesh.announce()


async def test_all_replicas_are_replaced_while_an_image_is_unavailable(mesh: Fleet) -> None:
    """A rolling update with empty disks: each new replica has copied the published modules before the next old one stops."""
    module = mesh.module("data")
    image = await mesh.push(module)
    published = await mesh.installation.envoyfilter("data")
    async with unharmed(mesh):
        async with registries.DOWN.lasting(mesh):
            injected = registries.DOWN.injected(mesh)
            await mesh.apply("data", module=module, image=image)
            await _explained(mesh, registries.DOWN)
            for replica in mesh.replicas:
                await mesh.stop(replica)
                await mesh.lose_disk(replica)
                await mesh.start(replica)
                assert await replica.metric("autowasm_fetched_bytes_total") == 0
            async with newcomer(mesh, row="replaced"):
                live = await mesh.installation.envoyfilter("data")
            assert live["spec"] == published["spec"], "what is published is held on to"
            assert registries.DOWN.injected(mesh) > injected, "the fault had an effect"
        await mesh.settled(timeout=120)
        mesh.announce()
