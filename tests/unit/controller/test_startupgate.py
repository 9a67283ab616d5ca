"""The start-up gate in virtual time."""

import asyncio

import pytest

from autowasm.controller.reconciler import StartupGate
from autowasm.kube.resources import ObjectKey

ONE, TWO = ObjectKey("default", "one"), ObjectKey("default", "two")


class StartingReplica:
    """A reconciler that does nothing, and the reports of the gate."""

    def __init__(self) -> None:
        self.reports: list[tuple[bool, str]] = []
        self.gate = StartupGate(lambda ok, why: self.reports.append((ok, why)))


@pytest.fixture
def replica() -> StartingReplica:
    return StartingReplica()


async def test_opens_once_every_expected_key_is_settled(replica: StartingReplica) -> None:
    replica.gate.expect([ONE, TWO])
    assert replica.reports == [
        (False, "2 AutoWasms are not reconciled yet (default/one, default/two)")
    ]
    assert replica.gate.is_pending(ONE)
    replica.gate.settled(ONE)
    assert not replica.gate.is_pending(ONE)
    assert replica.reports[-1] == (False, "1 AutoWasm is not reconciled yet (default/two)")
    replica.gate.settled(ONE)
    assert len(replica.reports) == 2
    replica.gate.settled(TWO)
    assert replica.reports[-1] == (True, "")


async def test_nothing_is_pending_before_the_objects_were_read(replica: StartingReplica) -> None:
    assert not replica.gate.is_pending(ONE)
    replica.gate.settled(ONE)
    assert replica.reports == []


async def test_opens_at_once_with_nothing_to_wait_for(replica: StartingReplica) -> None:
    replica.gate.expect([])
    assert replica.reports == [(True, "")]


@pytest.mark.looptime
@pytest.mark.parametrize("listed", [True, False])
async def test_opens_at_the_deadline_even_if_not_ready(
    replica: StartingReplica, listed: bool
) -> None:
    if listed:
        replica.gate.expect([ONE])
    begin = asyncio.get_running_loop().time()
    await replica.gate.run(90.0)
    assert asyncio.get_running_loop().time() - begin == pytest.approx(90.0)
    assert replica.reports[-1] == (True, "start-up deadline of 90 s passed")


@pytest.mark.looptime
async def test_stays_open(replica: StartingReplica) -> None:
    await replica.gate.run(1.0)
    replica.gate.expect([ONE, TWO])
    assert replica.reports == [(True, "start-up deadline of 1 s passed")]
    assert not replica.gate.is_pending(ONE)
    replica.gate.settled(ONE)
    assert all(ok for ok, _ in replica.reports)
