"""etcd goes and comes back: nobody can write meanwhile, and nothing that is published suffers."""

import asyncio

import pytest

from tests.chaos.checks import Audited, unharmed
from tests.chaos.newcomer import newcomer
from tests.parts.fleet import Fleet

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]


async def test_etcd_is_killed_and_starts_again(mesh: Fleet) -> None:
    audited = await Audited.begin(mesh)
    async with unharmed(mesh):
        await mesh.cluster.kill_etcd()
        await _nobody_leads(mesh)
        async with newcomer(mesh, row="etcd"):
            await mesh.cluster.start_etcd()
            await mesh.leader(timeout=90)
            await mesh.publish("data", timeout=90)
    assert await audited.rewritten() == []


async def _nobody_leads(world: Fleet) -> None:
    """The fault bit: no Lease can be renewed."""
    async with asyncio.timeout(60):
        while any([await world.leads(replica) for replica in world.replicas]):
            await asyncio.sleep(0.1)
