"""Each rule of the judgement: what proves it, and what does not."""

from dataclasses import replace
from typing import Any

import pytest

from autowasm.controller.pods.envoystats import (
    ReadFailure,
    ReloadCounts,
    Requests,
    SidecarStats,
    UnreadStats,
    series_of,
)
from autowasm.controller.pods.runstate import RULES, Acceptance, RunState, judge

PLAIN = SidecarStats(
    read_at=100.0,
    warming=0,
    rejected=0,
    listeners_created=4,
    concurrency=2,
    uptime=1000,
)
"""An Envoy with two workers, so that a plug-in has four VMs, and no plug-in."""


def stats(*plugins: str, seconds: float = 5, **fields: Any) -> SidecarStats:
    """A reading `seconds` later, with these plug-ins."""
    found = dict.fromkeys(plugins, ReloadCounts())
    values: dict[str, Any] = {"plugins": found, **fields}
    later = replace(PLAIN, read_at=100.0 + seconds, uptime=1000 + int(seconds))
    return replace(later, **values)


def state(before: SidecarStats | None, after: SidecarStats, plugin: str = "new") -> RunState:
    return judge(before, after, plugin).state


OLD = stats("old", seconds=0, active_vms=4, fetched=1)
TWO = stats("old", "other", seconds=0, active_vms=8, fetched=2)


def test_page_without_envoys_own_statistics_proves_nothing() -> None:
    assert state(None, SidecarStats()) is RunState.UNKNOWN
    assert state(OLD, replace(OLD, concurrency=None)) is RunState.UNKNOWN


def test_unread_sidecar_is_unreachable_with_the_reason() -> None:
    report = judge(OLD, UnreadStats(ReadFailure.STATUS, "404"), "new")
    assert report.state is RunState.STATS_UNREACHABLE
    assert "status 404" in report.message


def test_statistics_at_a_shared_address_are_unknown_not_unreachable() -> None:
    report = judge(OLD, UnreadStats(ReadFailure.SHARED_ADDRESS), "new")
    assert report.state is RunState.UNKNOWN


def test_unknown_plugin_is_not_accepted_and_a_rejection_is_named() -> None:
    assert state(OLD, stats("old", active_vms=4)) is RunState.NOT_ACCEPTED
    rejected = stats("old", active_vms=4, rejected=1)
    assert "rejected" in judge(OLD, rejected, "new").message
    assert "rejected" not in judge(None, rejected, "new").message, "when is not known"


@pytest.mark.parametrize("counter", ["success", "failure", "backoff"])
def test_each_reload_counter_means_a_crash(counter: str) -> None:
    crashed = stats(
        active_vms=4, plugins={"old": ReloadCounts(), "new": ReloadCounts(**{counter: 1})}
    )
    assert state(OLD, crashed) is RunState.CRASHING
    assert state(None, crashed) is RunState.CRASHING
    assert state(crashed, crashed) is not RunState.CRASHING, "it was before"
    assert state(OLD, crashed, "old") is not RunState.CRASHING


def test_failed_fetch_is_of_the_only_plugin_that_is_new() -> None:
    assert state(OLD, stats("old", "new", active_vms=4, fetch_failures=1)) is RunState.FETCH_FAILED
    running = stats("old", "new", active_vms=8, fetched=2, fetch_failures=1)
    assert state(OLD, running) is RunState.FETCH_FAILED, "on one of its filter chains"


def test_failed_fetch_of_an_unknown_plugin_or_time_is_unknown() -> None:
    third = stats("old", "new", "third", active_vms=12, fetch_failures=1)
    assert state(OLD, third) is RunState.UNKNOWN
    assert state(None, stats("new", active_vms=4, fetch_failures=1)) is RunState.UNKNOWN
    earlier = replace(OLD, fetch_failures=1)
    later = stats("old", "new", active_vms=8, fetched=2, fetch_failures=1)
    assert state(earlier, later) is RunState.RUNNING


def test_counters_that_began_again_do_not_hide_a_missing_module() -> None:
    assert state(OLD, stats("new", active_vms=None)) is RunState.FETCH_FAILED
    assert state(None, stats("new", active_vms=None)) is RunState.FETCH_FAILED


def test_awaited_module_is_starting_while_other_modules_run() -> None:
    assert state(OLD, stats("old", "new", active_vms=4, fetched=1, warming=1)) is RunState.STARTING
    arrived = stats("old", "new", active_vms=4, fetched=2, warming=1)
    assert state(OLD, arrived) is RunState.STARTING, "another module may have arrived"
    assert state(None, stats("new", active_vms=None, warming=1)) is RunState.STARTING
    assert state(None, stats("new", active_vms=2)) is RunState.STARTING
    assert state(OLD, stats("old", "new", active_vms=6, fetched=2)) is RunState.STARTING


def test_gauge_that_threads_set_at_the_same_moment_does_not_hide_a_plugin_that_runs() -> None:
    """Of the values 2, 3 and 4 any may be set last. Five VMs were started, of which one has ended as planned."""
    for active in (2, 3):
        for before in (None, PLAIN):
            one = stats("new", active_vms=active, created_vms=5, fetched=1)
            assert state(before, one) is RunState.RUNNING
            assert state(before, replace(one, created_vms=4)) is RunState.STARTING
    old = replace(OLD, created_vms=5)
    two = stats("old", "new", active_vms=7, created_vms=10, fetched=2)
    assert state(old, two) is RunState.RUNNING
    assert state(old, replace(two, created_vms=9)) is RunState.STARTING
    none = stats("old", "new", active_vms=4, created_vms=7, fetched=2)
    assert state(old, none) is RunState.CONFIGURATION_REFUSED


def test_module_that_has_not_arrived_while_the_old_filter_drains_is_awaited() -> None:
    """As seen on a busy node: Envoy knew the plug-in, and took the module out of its cache a moment later."""
    before = stats("old", seconds=0, active_vms=4, fetched=0)
    assert state(before, stats("old", "new", active_vms=4, draining=1)) is RunState.STARTING
    arrived = stats("old", "new", active_vms=4, fetched=1, draining=1)
    assert state(before, arrived) is RunState.CONFIGURATION_REFUSED
    drained = stats("old", "new", active_vms=4, draining=0)
    assert state(before, drained) is RunState.CONFIGURATION_REFUSED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (PLAIN, stats("new", active_vms=0, fetched=1)),
        (None, stats("new", active_vms=0, fetched=1)),
        (OLD, stats("old", "new", active_vms=4, fetched=2)),
        (OLD, stats("new", active_vms=0)),
        (TWO, stats("old", "other", "new", active_vms=8, fetched=3)),
        (TWO, stats("other", "new", active_vms=4)),
        (None, stats("other", "new", active_vms=0)),
    ],
)
def test_module_that_arrived_and_has_no_vm_was_refused(
    before: SidecarStats | None, after: SidecarStats
) -> None:
    assert state(before, after) is RunState.CONFIGURATION_REFUSED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (PLAIN, stats("new", active_vms=4, fetched=1)),
        (None, stats("new", active_vms=4, fetched=1)),
        (OLD, stats("old", "new", active_vms=8, fetched=2)),
        (OLD, stats("new", active_vms=4)),
        (TWO, stats("other", "new", active_vms=8)),
        (stats("odd", active_vms=1), stats("odd", "new", active_vms=5, fetched=1)),
    ],
)
def test_vms_that_can_only_be_its_own_prove_that_it_runs(
    before: SidecarStats | None, after: SidecarStats
) -> None:
    assert state(before, after) is RunState.RUNNING


def test_vms_that_may_belong_to_other_filters_prove_nothing() -> None:
    assert state(None, stats("other", "new", active_vms=4)) is RunState.UNKNOWN
    both = stats("old", "new", "third", active_vms=8, fetched=2)
    assert state(OLD, both) is RunState.UNKNOWN, "either of the two that were added"
    one = replace(TWO, active_vms=4)
    assert state(one, stats("other", "new", active_vms=4)) is RunState.UNKNOWN
    report = judge(None, stats("other", "new", active_vms=4), "new")
    assert report.message.endswith("4 active VMs may belong to its 1 other filters")


def accepted(after: SidecarStats, acceptance: Acceptance, *, before: SidecarStats = OLD) -> str:
    """What is concluded of a plug-in whose name it had before."""
    return judge(before, after, "old", acceptance=acceptance).state.value


def test_name_without_a_digest_proves_nothing_until_a_change_is_seen() -> None:
    same = stats("old", active_vms=4)
    assert accepted(same, Acceptance.NOT_SEEN) == "NotAccepted"
    assert accepted(same, Acceptance.UNKNOWN) == "Unknown"
    assert accepted(same, Acceptance.SEEN) == "Running"


def test_rejected_change_of_the_same_name_is_named() -> None:
    rejected = stats("old", active_vms=4, rejected=1)
    report = judge(OLD, rejected, "old", acceptance=Acceptance.NOT_SEEN)
    assert report.state is RunState.NOT_ACCEPTED
    assert "rejected a listener update" in report.message
    seen = judge(OLD, rejected, "old", acceptance=Acceptance.SEEN)
    assert seen.state is RunState.RUNNING, "it may be another listener"


def test_vms_may_be_those_of_the_previous_module_while_it_drains() -> None:
    draining = stats("old", active_vms=4, draining=1)
    assert accepted(draining, Acceptance.SEEN) == "Starting"
    assert accepted(replace(draining, active_vms=8), Acceptance.SEEN) == "Running", "both"
    assert accepted(replace(draining, draining=0), Acceptance.SEEN) == "Running"
    refused = replace(draining, active_vms=0, fetched=2)
    assert accepted(refused, Acceptance.SEEN) == "ConfigurationRefused"
    named = judge(None, draining, "old")
    assert named.state is RunState.RUNNING, "the name has a digest: what drains is another plug-in"


def test_vms_that_are_gone_after_a_change_are_those_of_the_changed_plugin() -> None:
    lost = stats("old", "other", active_vms=4, draining=0)
    assert accepted(lost, Acceptance.SEEN, before=TWO) == "ConfigurationRefused"
    assert accepted(replace(lost, draining=1), Acceptance.SEEN, before=TWO) == "Starting"
    assert accepted(lost, Acceptance.UNKNOWN, before=TWO) == "Unknown"
    third = stats("old", "other", "third", active_vms=4, draining=0)
    assert accepted(third, Acceptance.SEEN, before=TWO) == "Unknown", "it may be the third"
    odd = replace(TWO, active_vms=4)
    assert accepted(lost, Acceptance.SEEN, before=odd) == "Unknown", "one did not run before"


def test_failure_shows_even_if_it_is_not_known_which_configuration_failed() -> None:
    assert accepted(stats("old", active_vms=0), Acceptance.UNKNOWN) == "ConfigurationRefused"
    crashed = stats(active_vms=4, plugins={"old": ReloadCounts(success=1)})
    assert accepted(crashed, Acceptance.UNKNOWN) == "Crashing"


@pytest.mark.parametrize(
    "after",
    [
        stats("new", active_vms=4, uptime=3),
        stats("new", active_vms=4, seconds=5000, uptime=1001),
        stats("new", active_vms=4, listeners_created=3),
    ],
)
def test_restarted_envoy_counts_from_zero(after: SidecarStats) -> None:
    before = replace(OLD, requests=Requests({5: 7}), fetch_failures=1)
    after = replace(after, requests=Requests({2: 1, 5: 1}))
    report = judge(before, after, "new")
    assert report.state is RunState.RUNNING
    assert report.figures.is_restarted
    assert report.figures.requests == Requests({2: 1, 5: 1})


def test_late_uptime_is_no_restart() -> None:
    after = stats("new", active_vms=4, seconds=10, uptime=1004)
    assert not judge(OLD, after, "new").figures.is_restarted


def test_figures_are_those_since_the_earlier_reading() -> None:
    before = replace(OLD, requests=Requests({2: 90, 5: 10}))
    after = stats("old", "new", active_vms=8, fetched=2, requests=Requests({2: 100, 5: 30}))
    figures = judge(before, after, "new").figures
    assert (figures.active_vms, figures.active_vms_before, figures.other_plugins) == (8, 4, 1)
    assert figures.requests == Requests({2: 10, 5: 20})
    assert figures.requests_before == Requests({2: 90, 5: 10})


def test_unreadable_earlier_reading_counts_as_none() -> None:
    after = stats("new", active_vms=4)
    unread = UnreadStats(ReadFailure.TIMEOUT)
    assert judge(unread, after, "new") == judge(None, after, "new")


def test_each_rule_has_a_name_a_meaning_and_a_clause() -> None:
    assert len({applies.__name__ for applies, _, _ in RULES}) == len(RULES)
    assert all(applies.__doc__ for applies, _, _ in RULES)
    assert {state for _, state, _ in RULES} == set(RunState) - {RunState.STATS_UNREACHABLE}


def test_states_say_whether_waiting_helps() -> None:
    assert {one for one in RunState if one.is_pending} == {RunState.STARTING, RunState.NOT_ACCEPTED}
    assert {one for one in RunState if one.is_failure} == {
        RunState.CONFIGURATION_REFUSED,
        RunState.CRASHING,
        RunState.FETCH_FAILED,
    }


def test_vms_of_a_plugin_that_was_just_removed_are_not_missed_in_its_successor() -> None:
    draining = stats("old", seconds=0, active_vms=8, fetched=2)
    assert state(draining, stats("old", "new", active_vms=8)) is RunState.RUNNING
    assert state(draining, stats("old", "new", active_vms=4)) is RunState.CONFIGURATION_REFUSED


S, T = "test-0123456789abcdef", "test-fedcba9876543210"
"""The plug-in of a staged rollout, before and after a change."""


def plugins(*names: str) -> dict[str, ReloadCounts]:
    return {series_of(name)[0]: ReloadCounts() for name in names}


@pytest.mark.parametrize("old", [S, "test"], ids=["rollout", "first rollout"])
def test_vms_beside_the_name_of_a_drained_predecessor_are_those_of_either(old: str) -> None:
    """Envoy removes the name after the VMs. Figures of Envoy 1.40 at that moment, when the new plug-in ran."""
    before = stats(seconds=0, plugins=plugins(old), active_vms=4, created_vms=106, fetched=1)
    after = stats(plugins=plugins(old, T), active_vms=4, created_vms=111, fetched=2, draining=0)
    assert state(before, after, T) is RunState.STARTING
    assert state(before, replace(after, active_vms=0), T) is RunState.CONFIGURATION_REFUSED
    assert state(before, replace(after, active_vms=8), T) is RunState.RUNNING
    drains = replace(after, draining=1)
    assert state(before, drains, T) is RunState.CONFIGURATION_REFUSED, "the VMs are the old ones"
    gone = replace(after, plugins=plugins(T))
    assert state(before, gone, T) is RunState.RUNNING
    assert state(before, replace(gone, active_vms=0), T) is RunState.CONFIGURATION_REFUSED


@pytest.mark.parametrize("other", ["other", "test-2", "other-0123456789abcdef", "test-0123"])
def test_plugin_of_another_autowasm_is_no_predecessor(other: str) -> None:
    before = stats(seconds=0, plugins=plugins(other), active_vms=4, fetched=1)
    after = stats(plugins=plugins(other, T), active_vms=4, fetched=2, draining=0)
    assert state(before, after, T) is RunState.CONFIGURATION_REFUSED


def test_other_filters_do_not_hide_a_predecessor() -> None:
    before = stats(seconds=0, plugins=plugins(S, "other"), active_vms=8, fetched=2)
    after = stats(plugins=plugins(S, "other", T), active_vms=8, fetched=3, draining=0)
    assert state(before, after, T) is RunState.STARTING
    gone = replace(after, plugins=plugins("other", T))
    assert state(before, gone, T) is RunState.RUNNING
    assert state(before, replace(gone, active_vms=4), T) is RunState.CONFIGURATION_REFUSED
