"""RunTracker over real HTTP: which sidecars it reads, when it stops, and what becomes of a status."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
import structlog

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api.envoyfilter import Variant, variant_of
from autowasm.api.staged import render as render_staged
from autowasm.api.status import Pods
from autowasm.controller.pods.podmatching import Pod
from autowasm.controller.pods.podstatuswriter import PodReport, with_report
from autowasm.controller.pods.runningreport import RunningReport
from autowasm.controller.pods.runtracker import RunTracker
from autowasm.controller.pods.statsreader import StatsReader
from autowasm.kube.leaderelection import AlwaysLeading
from autowasm.kube.resources import ObjectKey
from autowasm.limits import StatsLimits
from autowasm.settings import EnvoyFetch, RunSettings
from autowasm.telemetry.metrics import Metrics
from tests.fakes.autowasms import autowasm, digest, record
from tests.fakes.sidecarstats import VMS, Sidecars, page
from tests.unit.controller.pods.trackedpods import KEY, NOW, pod, stamp

A, B = "127.0.0.2", "127.0.0.3"
EACH_CHECK = RunSettings(pause=0.0, longest=0.0, settle=1e9, window=1e9, hold=0.0)
"""Each check reads each Pod that is not settled, and none ever settles."""
AT_ONCE = replace(EACH_CHECK, settle=0.0)
"""A Pod settles with the first reading that shows the module running."""


@dataclass
class FilteredPods:
    """One AutoWasm, or more with the same Pods; a clock that the test moves."""

    sidecars: Sidecars
    pods: list[Pod] = field(default_factory=lambda: [pod("a", A), pod("b", B)])
    keys: tuple[ObjectKey, ...] = (KEY,)
    sha256: str = digest("a")
    config: Any = "one"
    published: float = NOW - 10
    filter_generation: int = 1
    version: int = 1
    generation: int = 2
    status: dict[str, Any] = field(default_factory=dict)
    now: float = NOW
    clock: float = 1_000.0
    touched: int = 0
    events: list[tuple[str, str]] = field(default_factory=list)
    downloads: dict[tuple[str, bytes], float] = field(default_factory=dict)
    staged: tuple[Variant | None, Variant | None, tuple[str, ...] | None] | None = None
    """The stable and the target variant, and the Pods that have the target; None: all."""
    trackers: list[RunTracker] = field(default_factory=list)
    looks: int = 0
    """How often a tracker asked for an EnvoyFilter."""

    def document(self, key: ObjectKey) -> Mapping[str, Any] | None:
        return {
            "metadata": {"name": key.name, "generation": self.generation},
            "status": self.status,
        }

    def envoyfilter(self, key: ObjectKey) -> Mapping[str, Any] | None:
        self.looks += 1
        if key not in self.keys:
            return None
        wanted = autowasm(name=key.name, pluginConfig=self.config)
        document = envoyfilters.render(wanted, record(sha256=self.sha256), EnvoyFetch())
        if self.staged is not None:
            stable, target, names = self.staged
            proxies = (
                [{"NAME": name, "NAMESPACE": "default"} for name in names]
                if names is not None
                else None
            )
            document = render_staged(
                wanted, EnvoyFetch(), stable=stable, target=target, proxies=proxies
            )
        document["metadata"] |= {
            "managedFields": [{"time": stamp(self.published)}],
            "generation": self.filter_generation,
            "resourceVersion": str(self.version),
        }
        return document

    def matched(self, key: ObjectKey) -> Iterable[Pod]:
        return list(self.pods)

    def pod(self, name: ObjectKey) -> Pod | None:
        return next((one for one in self.pods if one.name == name.name), None)

    def touch_pods(self, key: ObjectKey) -> None:
        self.touched += 1

    def record_event(
        self, about: Mapping[str, Any], kind: str, reason: str, message: str, /
    ) -> None:
        assert kind == "Warning"
        self.events.append((reason, message))

    def publish(self, *, after: float = 60.0, **changes: Any) -> None:
        """Change what is published, `after` seconds later."""
        self.now += after
        self.clock += after
        self.published = self.now
        self.version += 1
        self.filter_generation += 1
        for name, value in changes.items():
            setattr(self, name, value)
        for tracker in self.trackers:
            for key in (KEY, *self.keys):
                tracker.published_changed(key)

    def write(self, found: RunningReport) -> None:
        """As the API server would have it then."""
        pods = Pods(
            matched=len(self.pods),
            injected=sum(one.injected for one in self.pods),
            running=found.running,
            not_running=found.not_running,
            time=stamp(self.now),
        )
        self.status = with_report({"phase": "Synced"}, PodReport(pods, None, found.condition))

    @asynccontextmanager
    async def tracking(
        self, settings: RunSettings = EACH_CHECK, metrics: Metrics | None = None
    ) -> AsyncIterator[RunTracker]:
        async with self.reader() as reader:
            yield self.tracker(reader, settings, metrics)

    def reader(self) -> StatsReader:
        return StatsReader(
            is_shared=lambda _: False,
            limits=StatsLimits(rate=10_000, deadline=30),
            metrics=Metrics(),
            port=self.sidecars.port,
            clock=lambda: self.clock,
        )

    def tracker(
        self, reader: StatsReader, settings: RunSettings, metrics: Metrics | None = None
    ) -> RunTracker:
        tracker = RunTracker(
            self,
            reader,
            downloaded=lambda sha256, uid: self.downloads.get((sha256, uid), 0.0),
            record_event=self.record_event,
            metrics=metrics or Metrics(),
            settings=settings,
            wall=lambda: self.now,
            clock=lambda: self.clock,
        )
        self.trackers.append(tracker)
        return tracker


@pytest.fixture
async def filtered() -> AsyncIterator[FilteredPods]:
    async with Sidecars().running(A, B) as sidecars:
        yield FilteredPods(sidecars)


async def checked(tracker: RunTracker, times: int = 1, *, key: ObjectKey = KEY) -> RunningReport:
    """The report after so many checks."""
    await tracker.report(key)
    for _ in range(times):
        await tracker.check()
    report = await tracker.report(key)
    assert report is not None
    return report


def named(report: RunningReport) -> list[tuple[str, str]]:
    return [(one.name, one.reason) for one in report.not_running]


def verdict(report: RunningReport) -> tuple[str, str]:
    return report.condition.status, report.condition.reason


async def test_a_check_looks_at_no_object_that_did_not_change(filtered: FilteredPods) -> None:
    async with filtered.tracking() as tracker:
        await checked(tracker, 2)
        filtered.looks = 0
        await tracker.check()
        assert filtered.looks == 0
        filtered.publish(config="two")
        await tracker.check()
        assert filtered.looks > 0


async def test_each_sidecar_is_reported_by_its_own_statistics(filtered: FilteredPods) -> None:
    filtered.sidecars.pages = {A: page(["test"], vms=VMS), B: page(["test"], vms=0)}
    bare = msgspec.structs.replace(pod("bare", "127.0.0.9"), injected=False)
    filtered.pods.append(bare)
    metrics = Metrics()
    async with filtered.tracking(metrics=metrics) as tracker:
        first = await tracker.report(KEY)
        assert first is not None
        assert (first.running, named(first)) == (0, [("a", "Starting"), ("b", "Starting")])
        report = await checked(tracker, 2)
    assert report.running == 1
    assert named(report) == [("b", "ConfigurationRefused")], (
        "a Pod without a sidecar does not count"
    )
    assert verdict(report) == ("False", "ConfigurationRefused")
    assert report.condition.observed_generation == 2
    assert report.condition.message.startswith(
        "1 of 2 sidecars are known to run the module: default/b has the configuration but runs no VM"
    )
    assert filtered.sidecars.reads == {A: 2, B: 2}
    value = metrics.registry.get_sample_value
    assert value("autowasm_running_pods", {"state": "Running"}) == 1
    assert value("autowasm_running_pods", {"state": "ConfigurationRefused"}) == 1
    assert value("autowasm_running_unsettled") == 1


def variant(config: str) -> Variant:
    return variant_of(autowasm(pluginConfig=config), record(sha256=digest("a")))


STABLE, TARGET = variant("stable"), variant("target")
OLD, NEW = f"test_{STABLE.digest}", f"test_{TARGET.digest}"
ONLY_OLD = page([OLD], vms=VMS)
DRAINING = page([OLD, NEW], vms=2 * VMS, changed=2, draining=1, fetched=1)
ONLY_NEW = page([NEW], vms=VMS, changed=2)


async def test_during_a_rollout_each_pod_counts_with_the_filter_that_it_is_to_have(
    filtered: FilteredPods,
) -> None:
    filtered.staged = STABLE, None, ()
    filtered.sidecars.pages = {A: ONLY_OLD, B: ONLY_OLD}
    async with filtered.tracking(AT_ONCE) as tracker:
        assert (await checked(tracker)).running == 2
        filtered.publish(staged=(STABLE, TARGET, ("a",)))
        filtered.sidecars.pages[A] = ONLY_OLD
        report = await checked(tracker)
        assert (report.running, named(report)) == (1, [("a", "NotAccepted")])
        filtered.sidecars.pages[A] = DRAINING
        report = await checked(tracker)
        assert (report.running, verdict(report)) == (2, ("True", "Running"))
        assert "2 of 2 sidecars are known to run the filter that they are to have" in (
            report.condition.message
        )
        assert filtered.sidecars.reads == {A: 3, B: 1}, "the filter of b has not changed"
        # The last step, and the end: a has what it had.
        for staged in ((STABLE, TARGET, None), (TARGET, None, ())):
            filtered.publish(staged=staged)
            filtered.sidecars.pages = {A: ONLY_NEW, B: ONLY_NEW}
            report = await checked(tracker)
            assert (report.running, verdict(report)) == (2, ("True", "Running"))
        assert filtered.sidecars.reads == {A: 3, B: 2}


async def test_pod_whose_previous_filter_has_just_ended_is_not_refused(
    filtered: FilteredPods,
) -> None:
    """In a step, the last one and a return to the previous filter: Envoy has removed its VMs, but not its name."""
    filtered.staged = STABLE, None, ()
    filtered.sidecars.pages = {A: ONLY_OLD, B: ONLY_OLD}
    has, changes = {A: OLD, B: OLD}, 1
    async with filtered.tracking(AT_ONCE) as tracker:
        await checked(tracker)
        for staged, has_then in (
            ((STABLE, TARGET, ("a",)), {A: NEW, B: OLD}),
            ((TARGET, None, ()), {A: NEW, B: NEW}),
            ((STABLE, None, ()), {A: OLD, B: OLD}),
        ):
            filtered.publish(staged=staged)
            changes += 1
            figures = {"changed": changes, "fetched": changes, "uptime": 100_000 + 60 * changes}
            changed = [address for address in (A, B) if has_then[address] != has[address]]
            for address in changed:
                filtered.sidecars.pages[address] = page([OLD, NEW], vms=VMS, **figures)
            report = await checked(tracker, 3)
            names = {A: "a", B: "b"}
            assert named(report) == [(names[address], "Starting") for address in changed]
            has = has_then
            for address in changed:
                filtered.sidecars.pages[address] = page([has[address]], vms=VMS, **figures)
            report = await checked(tracker)
            assert (report.running, verdict(report)) == (2, ("True", "Running"))
    assert not filtered.events


async def test_pod_that_fails_with_the_new_filter_is_named_until_it_has_the_previous_one_back(
    filtered: FilteredPods,
) -> None:
    filtered.staged = STABLE, None, ()
    filtered.sidecars.pages = {A: ONLY_OLD, B: ONLY_OLD}
    async with filtered.tracking(AT_ONCE) as tracker:
        await checked(tracker)
        filtered.publish(staged=(STABLE, TARGET, ("a",)))
        filtered.sidecars.pages[A] = page(
            [OLD, NEW], vms=VMS, changed=2, draining=1, fetched=1, uptime=100_060
        )
        report = await checked(tracker, 2)
        assert (report.running, named(report)) == (1, [("a", "ConfigurationRefused")])
        assert [reason for reason, _ in filtered.events] == ["ConfigurationRefused"]
        filtered.publish(staged=(STABLE, None, ()))
        filtered.sidecars.pages[A] = page([OLD], vms=VMS, changed=3, uptime=100_120)
        report = await checked(tracker)
    assert (report.running, verdict(report)) == (2, ("True", "Running"))


async def test_pods_that_a_first_filter_has_not_reached_do_not_count(
    filtered: FilteredPods,
) -> None:
    filtered.staged = None, TARGET, ("a",)
    filtered.sidecars.pages = {A: ONLY_NEW, B: page()}
    async with filtered.tracking(AT_ONCE) as tracker:
        first = await checked(tracker)
        assert (first.running, verdict(first)) == (1, ("True", "Running"))
        assert filtered.sidecars.reads == {A: 1}
        filtered.publish(staged=(TARGET, None, ()))
        report = await checked(tracker)
        assert (report.running, named(report)) == (1, [("b", "NotAccepted")])


async def test_pod_that_another_one_replaces_in_a_step_is_judged_by_the_previous_filter(
    filtered: FilteredPods,
) -> None:
    filtered.staged = STABLE, TARGET, ("a",)
    filtered.sidecars.pages = {A: ONLY_NEW, B: ONLY_OLD}
    async with filtered.tracking(AT_ONCE) as tracker:
        assert (await checked(tracker)).running == 2
        filtered.publish(staged=(STABLE, TARGET, ("b",)))
        filtered.sidecars.pages = {A: ONLY_OLD, B: ONLY_NEW}
        assert (await checked(tracker)).running == 2
        assert filtered.sidecars.reads == {A: 2, B: 2}


async def test_one_reading_is_no_proof_of_a_refusal(filtered: FilteredPods) -> None:
    filtered.sidecars.pages = {A: page(["test"], vms=VMS), B: page(["test"], vms=0)}
    async with filtered.tracking() as tracker:
        report = await checked(tracker)
        assert named(report) == [("b", "Starting")]
        assert not filtered.events
        filtered.sidecars.pages[B] = page(["test"], vms=VMS)
        assert verdict(await checked(tracker)) == ("True", "Running")
    assert not filtered.events


async def test_event_names_the_first_pod_once_for_each_failure_and_change(
    filtered: FilteredPods,
) -> None:
    filtered.sidecars.pages = {A: page(["test"], vms=0), B: page(["test"], vms=0)}
    async with filtered.tracking() as tracker:
        with structlog.testing.capture_logs() as logs:
            await checked(tracker, 4)
        ((reason, message),) = filtered.events
        assert reason == "ConfigurationRefused"
        assert message.startswith("Pod default/a has the configuration but runs no VM")
        assert [(log["key"], log["state"]) for log in logs] == [(str(KEY), reason)]
        filtered.sidecars.pages[A] = page({"test": 3}, vms=VMS)
        await checked(tracker, 2)
        assert [one for one, _ in filtered.events] == ["ConfigurationRefused", "Crashing"]
        assert "(3 reloads, 0 failed, 0 delayed)" in filtered.events[1][1]
        filtered.publish(config="two")
        filtered.sidecars.pages = {A: page(["test"], vms=0, changed=2), B: b""}
        await checked(tracker, 3)
    assert [one for one, _ in filtered.events][2:] == ["ConfigurationRefused"]


async def test_closed_port_is_unreachable_and_the_condition_unknown(filtered: FilteredPods) -> None:
    filtered.sidecars.pages = {A: page(["test"], vms=VMS)}
    filtered.pods[1] = pod("b", "127.0.0.4")
    async with filtered.tracking() as tracker:
        report = await checked(tracker)
    assert (report.running, named(report)) == (1, [("b", "StatsUnreachable")])
    assert verdict(report) == ("Unknown", "StatsUnreachable")
    assert not filtered.events


async def test_settled_pods_are_read_no_more_until_the_filter_changes(
    filtered: FilteredPods,
) -> None:
    filtered.sidecars.pages = {A: page(["test"], vms=VMS), B: page(["test"], vms=VMS)}
    metrics = Metrics()
    async with filtered.tracking(AT_ONCE, metrics) as tracker:
        await checked(tracker, 5)
        assert filtered.sidecars.reads == {A: 1, B: 1}
        assert metrics.registry.get_sample_value("autowasm_running_unsettled") == 0
        filtered.version += 1  # metadata
        await checked(tracker, 5)
        assert filtered.sidecars.reads == {A: 1, B: 1}
        filtered.publish(config="two")
        filtered.sidecars.pages = {
            A: page(["test"], vms=VMS, changed=2),
            B: page(["test"], vms=VMS),
        }
        report = await checked(tracker, 3)
    assert filtered.sidecars.reads == {A: 2, B: 4}
    assert named(report) == [("b", "NotAccepted")], "it has changed no listener"
    assert verdict(report) == ("False", "NotAccepted")


async def test_nothing_is_read_after_the_window(filtered: FilteredPods) -> None:
    filtered.sidecars.pages = {A: page(), B: page()}
    async with filtered.tracking(replace(EACH_CHECK, window=0.0)) as tracker:
        report = await checked(tracker, 5)
    assert filtered.sidecars.reads == {A: 1, B: 1}
    assert {reason for _, reason in named(report)} == {"NotAccepted"}


async def test_new_pod_is_read_when_it_has_an_address_and_one_that_went_is_forgotten(
    filtered: FilteredPods,
) -> None:
    filtered.sidecars.pages = {A: page(["test"], vms=VMS), B: page(["test"], vms=VMS)}
    late, filtered.pods = filtered.pods[1], filtered.pods[:1]
    async with filtered.tracking(AT_ONCE) as tracker:
        await checked(tracker, 2)
        filtered.pods.append(msgspec.structs.replace(late, ips=""))
        tracker.pods_changed(KEY)
        assert named(await checked(tracker, 2)) == [("b", "Starting")]
        filtered.pods[1] = late
        assert verdict(await checked(tracker, 2)) == ("True", "Running")
        assert filtered.sidecars.reads == {A: 1, B: 1}
        filtered.pods = filtered.pods[1:]
        tracker.pods_changed(KEY)
        assert (await checked(tracker)).running == 1


async def test_one_request_serves_all_autowasms_of_a_pod(filtered: FilteredPods) -> None:
    other = ObjectKey("default", "other")
    filtered.keys = (KEY, other)
    both = page(["test", "other"], vms=2 * VMS)
    filtered.sidecars.pages = {A: both, B: both}
    async with filtered.tracking() as tracker:
        await tracker.report(other)
        assert (await checked(tracker)).running == 2
        found = await tracker.report(other)
    assert found is not None
    assert found.running == 2
    assert filtered.sidecars.reads == {A: 1, B: 1}


async def test_same_name_counts_only_when_the_change_was_seen(filtered: FilteredPods) -> None:
    """The name has no digest, so VMs and name alone may be those of the previous module."""
    filtered.pods = filtered.pods[:1]
    filtered.sidecars.pages = {A: page(["test"], vms=VMS)}
    async with filtered.tracking(AT_ONCE) as tracker:
        await checked(tracker)
        filtered.publish(after=3_600, sha256=digest("b"))  # too long ago for a baseline
        report = await checked(tracker, 2)
        assert named(report) == [("a", "Unknown")]
        filtered.sidecars.pages[A] = page(["test"], vms=VMS, changed=2, draining=1)
        assert named(await checked(tracker)) == [("a", "Starting")], "VMs of which one?"
        filtered.sidecars.pages[A] = page(["test"], vms=VMS, changed=2)
        assert verdict(await checked(tracker)) == ("True", "Running")


async def test_download_of_the_new_module_proves_that_the_change_arrived(
    filtered: FilteredPods,
) -> None:
    filtered.pods = filtered.pods[:1]
    filtered.sidecars.pages = {A: page(["test"], vms=VMS)}
    async with filtered.tracking(AT_ONCE) as tracker:
        await checked(tracker)
        filtered.publish(after=3_600, sha256=digest("b"))
        filtered.downloads[digest("b"), filtered.pods[0].uid] = filtered.now + 1
        assert verdict(await checked(tracker)) == ("True", "Running")


async def test_process_that_started_after_the_change_has_nothing_else(
    filtered: FilteredPods,
) -> None:
    filtered.pods = filtered.pods[:1]
    filtered.filter_generation = 7
    filtered.published = NOW - 500
    filtered.sidecars.pages = {A: page(["test"], vms=VMS, uptime=400)}
    async with filtered.tracking() as tracker:
        assert verdict(await checked(tracker)) == ("True", "Running")


async def test_new_leader_believes_the_status_and_reads_the_others_only(
    filtered: FilteredPods,
) -> None:
    filtered.sidecars.pages = {A: page(["test"], vms=VMS), B: page(["test"], vms=0)}
    async with filtered.tracking() as tracker:
        filtered.write(await checked(tracker, 2))
    filtered.sidecars.reads.clear()
    filtered.pods.append(pod("new", "127.0.0.4", started=NOW + 5))
    async with filtered.tracking(AT_ONCE) as after:
        report = await checked(after, 2)
    assert report.running == 1
    assert set(named(report)) == {("b", "ConfigurationRefused"), ("new", "StatsUnreachable")}
    assert filtered.sidecars.reads == {B: 2}


@pytest.mark.parametrize("change", ["generation", "published", "count", "unwritten"])
async def test_outdated_or_incomplete_status_is_ignored(
    filtered: FilteredPods, change: str
) -> None:
    filtered.sidecars.pages = {A: page(["test"], vms=VMS), B: page(["test"], vms=VMS)}
    async with filtered.tracking() as tracker:
        filtered.write(await checked(tracker))
    filtered.sidecars.reads.clear()
    match change:
        case "generation":
            filtered.generation += 1
        case "published":
            filtered.published = NOW + 100
        case "count":
            filtered.status["pods"]["injected"] = 4
        case _:
            del filtered.status["pods"]["running"]
    async with filtered.tracking() as after:
        await checked(after)
    assert filtered.sidecars.reads == {A: 1, B: 1}


async def test_status_changes_with_run_states_and_not_for_a_brief_state(
    filtered: FilteredPods,
) -> None:
    filtered.pods = filtered.pods[:1]
    filtered.sidecars.pages = {A: page(["test"], vms=0, warming=1)}
    async with filtered.tracking(replace(EACH_CHECK, hold=1e9)) as tracker:
        await checked(tracker, 3)
        assert not filtered.touched, "it is starting"
        filtered.sidecars.pages[A] = page(["test"], vms=VMS)
        await checked(tracker, 3)
    assert filtered.touched == 1


async def test_requests_are_reported_when_all_is_settled(filtered: FilteredPods) -> None:
    filtered.pods = filtered.pods[:1]
    filtered.sidecars.pages = {A: page(vms=None, requests=(90, 10))}
    async with filtered.tracking(replace(EACH_CHECK, settle=0.0)) as tracker:
        assert "requests" not in (await checked(tracker)).condition.message
        filtered.sidecars.pages[A] = page(["test"], vms=VMS, requests=(185, 15))
        report = await checked(tracker)
    assert report.condition.message.endswith(
        "since then 5 of 100 requests got a 5xx response (5.00%), before 10.00%"
    )


async def test_object_that_is_not_published_has_no_report(filtered: FilteredPods) -> None:
    filtered.sidecars.pages = {A: page(["test"], vms=VMS), B: page(["test"], vms=VMS)}
    async with filtered.tracking() as tracker:
        await checked(tracker)
        filtered.keys = ()
        assert await tracker.report(KEY) is None
        filtered.sidecars.reads.clear()
        await tracker.check()
    assert not filtered.sidecars.reads


async def test_selector_that_matches_nothing_is_unknown(filtered: FilteredPods) -> None:
    filtered.pods = []
    async with filtered.tracking() as tracker:
        report = await checked(tracker)
    assert verdict(report) == ("Unknown", "NoPods")


async def test_an_odd_object_does_not_stop_the_others(filtered: FilteredPods) -> None:
    other = ObjectKey("default", "other")
    filtered.keys = (other, KEY)
    both = page(["test", "other"], vms=2 * VMS)
    filtered.sidecars.pages = {A: both, B: both}
    metrics = Metrics()

    def odd(key: ObjectKey) -> Iterable[Pod]:
        if key == other:
            raise RuntimeError("odd")
        return filtered.pods

    async with filtered.tracking(metrics=metrics) as tracker:
        await tracker.report(other)
        filtered.matched = odd  # type: ignore[method-assign]
        tracker.pods_changed(other)
        with structlog.testing.capture_logs() as logs:
            assert (await checked(tracker)).running == 2
    assert {log["key"] for log in logs if log["log_level"] == "error"} == {str(other)}
    value = metrics.registry.get_sample_value
    assert value("autowasm_unexpected_errors_total", {"work": "proof_of_run"}) > 0  # type: ignore[operator]


async def test_only_the_leader_reads_and_an_end_of_leading_forgets(filtered: FilteredPods) -> None:
    filtered.sidecars.pages = {A: page(["test"], vms=VMS), B: page(["test"], vms=VMS)}
    metrics = Metrics()
    leadership = AlwaysLeading()
    async with filtered.tracking(replace(EACH_CHECK, interval=0.01), metrics) as tracker:
        await tracker.report(KEY)
        leading = asyncio.create_task(leadership.run())
        work = asyncio.create_task(tracker.run(leadership))
        async with asyncio.timeout(30):
            while filtered.sidecars.reads[A] < 2:
                await asyncio.sleep(0.01)
        leading.cancel()
        await asyncio.wait([leading])
        async with asyncio.timeout(30):
            while metrics.registry.get_sample_value("autowasm_running_unsettled"):
                await asyncio.sleep(0.01)
        before = filtered.sidecars.reads.copy()
        for _ in range(10):
            await asyncio.sleep(0.01)
        assert filtered.sidecars.reads == before
        work.cancel()
        await asyncio.wait([work])
