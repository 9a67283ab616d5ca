"""The start-up gate in virtual time."""

import asyncio

import pytest

from autowasm.controller.startupgate import StartupGate
from autowasm.kube.resources import ObjectKey

ONE, TWO = ObjectKey("default", "one"), ObjectKey("default", "two")


class Scene:
    """A reconciler that does nothing, and the reports of the gate."""

    def __init__(self) -> None:
        self.reports: list[tuple[bool, str]] = []
        self.gate = StartupGate(lambda ok, why: self.reports.append((ok, why)))


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_opens_once_every_expected_key_is_settled(scene: Scene) -> None:
    scene.gate.expect([ONE, TWO])
    assert scene.reports == [
        (False, "2 AutoWasms are not reconciled yet (default/one, default/two)")
    ]
    assert scene.gate.is_pending(ONE)
    scene.gate.settled(ONE)
    assert not scene.gate.is_pending(ONE)
    assert scene.reports[-1] == (False, "1 AutoWasm is not reconciled yet (default/two)")
    scene.gate.settled(ONE)
    assert len(scene.reports) == 2
    scene.gate.settled(TWO)
    assert scene.reports[-1] == (True, "")


async def test_nothing_is_pending_before_the_objects_were_read(scene: Scene) -> None:
    assert not scene.gate.is_pending(ONE)
    scene.gate.settled(ONE)
    assert scene.reports == []


async def test_opens_at_once_with_nothing_to_wait_for(scene: Scene) -> None:
    scene.gate.expect([])
    assert scene.reports == [(True, "")]


@pytest.mark.looptime
@pytest.mark.parametrize("listed", [True, False])
async def test_opens_at_the_deadline_whatever_is_missing(scene: Scene, listed: bool) -> None:
    if listed:
        scene.gate.expect([ONE])
    begin = asyncio.get_running_loop().time()
    await scene.gate.run(90.0)
    assert asyncio.get_running_loop().time() - begin == pytest.approx(90.0)
    assert scene.reports[-1] == (True, "start-up deadline of 90 s passed")


@pytest.mark.looptime
async def test_stays_open(scene: Scene) -> None:
    await scene.gate.run(1.0)
    scene.gate.expect([ONE, TWO])
    assert scene.reports == [(True, "start-up deadline of 1 s passed")]
    assert not scene.gate.is_pending(ONE)
    scene.gate.settled(ONE)
    assert all(ok for ok, _ in scene.reports)
