"""`status.pods`, `Loaded` and `Running`, written within a budget. Time is virtual where a test runs for minutes."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from autowasm.api.status import Condition, MissingPod, NotRunningPod, Pods
from autowasm.controller.pods.loadreport import LoadReport
from autowasm.controller.pods.podstatuswriter import EACH, PodReport, PodStatusWriter, pod_report
from autowasm.controller.pods.runningreport import RunningReport
from autowasm.kube.resources import ObjectKey

KEY = ObjectKey("team", "test")


def report(fetched: int, *, time: str = "t1") -> PodReport:
    missing = (MissingPod("team", "p", "NeverAsked"),) if fetched < 2 else ()
    status = "True" if fetched == 2 else "False"
    return PodReport(
        Pods(matched=2, injected=2, fetched=fetched, missing=missing, time=time),
        Condition("Loaded", status, "Reason", f"{fetched} of 2", "", 1),
    )


class StatusServer:
    """One object, and a server that may be older than the fields."""

    def __init__(self, *, prunes: bool = False) -> None:
        self.prunes = prunes
        self.report: PodReport = report(1)
        self.stored: dict[str, Any] = {"status": {"phase": "Synced"}}
        self.writes: list[Mapping[str, Any]] = []
        self.pods = PodStatusWriter(
            report=self.latest,
            document=lambda _: self.stored,
            publisher=self,  # type: ignore[arg-type]  # only this method of it
        )

    async def latest(self, _key: ObjectKey) -> PodReport:
        return self.report

    async def write_status(
        self, key: ObjectKey, document: Mapping[str, Any], status: Mapping[str, Any]
    ) -> bool:
        assert key == KEY
        self.writes.append(status)
        kept = msgspec.json.decode(msgspec.json.encode(status))
        if self.prunes:
            kept["pods"] = {name: kept["pods"][name] for name in ("matched", "injected")}
        self.stored = {"status": kept}
        return True

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.pods.run(), name="pods")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def touched(self, times: int = 1) -> None:
        async with self.running():
            for _ in range(times):
                self.pods.touch(KEY)
                await asyncio.sleep(EACH + 1)


@pytest.mark.looptime
@pytest.mark.parametrize("prunes", [False, True])
async def test_status_is_not_rewritten_even_if_the_server_prunes_it(*, prunes: bool) -> None:
    server = StatusServer(prunes=prunes)
    await server.touched(5)
    assert len(server.writes) == 1
    server.report = report(1, time="later")
    await server.touched()
    assert len(server.writes) == 1, "only the time differs"
    server.report = report(2)
    await server.touched(3)
    assert len(server.writes) == 2
    assert server.writes[-1]["pods"]["fetched"] == 2
    assert [one["status"] for one in server.writes[-1]["conditions"]] == ["True"]


@pytest.mark.looptime
@pytest.mark.parametrize("status", [{}, {"status": {"conditions": []}}])
async def test_pods_of_an_object_without_a_status_are_not_counted(status: dict[str, Any]) -> None:
    server = StatusServer()
    server.stored = status
    counted = 0

    async def count(_key: ObjectKey) -> PodReport:
        nonlocal counted
        counted += 1
        return server.report

    server.pods._report = count
    await server.touched()
    assert (counted, server.writes) == (0, [])
    server.stored = {"status": {"phase": "Synced"}}
    await server.touched()
    assert (counted, len(server.writes)) == (1, 1)


@pytest.mark.looptime
async def test_an_object_that_cannot_be_counted_stops_no_other() -> None:
    server, odd = StatusServer(), ObjectKey("team", "odd")

    async def count(key: ObjectKey) -> PodReport:
        if key == odd:
            raise KeyError("a bug")
        return server.report

    server.pods = PodStatusWriter(report=count, document=lambda _: server.stored, publisher=server)  # type: ignore[arg-type]
    task = asyncio.create_task(server.pods.run())
    server.pods.touch(odd)
    server.pods.touch(KEY)
    await asyncio.sleep(EACH)
    assert len(server.writes) == 1
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.looptime
async def test_a_thousand_changes_are_one_write_a_minute() -> None:
    server = StatusServer()
    task = asyncio.create_task(server.pods.run(), name="pods")
    for number in range(1_200):
        server.report = report(number % 2)
        server.pods.touch(KEY)
        await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert 1 <= len(server.writes) <= 3


async def test_other_conditions_and_fields_stay() -> None:
    server = StatusServer()
    server.report = report(2)
    ready = Condition("Ready", "True", "Synced", "", "t0", 1)
    server.stored["status"] |= {"message": "m", "conditions": [msgspec.to_builtins(ready)]}
    await server.pods._write(KEY)
    found = server.writes[0]
    assert found["message"] == "m"
    assert [(one["type"], one["status"]) for one in found["conditions"]] == [
        ("Ready", "True"),
        ("Loaded", "True"),
    ]
    assert found["conditions"][0]["lastTransitionTime"] == "t0"


RUNNING = Condition("Running", "False", "Crashing", "1 of 2", "", 1)
CRASHING = NotRunningPod("team", "p", "Crashing", "has a crashing module")


def both(time: str, *, is_kept: bool = False) -> PodReport:
    """Two fetched it, in one it runs; `time` is that of the load report."""
    load = LoadReport(
        Pods(2, 2, fetched=2, time=time), Condition("Loaded", "True", "Fetched"), {}, is_kept
    )
    found = RunningReport(1, (CRASHING,), RUNNING, {})
    previous = Pods(2, 2, fetched=2, running=1, not_running=(CRASHING,), time="earlier")
    return pod_report(load, found, previous=previous, now="now")


def test_time_is_that_of_the_last_change_of_either_report() -> None:
    assert both("later").pods.time == "earlier", "nothing changed"
    load = LoadReport(Pods(2, 2, fetched=2, time="earlier"), Condition("Loaded", "True", "F"), {})
    found = RunningReport(2, (), RUNNING, {})
    previous = Pods(2, 2, fetched=2, running=1, not_running=(CRASHING,), time="earlier")
    changed = pod_report(load, found, previous=previous, now="now")
    assert (changed.pods.time, changed.pods.running, changed.running) == ("now", 2, RUNNING)
    kept = msgspec.structs.replace(load.pods, time="earlier")
    old = pod_report(
        LoadReport(kept, load.loaded, {}, is_kept=True), found, previous=previous, now="now"
    )
    assert old.pods.time == "earlier", "a previous leader's evidence gets no younger"


def test_report_without_run_states_has_no_running_count() -> None:
    load = LoadReport(
        Pods(2, 2, fetched=2, running=1, time="t"), Condition("Loaded", "True", "F"), {}
    )
    found = pod_report(load, None, previous=load.pods, now="now")
    assert found == PodReport(Pods(2, 2, fetched=2, time="t"), load.loaded)


@pytest.mark.looptime
async def test_change_of_running_alone_is_written() -> None:
    server = StatusServer()
    server.report = both("t")
    await server.touched(2)
    assert len(server.writes) == 1
    stored = server.stored["status"]
    assert (stored["pods"]["running"], stored["pods"]["notRunning"][0]["reason"]) == (1, "Crashing")
    assert [one["type"] for one in stored["conditions"]] == ["Loaded", "Running"]
    pods = msgspec.structs.replace(server.report.pods, running=2, not_running=())
    server.report = PodReport(pods, server.report.loaded, RUNNING)
    await server.touched(2)
    assert len(server.writes) == 2
    assert "notRunning" not in server.stored["status"]["pods"]


@pytest.mark.looptime
async def test_pods_that_changed_during_the_first_status_write_are_counted_after_it() -> None:
    server = StatusServer()
    server.stored = {}
    await server.touched()
    assert server.writes == []
    server.report = report(2)
    server.stored = {"status": {"phase": "Synced", "pods": {"matched": 1, "injected": 1}}}
    server.pods.observe(KEY, server.stored)
    async with server.running():
        await asyncio.sleep(EACH + 1)
    assert [one["pods"]["matched"] for one in server.writes] == [2]
    server.pods.observe(KEY, server.stored)
    await server.touched()
    assert len(server.writes) == 1


@pytest.mark.looptime
async def test_pods_that_changed_before_the_counts_of_the_first_status_are_not_counted_again() -> (
    None
):
    server = StatusServer()
    server.stored = {}
    await server.touched()
    server.pods.counting(KEY)  # the reconciler, for its status
    server.stored = {"status": {"phase": "Synced", "pods": {"matched": 2, "injected": 2}}}
    server.pods.observe(KEY, server.stored)
    async with server.running():
        await asyncio.sleep(EACH + 1)
    assert server.writes == []
