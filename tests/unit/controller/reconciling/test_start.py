"""A module that does not start is not published, and the filter in place stays."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from autowasm.controller.startcheck import StartCheck
from autowasm.digest import Sha256Hex
from autowasm.preflight.verdicts import Unknown
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.verdict import Outcome, Verdict
from autowasm.sandbox.vm import StartPhase
from autowasm.settings import PreflightMode
from tests.fakes.autowasms import document
from tests.unit.controller.reconciling.world import (
    EARTH,
    KEY,
    OTHER,
    WORLD,
    Process,
    World,
    kinds,
    running,
    sha,
)


class Judge:
    """Refuses the configuration "bad", and waits while `held`."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.released.set()
        self.judged = 0

    def key(self, sha256: Sha256Hex, plugin: Plugin) -> str:
        return f"{sha256} {plugin.configuration!r}"

    async def judge(
        self, *, namespace: str, module: Path, sha256: Sha256Hex, plugin: Plugin
    ) -> Verdict | Unknown:
        self.judged += 1
        await self.released.wait()
        if plugin.configuration == b"bad":
            return Verdict(Outcome.REFUSED, "returned false", phase=StartPhase.CONFIGURE)
        return Verdict(Outcome.STARTS)


class Checking(Process):
    """One process that judges modules."""

    def start_check(self) -> StartCheck:
        self.judge = Judge()
        self.mode = PreflightMode.ENFORCE
        return StartCheck(
            self.judge,
            operators=lambda _: (self.mode, False),
            module_path=self.store.path,
            tasks=self.tasks,
            on_change=self.queue.add,
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "cache")


@pytest.fixture
async def process(world: World) -> AsyncIterator[Checking]:
    async with running(Checking, world, world.directory) as process:
        yield process
        process.check.forget(KEY)


async def applied(process: Checking, phase: str, **fields: Any) -> None:
    process.world.objects.apply(document(**fields))
    await process.until(phase)
    await process.settle()


async def test_module_is_published_after_it_was_judged(world: World, process: Checking) -> None:
    process.judge.released.clear()
    world.objects.apply(document(pluginConfig="good"))
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while not process.judge.judged:
            await asyncio.sleep(0.001)
    assert world.live is None
    process.judge.released.set()
    await process.until("Synced")
    assert world.live == sha(WORLD)
    assert world.condition("Starts") == ("True", "Started")


async def test_refused_configuration_changes_nothing_and_the_status_says_why(
    world: World, process: Checking
) -> None:
    await applied(process, "Synced", pluginConfig="good")
    before = dict(world.publisher.envoyfilters[KEY])
    await applied(process, "Degraded", pluginConfig="bad")
    assert world.publisher.envoyfilters[KEY] == before
    assert world.condition("Ready") == ("False", "ConfigurationRefused")
    assert world.condition("Starts") == ("False", "ConfigurationRefused")
    assert world.condition("Fetched") == ("True", "Fetched")
    assert world.condition("Published") == ("True", "Published")
    assert "spec.filter.pluginConfig" in world.status["message"]
    assert world.recorded_events[-1][:2] == ("Warning", "Degraded")
    await applied(process, "Synced", pluginConfig="good")
    async with asyncio.timeout(
        10
    ):  # published at once, because it is in place; the verdict follows
        while ("Starts", "True") not in [
            (each["type"], each["status"]) for each in world.status["conditions"]
        ]:
            await asyncio.sleep(0.001)
    assert kinds(world).count("envoyfilter") == 1, "the first one was right again"


async def test_first_module_that_is_refused_is_not_published(
    world: World, process: Checking
) -> None:
    await applied(process, "Failed", pluginConfig="bad")
    assert world.live is None
    assert world.condition("Published") == ("False", "NotPublished")


async def test_restart_does_not_judge_a_refused_configuration_again(
    world: World, process: Checking
) -> None:
    await applied(process, "Failed", pluginConfig="bad")
    async with running(Checking, world, world.directory.parent / "second") as second:
        await second.settle()
        assert second.judge.judged == 0
        assert world.condition("Starts") == ("False", "ConfigurationRefused")
        assert world.live is None


async def test_new_module_is_judged_and_the_old_one_stays_meanwhile(
    world: World, process: Checking
) -> None:
    await applied(process, "Synced", pluginConfig="good")
    process.judge.released.clear()
    world.objects.apply(document(pluginConfig="good", source={"registry": {"image": OTHER}}))
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while process.judge.judged < 2:
            await asyncio.sleep(0.001)
    assert world.live == sha(WORLD)
    process.judge.released.set()
    async with asyncio.timeout(10):
        while world.live != sha(EARTH):
            await asyncio.sleep(0.001)


async def test_annotation_that_is_too_weak_is_an_error_of_the_object(
    world: World, process: Checking
) -> None:
    described = document(pluginConfig="bad")
    described["metadata"].setdefault("annotations", {})["wasm.tcm.io/preflight"] = "off"
    world.objects.apply(described)
    await process.until("Failed")
    assert world.condition("Ready") == ("False", "PolicyDenied")
    assert process.judge.judged == 0


async def test_deleted_object_ends_its_run(world: World, process: Checking) -> None:
    process.judge.released.clear()
    world.objects.apply(document(pluginConfig="good"))
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while not process.judge.judged:
            await asyncio.sleep(0.001)
    del world.objects.documents[KEY]
    await process.settle()
    process.judge.released.set()
    await process.settle()
    assert world.live is None
