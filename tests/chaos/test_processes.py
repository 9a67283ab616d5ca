"""A replica is killed, frozen, replaced: neither downloads nor requests through Envoy are affected."""

import asyncio

import pytest

from tests.chaos.checks import Audited, unharmed
from tests.chaos.registries import DOWN
from tests.parts.faults.denial import Denied, denied
from tests.parts.fleet import LEASE_SECONDS, Fleet

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


async def test_killed_leader(fleet: Fleet) -> None:
    leader = await fleet.leader()
    audited = await Audited.begin(fleet)
    async with unharmed(fleet):
        await fleet.kill(leader)
        assert not leader.process.alive
        await fleet.publish("data")
        await fleet.publish("other")
        await fleet.start(leader)
        await asyncio.sleep(1)
    assert await audited.rewritten() == []


async def test_killed_follower(fleet: Fleet) -> None:
    follower = await fleet.follower()
    audited = await Audited.begin(fleet)
    async with unharmed(fleet):
        await fleet.kill(follower)
        await fleet.publish("data")
        await fleet.start(follower)
        await fleet.settled()
        await asyncio.sleep(1)
    assert await audited.rewritten() == []


async def test_rolling_update_under_changes(fleet: Fleet) -> None:
    async with unharmed(fleet):
        for replica in fleet.replicas:
            await fleet.stop(replica)
            await fleet.publish("data")
            await fleet.start(replica)
    await fleet.settled()


async def test_leader_frozen_for_longer_than_its_lease(fleet: Fleet) -> None:
    leader = await fleet.leader()
    audited = await Audited.begin(fleet)
    async with unharmed(fleet):
        with fleet.frozen(leader):
            await asyncio.sleep(LEASE_SECONDS)
            successor = await fleet.leader(other_than=leader)
            await fleet.publish("data")
            await fleet.publish("other")
        await asyncio.sleep(LEASE_SECONDS)
        assert await fleet.leads(successor)
        assert not await fleet.leads(leader)
    assert await audited.rewritten() == []


async def test_new_replica_with_an_empty_disk_while_the_registry_is_down(fleet: Fleet) -> None:
    """The leader's requests to the registry fail meanwhile; the other replicas need no registry."""
    replica = await fleet.follower()
    module = fleet.module("data")
    image = await fleet.push(module)
    async with unharmed(fleet):
        await fleet.publish("data")
        await fleet.publish("other")
        async with DOWN.lasting(fleet):
            injected = DOWN.injected(fleet)
            await fleet.apply("data", module=module, image=image)
            await fleet.kill(replica)
            await fleet.lose_disk(replica)
            await fleet.start(replica)
            stored = await replica.metric("autowasm_blobs")
            assert stored >= len(fleet.wanted), "copied before anybody asked"
            assert await replica.metric("autowasm_fetched_bytes_total") == 0
            await fleet.installation.wait_phase("Degraded", name="data", timeout=90)
            assert DOWN.injected(fleet) > injected, "the fault had an effect"
        await fleet.settled()


async def test_leader_killed_between_its_writes(fleet: Fleet) -> None:
    """Between the status with the record and the EnvoyFilter, and between that and the last status."""
    resources: tuple[Denied, ...] = ("envoyfilters", "autowasms/status")
    for resource in resources:
        async with unharmed(fleet):
            leader = await fleet.leader()
            async with denied(fleet.installation, resource) as denial:
                digest = await fleet.apply("data")
                await denial.bit()
                await fleet.kill(leader)
            await fleet.leader(other_than=leader)
            await fleet.settled()
            assert fleet.wanted["data"] == digest
            fleet.announce()
            await fleet.start(leader)
