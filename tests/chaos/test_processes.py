"""A replica is killed, frozen, replaced: neither downloads nor requests through Envoy are affected."""

import asyncio

import pytest

from tests.chaos.checks import Audited, unharmed
from tests.chaos.registries import DOWN
from tests.parts.faults.denial import Denied, denied
from tests.parts.fleet import LEASE_SECONDS, Fleet

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


async def test_killed_leader(world: Fleet) -> None:
    leader = await world.leader()
    audited = await Audited.begin(world)
    async with unharmed(world):
        await world.kill(leader)
        assert not leader.process.alive
        await world.publish("data")
        await world.publish("other")
        await world.start(leader)
        await asyncio.sleep(1)
    assert await audited.rewritten() == []


async def test_killed_follower(world: Fleet) -> None:
    follower = await world.follower()
    audited = await Audited.begin(world)
    async with unharmed(world):
        await world.kill(follower)
        await world.publish("data")
        await world.start(follower)
        await world.settled()
        await asyncio.sleep(1)
    assert await audited.rewritten() == []


async def test_rolling_update_under_changes(world: Fleet) -> None:
    async with unharmed(world):
        for replica in world.replicas:
            await world.stop(replica)
            await world.publish("data")
            await world.start(replica)
    await world.settled()


async def test_leader_frozen_for_longer_than_its_lease(world: Fleet) -> None:
    leader = await world.leader()
    audited = await Audited.begin(world)
    async with unharmed(world):
        with world.frozen(leader):
            await asyncio.sleep(LEASE_SECONDS)
            successor = await world.leader(other_than=leader)
            await world.publish("data")
            await world.publish("other")
        await asyncio.sleep(LEASE_SECONDS)
        assert await world.leads(successor)
        assert not await world.leads(leader)
    assert await audited.rewritten() == []


async def test_new_replica_with_an_empty_disk_while_the_registry_is_down(world: Fleet) -> None:
    """The leader's requests to the registry fail meanwhile; the other replicas need no registry."""
    replica = await world.follower()
    module = world.module("data")
    image = await world.push(module)
    async with unharmed(world):
        await world.publish("data")
        await world.publish("other")
        async with DOWN.lasting(world):
            injected = DOWN.injected(world)
            await world.apply("data", module=module, image=image)
            await world.kill(replica)
            await world.lose_disk(replica)
            await world.start(replica)
            stored = await replica.metric("autowasm_blobs")
            assert stored >= len(world.wanted), "copied before anybody asked"
            assert await replica.metric("autowasm_fetched_bytes_total") == 0
            await world.installation.wait_phase("Degraded", name="data", timeout=90)
            assert DOWN.injected(world) > injected, "the fault had an effect"
        await world.settled()


async def test_leader_killed_between_its_writes(world: Fleet) -> None:
    """Between the status with the record and the EnvoyFilter, and between that and the last status."""
    resources: tuple[Denied, ...] = ("envoyfilters", "autowasms/status")
    for resource in resources:
        async with unharmed(world):
            leader = await world.leader()
            async with denied(world.installation, resource) as denial:
                digest = await world.apply("data")
                await denial.bit()
                await world.kill(leader)
            await world.leader(other_than=leader)
            await world.settled()
            assert world.wanted["data"] == digest
            world.tell()
            await world.start(leader)
