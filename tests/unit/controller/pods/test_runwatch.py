"""RunWatch: the baseline of each Pod, and what a name without a digest proves. Pure, but for one test over HTTP."""

from autowasm.controller.pods.envoystats import ReadFailure, Reading, UnreadStats, parse
from autowasm.controller.pods.runstate import RunState
from autowasm.controller.pods.runwatch import BASELINE_AGE, Published, RunWatch
from autowasm.controller.pods.statsreader import StatsReader
from autowasm.limits import StatsLimits
from autowasm.telemetry.metrics import Metrics
from tests.fakes.sidecarstats import VMS, Sidecars, page
from tests.unit.controller.pods.trackedpods import NOW, pod

POD = pod("a", "127.0.0.2")
NAMED = Published("test-0123", at=NOW, is_named=True)
PLAIN = Published("test", at=NOW)


def at(seconds: float, content: bytes) -> Reading:
    return parse(content, read_at=seconds)


def state(watch: RunWatch, reading: Reading, *, now: float = NOW + 5) -> RunState:
    return watch.take(POD, reading, now=now).state


async def test_rollout_reads_before_a_step_and_judges_against_that() -> None:
    async with (
        Sidecars().running("127.0.0.2") as sidecars,
        StatsReader(
            is_shared=lambda _: False,
            limits=StatsLimits(rate=1000),
            metrics=Metrics(),
            port=sidecars.port,
        ) as reader,
    ):
        watch = RunWatch(Published("stable", is_named=True))
        sidecars.pages["127.0.0.2"] = page(["stable", "other"], vms=2 * VMS)
        reports = await watch.read([POD], reader, wall=lambda: NOW)
        assert reports[POD.uid].state is RunState.RUNNING

        watch.change(Published("next", at=NOW, is_named=True))
        assert watch.report_of(POD.uid) is None
        drains = ["stable", "other", "next"]
        sidecars.pages["127.0.0.2"] = page(drains, vms=2 * VMS, changed=2, draining=1, fetched=1)
        await watch.read([POD], reader, wall=lambda: NOW)
        found = (await watch.read([POD], reader, wall=lambda: NOW))[POD.uid]
    assert found.state is RunState.CONFIGURATION_REFUSED, "the others have their VMs, it has none"
    assert found.figures.active_vms_before == 2 * VMS


def test_baseline_is_the_reading_before_the_change_if_it_is_young() -> None:
    for age, wanted in (
        (BASELINE_AGE, RunState.NOT_ACCEPTED),
        (BASELINE_AGE + 1, RunState.UNKNOWN),
    ):
        watch = RunWatch(PLAIN)
        state(watch, at(100.0, page(["test"], vms=VMS)))
        watch.change(PLAIN)
        assert state(watch, at(100.0 + age, page(["test"], vms=VMS))) is wanted


def test_reading_that_may_show_the_change_is_no_baseline() -> None:
    watch = RunWatch(PLAIN)
    state(watch, at(100.0, page(["test"], vms=VMS, changed=2)))
    watch.change(PLAIN, before=99.0)
    assert state(watch, at(101.0, page(["test"], vms=VMS, changed=2))) is RunState.UNKNOWN
    assert state(watch, at(102.0, page(["test"], vms=VMS, changed=3))) is RunState.RUNNING


def test_baseline_of_another_watch_counts_at_the_first_reading_only() -> None:
    watch, kept = RunWatch(PLAIN), parse(page(["test"], vms=VMS), read_at=90.0)
    same = page(["test"], vms=VMS)
    assert watch.take(POD, at(100.0, same), now=NOW, kept=kept).state is RunState.NOT_ACCEPTED
    later = parse(page(["test"], vms=VMS, changed=9), read_at=101.0)
    assert watch.take(POD, at(102.0, same), now=NOW, kept=later).state is RunState.NOT_ACCEPTED


def test_drain_that_a_baseline_explains_is_not_taken_for_the_change() -> None:
    watch = RunWatch(PLAIN)
    draining = page(["test"], vms=VMS, draining=1)
    state(watch, at(100.0, draining))
    watch.change(PLAIN)
    assert state(watch, at(110.0, draining)) is RunState.NOT_ACCEPTED


def test_name_that_was_not_there_before_proves_the_configuration() -> None:
    watch = RunWatch(PLAIN)
    state(watch, at(100.0, page()))
    watch.change(PLAIN)
    assert state(watch, at(101.0, page(["test"], vms=VMS, draining=1))) is RunState.RUNNING


def test_younger_process_has_counted_nothing_before_the_change() -> None:
    watch = RunWatch(NAMED)
    failed = page(["test_0123"], fetch_failures=1, vms=0, uptime=20)
    assert state(watch, at(100.0, failed), now=NOW + 40) is RunState.STARTING, "once more"
    assert state(watch, at(101.0, failed), now=NOW + 41) is RunState.FETCH_FAILED


def test_unread_sidecar_keeps_the_baseline() -> None:
    watch = RunWatch(NAMED)
    state(watch, at(100.0, page(fetch_failures=3)))
    watch.change(NAMED)
    assert state(watch, UnreadStats(ReadFailure.TIMEOUT)) is RunState.STATS_UNREACHABLE
    running = page(["test_0123"], vms=VMS, fetch_failures=3)
    assert state(watch, at(103.0, running)) is RunState.RUNNING, "the failures came before"


def test_settled_and_forgotten_pods_keep_no_readings() -> None:
    watch = RunWatch(NAMED)
    state(watch, at(100.0, page(["test_0123"], vms=VMS)))
    watch.settle(POD.uid)
    report = watch.report_of(POD.uid)
    assert report is not None
    assert report.state is RunState.RUNNING
    watch.forget([POD.uid])
    assert watch.report_of(POD.uid) is None
    assert not watch.uids


def test_publication_of_unknown_time_explains_no_process() -> None:
    watch = RunWatch(Published("test"), downloaded=lambda _: NOW)
    assert state(watch, at(100.0, page(["test"], vms=VMS, uptime=1))) is RunState.UNKNOWN
