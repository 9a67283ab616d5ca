"""An object with `spec.rollout` is published in steps, and a successor continues after a crash at any write."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from autowasm.api.envoyfilter import variant_of
from autowasm.controller.rollout import driver, effects
from autowasm.controller.rollout.driver import RolloutDriver
from autowasm.controller.rollout.publisher import StagedPublisher
from autowasm.controller.statusreporter import StatusReporter
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import IMAGE, autowasm, document, record
from tests.fakes.sidecars import FakeSidecars, pod
from tests.unit.controller.reconciling.cluster import (
    EARTH,
    KEY,
    OTHER,
    WORLD,
    Process,
    ReconciledCluster,
    running,
    sha,
)

ROLLOUT: dict[str, Any] = {"steps": [1, 3], "pause": "4s", "deadline": "1h"}
SLOW = {**ROLLOUT, "pause": "30s"}
"""For tests that look at a step: on a busy machine, one of 4 s ends unseen."""
FAST = 100
"""A second of the rollout is a hundredth of one."""


@pytest.fixture(autouse=True)
def _short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "LOOK", 0.005)
    monkeypatch.setattr(effects, "SLOW_LOOK", 0.01)
    monkeypatch.setattr(driver, "READ_EACH", 0.1)


class StagedCluster(ReconciledCluster):
    """Six Pods, and what was written, in order."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.sidecars = FakeSidecars(lambda: self.publisher.envoyfilters.get(KEY))

    @property
    def rollout(self) -> dict[str, Any]:
        found: dict[str, Any] = self.status.get("rollout") or {}
        return found

    @property
    def target(self) -> str:
        """The plugin's name."""
        return f"test-{self.rollout['target']['digest']}"

    def with_plugin(self, plugin: str) -> int:
        """How many Pods have it."""
        return list(self.sidecars.plugins().values()).count(plugin)

    def statuses(self) -> list[dict[str, Any]]:
        return [written for kind, written in self.publisher.writes if kind == "status"]

    def steps(self) -> list[int]:
        """The steps that were written, without repetitions."""
        found: list[int] = []
        for status in self.statuses():
            rollout = status.get("rollout") or {}
            if rollout.get("phase") == "Progressing" and found[-1:] != [rollout["step"]]:
                found.append(rollout["step"])
        return found


class StagedProcess(Process):
    """One that rolls out in steps."""

    cluster: StagedCluster

    def staged_publisher(self, reporter: StatusReporter) -> StagedPublisher:
        sidecars = self.cluster.sidecars
        found = RolloutDriver(
            sidecars,
            sidecars,
            envoy=EnvoyFetch(),
            metrics=self.metrics,
            tasks=self.tasks,
            on_change=self.queue.add,
            clock=lambda: time.monotonic() * FAST,
        )
        return StagedPublisher(
            found,
            objects=self.cluster.objects,
            publisher=self.cluster.publisher,
            reporter=reporter,
            polls=self.cluster.polls,
            resend=lambda *_: 0,
            now=lambda: "2026-01-01T00:00:00Z",
            record_event=self.cluster.record_event,
        )

    async def rolled(self, phase: str, **fields: Any) -> None:
        """Apply, and wait until the rollout of this generation is in the phase."""
        if fields:
            self.apply_only(**fields)
        self.queue.add(KEY)
        async with asyncio.timeout(20):
            while not self.is_rolled(phase):
                await asyncio.sleep(0.001)

    def is_rolled(self, phase: str) -> bool:
        rollout = self.cluster.rollout
        generation = self.cluster.objects.documents[KEY]["metadata"]["generation"]
        return (
            rollout.get("phase") == phase and rollout["target"].get("generation", 0) == generation
        )

    def apply_only(self, *, rollout: Any = ROLLOUT, **fields: Any) -> None:
        spec = {"rollout": rollout} if rollout is not None else {}
        self.cluster.objects.apply(document(spec=spec, **fields))


@pytest.fixture
def cluster(tmp_path: Path) -> StagedCluster:
    return StagedCluster(tmp_path / "cache")


def process_of(cluster: StagedCluster) -> Any:
    return running(StagedProcess, cluster, cluster.directory)


@pytest.fixture
async def process(cluster: StagedCluster) -> AsyncIterator[StagedProcess]:
    async with process_of(cluster) as found:
        yield found


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def plugin_of(image: str) -> str:
    """The plugin's name of the variant that this image makes."""
    found = record(image=image, sha256=sha(EARTH if image == OTHER else WORLD))
    return f"test-{variant_of(autowasm(image=image, spec={'rollout': ROLLOUT}), found).digest}"


@pytest.fixture
async def settled(cluster: StagedCluster, process: StagedProcess) -> str:
    """All Pods have the first filter. Returns its plugin's name."""
    await process.rolled("Succeeded", image=IMAGE)
    await until(lambda: cluster.status["phase"] == "Synced")
    cluster.publisher.writes.clear()
    cluster.recorded_events.clear()
    return cluster.target


async def test_new_module_reaches_one_three_and_all_pods(
    cluster: StagedCluster, process: StagedProcess, settled: str
) -> None:
    process.apply_only(image=OTHER)
    process.queue.add(KEY)
    await until(lambda: process.is_rolled("Succeeded") and cluster.status["phase"] == "Synced")
    written = [document for kind, document in cluster.publisher.writes if kind == "envoyfilter"]
    with_target = [
        list(cluster.sidecars.plugins(one).values()).count(cluster.target) for one in written
    ]
    assert [count for count, _ in itertools.groupby(with_target)] == [1, 3, 6]
    assert cluster.steps() == [1, 2, 3]
    assert cluster.with_plugin(cluster.target) == 6
    await until(lambda: set(process.pins.published_by("default")) == {sha(EARTH)})
    assert cluster.live == sha(EARTH)
    assert [one["sha256"] for one in cluster.status["history"]] == [sha(EARTH), sha(WORLD)]
    assert [reason for _, reason, _ in cluster.recorded_events] == [
        "RolloutStarted",
        "RolloutStep",
        "RolloutStep",
        "RolloutSucceeded",
    ]


async def test_selector_without_pods_ends_its_rollout_after_the_pause(
    cluster: StagedCluster, process: StagedProcess
) -> None:
    cluster.sidecars.pods.clear()
    await process.rolled("Succeeded", image=IMAGE)
    await until(lambda: cluster.status["phase"] == "Synced")
    assert cluster.rollout["verdict"]["byTime"] is True
    # Pods that come later are read from the next rollout on.
    cluster.sidecars.pods.append(pod(1))
    await process.rolled("Succeeded", image=OTHER)
    assert cluster.rollout["verdict"]["proven"] == 1


async def test_rollout_begins_once_the_pods_are_listed(
    cluster: StagedCluster, process: StagedProcess
) -> None:
    cluster.sidecars.are_listed = False
    process.apply_only(image=IMAGE)
    await process.settle()
    assert cluster.live is None
    cluster.sidecars.are_listed = True  # which queues no key
    await until(lambda: process.is_rolled("Succeeded"))
    assert cluster.live == sha(WORLD)


async def test_status_is_written_before_the_envoyfilter_and_synced_after_it(
    cluster: StagedCluster, process: StagedProcess, settled: str
) -> None:
    await process.rolled("Succeeded", image=OTHER)
    await until(lambda: cluster.status["phase"] == "Synced")
    state: dict[str, Any] = {}
    for kind, written in cluster.publisher.writes:
        if kind == "status":
            state = written.get("rollout") or {}
            continue
        named = [
            each["match"]["proxy"]["metadata"]["NAME"]
            for each in written["spec"]["configPatches"]
            if "proxy" in each["match"]
        ]
        is_last = state["phase"] == "Succeeded" or state["step"] == state["steps"]
        assert named == [one["name"] for one in state.get("pods", ())] or is_last
    assert [kind for kind, _ in cluster.publisher.writes][-1] == "status"
    begun = cluster.publisher.writes[0][1]
    assert (begun["phase"], begun["conditions"][2]["reason"]) == ("Progressing", "RollingOut")
    assert begun["observedGeneration"] == 2


async def test_pods_are_read_before_they_get_the_new_filter(
    cluster: StagedCluster, process: StagedProcess, settled: str
) -> None:
    cluster.sidecars.held.clear()
    process.apply_only(image=OTHER, rollout=SLOW)
    process.queue.add(KEY)
    await until(lambda: cluster.rollout["phase"] == "Progressing")
    (chosen,) = cluster.rollout["pods"]
    await asyncio.sleep(0.05)
    assert cluster.with_plugin(settled) == 6
    cluster.sidecars.reads.clear()
    cluster.sidecars.held.set()
    await until(lambda: cluster.with_plugin(settled) == 5)
    assert (chosen["name"], settled) in cluster.sidecars.reads
    assert cluster.sidecars.plugin_of(chosen["name"]) == cluster.target


async def test_pod_that_fails_requests_brings_the_previous_filter_back(
    cluster: StagedCluster, process: StagedProcess, settled: str
) -> None:
    cluster.sidecars.failing = plugin_of(OTHER)
    await process.rolled("Aborted", image=OTHER)
    await until(lambda: cluster.with_plugin(settled) == 6)
    status = cluster.status
    assert status["phase"] == "Degraded"
    assert cluster.condition("Ready") == ("False", "RolloutFailed")
    assert cluster.condition("Published") == ("True", "Published")
    assert cluster.rollout["reason"] == "FailureRatio"
    assert cluster.rollout["verdict"]["pod"] in cluster.rollout["message"]
    assert "failed" in status["message"]
    assert status["module"]["sha256"] == sha(WORLD), "the module that all Pods have"
    assert cluster.recorded_events[-1][:2] == ("Warning", "RolloutFailed")
    assert cluster.live == sha(WORLD)
    writes = len(cluster.publisher.writes)
    for _ in range(3):
        await process.settle()
    assert cluster.publisher.writes[writes:] == [], "the same generation is not tried again"


async def test_pod_whose_previous_filter_has_just_ended_does_not_fail_the_rollout(
    cluster: StagedCluster, process: StagedProcess, settled: str
) -> None:
    cluster.sidecars.ending = settled
    process.apply_only(image=OTHER)
    process.queue.add(KEY)
    target = plugin_of(OTHER)
    await until(lambda: [plugin for _, plugin in cluster.sidecars.reads].count(target) > 2)
    assert cluster.rollout["phase"] == "Progressing"
    cluster.sidecars.ending = ""
    await until(lambda: process.is_rolled("Succeeded"))


@pytest.mark.parametrize(
    "annotations", [{"wasm.tcm.io/refresh": "1"}, {"wasm.tcm.io/rollout": "retry"}]
)
async def test_aborted_rollout_starts_again_on_request(
    cluster: StagedCluster, process: StagedProcess, settled: str, annotations: dict[str, str]
) -> None:
    cluster.sidecars.failing = plugin_of(OTHER)
    await process.rolled("Aborted", image=OTHER)
    cluster.publisher.writes.clear()
    cluster.sidecars.failing = ""
    process.apply_only(image=OTHER, metadata={"annotations": annotations})
    await process.rolled("Succeeded")
    assert cluster.steps() == [1, 2, 3]


async def test_edit_after_an_aborted_rollout_starts_another_one(
    cluster: StagedCluster, process: StagedProcess, settled: str
) -> None:
    cluster.sidecars.failing = plugin_of(OTHER)
    await process.rolled("Aborted", image=OTHER)
    await process.rolled("Succeeded", image=OTHER, pluginConfig={"a": 1})
    assert cluster.target != plugin_of(OTHER)
    assert cluster.with_plugin(cluster.target) == 6


async def test_first_filter_that_fails_leaves_no_filter_behind(
    cluster: StagedCluster, process: StagedProcess
) -> None:
    cluster.sidecars.failing = plugin_of(IMAGE)
    await process.rolled("Aborted", image=IMAGE)
    await until(lambda: set(cluster.sidecars.plugins().values()) == {""})
    await process.settle()
    assert cluster.publisher.envoyfilters[KEY]["spec"]["configPatches"] == []
    assert (cluster.status["phase"], cluster.condition("Ready")[1]) == ("Degraded", "RolloutFailed")
    assert cluster.condition("Published") == ("False", "NotPublished")
    assert "module" not in cluster.status


async def test_edit_during_a_rollout_begins_again_from_the_stable_filter(
    cluster: StagedCluster, process: StagedProcess, settled: str
) -> None:
    process.apply_only(image=OTHER, rollout=SLOW)
    process.queue.add(KEY)
    await until(lambda: cluster.rollout.get("step") == 2 and cluster.with_plugin(settled) == 3)
    first = cluster.target
    process.apply_only(image=OTHER, rollout=SLOW, pluginConfig={"a": 1})
    process.queue.add(KEY)
    await until(lambda: cluster.target != first and cluster.with_plugin(settled) == 5)
    assert cluster.with_plugin(first) == 0
    assert f"test-{cluster.rollout['stable']['digest']}" == settled
    await process.rolled("Succeeded")


async def test_rollout_is_watched_while_the_module_of_an_edit_is_missing(
    cluster: StagedCluster, process: StagedProcess, settled: str
) -> None:
    process.apply_only(image=OTHER, rollout={**ROLLOUT, "pause": "10m"})
    process.queue.add(KEY)
    await until(lambda: cluster.with_plugin(settled) == 5)
    process.apply_only(image="registry.example/team/filter:missing")
    process.queue.add(KEY)
    await until(lambda: cluster.condition("Ready")[1] == "ImageNotFound")
    assert cluster.with_plugin(settled) == 5
    cluster.sidecars.failing = plugin_of(OTHER)
    process.queue.add(KEY)
    await until(lambda: cluster.with_plugin(settled) == 6)
    assert cluster.rollout["phase"] == "Aborted"
    assert cluster.condition("Ready")[1] == "ImageNotFound", "it is about what the spec names"


async def test_without_spec_rollout_all_pods_get_the_new_filter_at_once(
    cluster: StagedCluster, process: StagedProcess, settled: str
) -> None:
    process.apply_only(image=OTHER, rollout=SLOW)
    process.queue.add(KEY)
    await until(lambda: cluster.with_plugin(settled) == 5)
    process.apply_only(image=OTHER, rollout=None)
    await process.until("Synced")
    assert set(cluster.sidecars.plugins().values()) == {"test"}
    assert "rollout" not in cluster.status
    assert cluster.live == sha(EARTH)


async def test_both_modules_are_known_while_both_are_in_place(
    cluster: StagedCluster, process: StagedProcess, settled: str
) -> None:
    process.apply_only(image=OTHER, rollout=SLOW)
    process.queue.add(KEY)
    await until(lambda: cluster.with_plugin(settled) == 5)
    assert process.published.is_known(sha(WORLD))
    assert process.published.is_known(sha(EARTH))
    await process.rolled("Succeeded")
    await process.settle()
    assert not process.published.is_known(sha(WORLD))


async def test_each_command_is_carried_out_once(
    cluster: StagedCluster, process: StagedProcess, settled: str
) -> None:
    def command(verb: str) -> None:
        annotations = {"wasm.tcm.io/rollout": verb}
        process.apply_only(image=OTHER, metadata={"annotations": annotations})
        process.queue.add(KEY)

    command("pause")
    await until(lambda: cluster.rollout["phase"] == "Paused" and cluster.with_plugin(settled) == 5)
    assert cluster.condition("Ready") == ("False", "RolloutPaused")
    command("resume")
    await until(lambda: cluster.rollout["phase"] == "Progressing")
    command("abort")
    await until(lambda: cluster.rollout["phase"] == "Aborted" and cluster.with_plugin(settled) == 6)
    command("promote")
    await until(
        lambda: cluster.rollout["phase"] == "Succeeded" and cluster.with_plugin(settled) == 0
    )


async def test_unreadable_pods_wait_or_count_by_time(
    cluster: StagedCluster, process: StagedProcess, settled: str
) -> None:
    cluster.sidecars.unreadable = {f"p{number}" for number in range(6)}
    await process.rolled("Aborted", image=OTHER, rollout={**ROLLOUT, "deadline": "20s"})
    assert cluster.rollout["reason"] == "DeadlineExceeded"
    assert "NetworkPolicy" in cluster.rollout["message"]
    await process.rolled("Succeeded", image=OTHER, rollout={**ROLLOUT, "onUnknown": "Continue"})
    assert cluster.rollout["verdict"]["byTime"] is True


async def test_pod_of_the_step_that_is_gone_is_replaced(
    cluster: StagedCluster, process: StagedProcess, settled: str
) -> None:
    process.apply_only(image=OTHER, rollout={**ROLLOUT, "pause": "10m"})
    process.queue.add(KEY)
    await until(lambda: cluster.with_plugin(settled) == 5)
    (chosen,) = cluster.rollout["pods"]
    sidecars = cluster.sidecars
    sidecars.pods = [one for one in sidecars.pods if one.name != chosen["name"]] + [pod(9)]
    process.queue.add(KEY)
    await until(lambda: chosen not in cluster.rollout["pods"] and cluster.with_plugin(settled) == 5)
    assert len(cluster.rollout["pods"]) == 1


@pytest.mark.parametrize("is_good", [True, False], ids=["good", "bad"])
@pytest.mark.parametrize("writes", range(1, 11))
async def test_successor_continues_after_a_crash_at_any_write(
    cluster: StagedCluster, writes: int, is_good: bool
) -> None:
    async with process_of(cluster) as process:
        await process.rolled("Succeeded", image=IMAGE)
        await process.settle()
    old = cluster.target
    cluster.sidecars.failing = "" if is_good else plugin_of(OTHER)
    cluster.publisher.writes.clear()
    end = "Succeeded" if is_good else "Aborted"
    most = 0

    def is_over(process: StagedProcess) -> bool:
        nonlocal most
        most = max(most, 6 - cluster.with_plugin(old))
        return process.is_rolled(end)

    async with process_of(cluster) as process:
        process.apply_only(image=OTHER)
        process.queue.add(KEY)
        await until(lambda: is_over(process) or len(cluster.publisher.writes) >= writes)
    async with process_of(cluster) as process:
        process.queue.add(KEY)
        await until(lambda: is_over(process))
        await process.settle()
    assert cluster.steps() == ([1, 2, 3] if is_good else [1]), "no step is skipped or repeated"
    assert most <= (6 if is_good else 1)
    assert cluster.with_plugin(old) == (0 if is_good else 6)
    assert cluster.status["phase"] == ("Synced" if is_good else "Degraded")


async def test_standalone_takes_the_field_and_reports_that_it_has_no_effect(
    cluster: StagedCluster,
) -> None:
    async with cluster.process() as process:
        await process.apply(spec={"rollout": {}})
        with_it = cluster.publisher.envoyfilters[KEY]
        assert cluster.status["phase"] == "Synced"
        assert cluster.status["message"].endswith("spec.rollout has no effect in standalone mode")
        assert "rollout" not in cluster.status
        await process.apply()
        assert "no effect" not in cluster.status["message"]
        assert cluster.publisher.envoyfilters[KEY] == with_it


async def test_steps_aborts_and_waits_are_measured(
    cluster: StagedCluster, process: StagedProcess, settled: str
) -> None:
    def value(name: str, **labels: str) -> float:
        found = process.metrics.registry.get_sample_value(f"autowasm_staged_rollout_{name}", labels)
        return found or 0.0

    waiting = "waiting_since_timestamp_seconds"
    about = {"autowasm_namespace": "default", "autowasm": "test"}
    assert value("steps_total") == 3
    assert value("step_duration_seconds_count", result="passed") == 3
    cluster.sidecars.unreadable = {f"p{number}" for number in range(6)}
    process.apply_only(image=OTHER)
    process.queue.add(KEY)
    await until(lambda: value(waiting, reason="StatsUnreachable", **about) > 0)
    cluster.sidecars.unreadable = set()
    cluster.sidecars.failing = plugin_of(OTHER)
    await process.rolled("Aborted")
    assert value(waiting, reason="StatsUnreachable", **about) == 0
    assert value("steps_total") == 4
    assert value("aborts_total", reason="FailureRatio") == 1
    assert value("step_duration_seconds_count", result="aborted") == 1
