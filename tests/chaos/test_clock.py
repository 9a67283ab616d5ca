"""The wall clock of all replicas jumps by hours in either direction: leases, blobs, proof and writes do not change."""

import email.utils
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.chaos.checks import Audited, unharmed
from tests.chaos.newcomer import NAME, add_newcomers_service, newcomer
from tests.parts import wire
from tests.parts.controlplane import ControlPlane
from tests.parts.faults.clocks import Clock
from tests.parts.fleet import LEASE_SECONDS, Fleet, new_fleet

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(600),
]

LONG_LEASE = ("--lease-duration=15s", "--renew-deadline=10s")
"""A leader on a busy machine keeps it: only the clock could take it away."""
HOURS = 30
"""Longer than any grace period or age limit of wasmer, and than Envoy's cache."""


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    """The clock begins with the system's time."""
    clock = Clock(tmp_path_factory.mktemp("clock") / "seconds")
    clock.jump_to(0)
    return clock


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def clocked(
    control_plane: ControlPlane, clock: Clock, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    directory: Path = tmp_path_factory.mktemp("clocked")
    async with new_fleet(
        directory, plane=control_plane, arguments=LONG_LEASE, env=clock.environment
    ) as fleet:
        await add_newcomers_service(fleet)
        await fleet.publish(NAME)
        yield fleet


async def _shown(fleet: Fleet) -> list[float]:
    """Seconds by which the replicas' clocks are ahead of ours."""
    digest = fleet.wanted["data"]
    answers = [
        await wire.request("GET", f"http://{one.host}/wasm/{digest}") for one in fleet.replicas
    ]
    dates = [email.utils.parsedate_to_datetime(one.headers["date"]) for one in answers]
    return [date.timestamp() - time.time() for date in dates]


@pytest.mark.parametrize("hours", [HOURS, -HOURS])
async def test_wall_clock_jumps(clocked: Fleet, clock: Clock, hours: int) -> None:
    clock.jump_to(0)
    await clocked.settled()
    leader = await clocked.leader()
    audited = await Audited.begin(clocked)
    async with unharmed(clocked):
        clock.jump_to(hours * 3600)
        assert [round(one / 3600) for one in await _shown(clocked)] == [hours] * 3, (
            "the fault had an effect"
        )
        async with newcomer(clocked, row=f"clock{hours}"):
            await clocked.publish("data")
        assert await clocked.leader() is leader, "a Lease is measured by a clock that does not jump"
        follower = await clocked.follower()
        await clocked.kill(follower)
        await clocked.start(follower)
        await clocked.kill(leader)
        await clocked.leader(other_than=leader, timeout=LEASE_SECONDS * 20)
        await clocked.start(leader)
        await clocked.publish("data")
        clock.jump_to(0)
        await clocked.publish("data")
    assert await audited.rewritten() == []
