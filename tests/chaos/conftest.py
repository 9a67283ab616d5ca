"""One fleet for each file of cases, on the control plane of the worker process; every case starts from the same state."""

from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from tests.chaos.newcomer import NAME, add_newcomers_service
from tests.parts.controlplane import ControlPlane
from tests.parts.fleet import Fleet, new_fleet


@pytest.fixture(scope="module")
def fleet_arguments() -> Sequence[str]:
    """More flags of every replica. A file may have its own."""
    return ()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running_fleet(
    control_plane: ControlPlane,
    tmp_path_factory: pytest.TempPathFactory,
    fleet_arguments: Sequence[str],
) -> AsyncIterator[Fleet]:
    directory = tmp_path_factory.mktemp("fleet")
    async with new_fleet(directory, plane=control_plane, arguments=fleet_arguments) as fleet:
        yield fleet


@pytest_asyncio.fixture(loop_scope="session")
async def fleet(running_fleet: Fleet) -> Fleet:
    """Three replicas, one AutoWasm `data` on the sidecar, nothing wrong."""
    await running_fleet.clean()
    return running_fleet


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def with_newcomers(running_fleet: Fleet) -> AsyncIterator[Fleet]:
    await add_newcomers_service(running_fleet)
    yield running_fleet


@pytest_asyncio.fixture(loop_scope="session")
async def mesh(with_newcomers: Fleet, fleet: Fleet) -> Fleet:
    """`fleet`, and an AutoWasm for Pods that start later (`newcomer.py`)."""
    await fleet.publish(NAME)
    return fleet
