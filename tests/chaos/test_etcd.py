"""etcd stops and returns: writes fail meanwhile, and published modules are not affected."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chaos.checks import Audited, unharmed
from tests.chaos.newcomer import newcomer
from tests.parts.fleet import Fleet, new_fleet

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running_fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """A fleet on a control plane of its own, because the test kills etcd."""
    async with new_fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


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


async def _nobody_leads(fleet: Fleet) -> None:
    """The fault has an effect: no Lease can be renewed."""
    async with asyncio.timeout(60):
        while any([await fleet.leads(replica) for replica in fleet.replicas]):
            await asyncio.sleep(0.1)
