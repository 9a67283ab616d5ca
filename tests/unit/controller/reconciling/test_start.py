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
from tests.unit.controller.reconciling.cluster import (
    EARTH,
    KEY,
    OTHER,
    WORLD,
    Process,
    ReconciledCluster,
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

    def known(self, sha256: Sha256Hex, plugin: Plugin) -> Verdict | Unknown | None:
        return None

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
def cluster(tmp_path: Path) -> ReconciledCluster:
    return ReconciledCluster(tmp_path / "cache")


@pytest.fixture
async def process(cluster: ReconciledCluster) -> AsyncIterator[Checking]:
    async with running(Checking, cluster, cluster.directory) as process:
        yield process
        process.check.forget(KEY)


async def applied(process: Checking, phase: str, **fields: Any) -> None:
    process.cluster.objects.apply(document(**fields))
    await process.until(phase)
    await process.settle()


async def test_module_is_published_after_it_was_judged(
    cluster: ReconciledCluster, process: Checking
) -> None:
    process.judge.released.clear()
    cluster.objects.apply(document(pluginConfig="good"))
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while not process.judge.judged:
            await asyncio.sleep(0.001)
    assert cluster.live is None
    process.judge.released.set()
    await process.until("Synced")
    assert cluster.live == sha(WORLD)
    assert cluster.condition("Starts") == ("True", "Started")


async def test_refused_configuration_changes_nothing_and_is_reported_in_the_status(
    cluster: ReconciledCluster, process: Checking
) -> None:
    await applied(process, "Synced", pluginConfig="good")
    before = dict(cluster.publisher.envoyfilters[KEY])
    await applied(process, "Degraded", pluginConfig="bad")
    assert cluster.publisher.envoyfilters[KEY] == before
    assert cluster.condition("Ready") == ("False", "ConfigurationRefused")
    assert cluster.condition("Starts") == ("False", "ConfigurationRefused")
    assert cluster.condition("Fetched") == ("True", "Fetched")
    assert cluster.condition("Published") == ("True", "Published")
    assert "spec.filter.pluginConfig" in cluster.status["message"]
    assert cluster.recorded_events[-1][:2] == ("Warning", "Degraded")
    await applied(process, "Synced", pluginConfig="good")
    async with asyncio.timeout(
        10
    ):  # published at once, because it is in place; the verdict follows
        while ("Starts", "True") not in [
            (each["type"], each["status"]) for each in cluster.status["conditions"]
        ]:
            await asyncio.sleep(0.001)
    assert kinds(cluster).count("envoyfilter") == 1, "the first one was right again"


async def test_first_module_that_is_refused_is_not_published(
    cluster: ReconciledCluster, process: Checking
) -> None:
    await applied(process, "Failed", pluginConfig="bad")
    assert cluster.live is None
    assert cluster.condition("Published") == ("False", "NotPublished")


async def test_restart_does_not_judge_a_refused_configuration_again(
    cluster: ReconciledCluster, process: Checking
) -> None:
    await applied(process, "Failed", pluginConfig="bad")
    async with running(Checking, cluster, cluster.directory.parent / "second") as second:
        await second.settle()
        assert second.judge.judged == 0
        assert cluster.condition("Starts") == ("False", "ConfigurationRefused")
        assert cluster.live is None


async def test_new_module_is_judged_and_the_old_one_stays_meanwhile(
    cluster: ReconciledCluster, process: Checking
) -> None:
    await applied(process, "Synced", pluginConfig="good")
    process.judge.released.clear()
    cluster.objects.apply(document(pluginConfig="good", source={"registry": {"image": OTHER}}))
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while process.judge.judged < 2:
            await asyncio.sleep(0.001)
    assert cluster.live == sha(WORLD)
    process.judge.released.set()
    async with asyncio.timeout(10):
        while cluster.live != sha(EARTH):
            await asyncio.sleep(0.001)


async def test_annotation_that_is_too_weak_is_an_error_of_the_object(
    cluster: ReconciledCluster, process: Checking
) -> None:
    described = document(pluginConfig="bad")
    described["metadata"].setdefault("annotations", {})["wasm.tcm.io/preflight"] = "off"
    cluster.objects.apply(described)
    await process.until("Failed")
    assert cluster.condition("Ready") == ("False", "PolicyDenied")
    assert process.judge.judged == 0


async def test_deleted_object_ends_its_run(cluster: ReconciledCluster, process: Checking) -> None:
    process.judge.released.clear()
    cluster.objects.apply(document(pluginConfig="good"))
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while not process.judge.judged:
            await asyncio.sleep(0.001)
    del cluster.objects.documents[KEY]
    await process.settle()
    process.judge.released.set()
    await process.settle()
    assert cluster.live is None
