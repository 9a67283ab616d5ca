"""The start-up gate in virtual time."""

import asyncio

import pytest

from autowasm.controller.reconciler import StartupGate
from autowasm.kube.controller import Result
from autowasm.kube.resources import ObjectKey

ONE, TWO = ObjectKey("default", "one"), ObjectKey("default", "two")


class Scene:
    """A reconciler that does nothing, and what the gate says."""

    def __init__(self) -> None:
        self.settled: set[ObjectKey] = set()
        self.said: list[tuple[bool, str]] = []
        self.gate = StartupGate(
            self,
            settled=self.settled.__contains__,
            report=lambda ok, why: self.said.append((ok, why)),
        )

    async def reconcile(self, key: ObjectKey, /) -> Result:
        return Result(requeue_after=3.0)


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_opens_once_everything_is_settled(scene: Scene) -> None:
    scene.gate.expect([ONE, TWO])
    assert scene.said == [
        (False, "2 published modules are not stored yet (default/one, default/two)")
    ]
    await scene.gate.reconcile(ONE)
    scene.settled = {ONE, TWO}
    scene.gate._settled = scene.settled.__contains__
    await scene.gate.reconcile(ONE)
    assert scene.said[-1] == (False, "1 published modules are not stored yet (default/two)")
    await scene.gate.reconcile(TWO)
    assert scene.said[-1][0]


async def test_opens_at_once_with_nothing_to_wait_for(scene: Scene) -> None:
    scene.gate.expect([])
    assert scene.said == [(True, "")]


@pytest.mark.looptime
@pytest.mark.parametrize("listed", [True, False])
async def test_opens_at_the_deadline_whatever_is_missing(scene: Scene, listed: bool) -> None:
    if listed:
        scene.gate.expect([ONE])
    begin = asyncio.get_running_loop().time()
    await scene.gate.run(90.0)
    assert asyncio.get_running_loop().time() - begin == pytest.approx(90.0)
    assert scene.said[-1] == (True, "start-up deadline of 90 s passed")


@pytest.mark.looptime
async def test_stays_open(scene: Scene) -> None:
    await scene.gate.run(1.0)
    scene.gate.expect([ONE, TWO])
    assert scene.said == [(True, "start-up deadline of 1 s passed")]
    await scene.gate.reconcile(ONE)
    assert all(ok for ok, _ in scene.said)


async def test_says_what_the_reconciler_says(scene: Scene) -> None:
    assert await scene.gate.reconcile(ONE) == Result(requeue_after=3.0)
