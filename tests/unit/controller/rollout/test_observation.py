"""StepReadings: the readings by which a Pod of a step is judged."""

from typing import Any

import pytest

from autowasm.controller.pods.envoystats import (
    ReadFailure,
    Reading,
    ReloadCounts,
    SidecarStats,
    UnreadStats,
)
from autowasm.controller.pods.runstate import RunState
from autowasm.controller.rollout.observation import StepReadings
from tests.unit.controller.rollout.states import PODS

POD = PODS[0]
UNREAD = UnreadStats(ReadFailure.TIMEOUT)


def stats(*plugins: str, **fields: Any) -> SidecarStats:
    """Of an Envoy with two workers, so that a plug-in has four VMs."""
    found = dict.fromkeys(plugins, ReloadCounts())
    values: dict[str, Any] = {"active_vms": 4, "listeners_created": 1, "concurrency": 2, **fields}
    return SidecarStats(plugins=found, warming=0, uptime=100, **values)


OLD = stats("old")
REFUSED = stats("old", "new", draining=1, fetched=1)
RUNS = stats("old", "new", draining=1, fetched=1, active_vms=8)
NOT_FETCHED = stats("old", "new", draining=1, fetch_failures=1)


def states(*readings: Reading) -> list[RunState | None]:
    """After each reading, of a Pod that gets the target after the first one."""
    found, step = [], StepReadings()
    for seconds, reading in enumerate(readings):
        step.add({POD.uid: reading}, plugin="new", begun=float(seconds))
        found.append(step.observed(POD, plugin="new", now=float(seconds)).run)
        step.place([POD.uid])
    return found[1:]


@pytest.mark.parametrize(
    ("failed", "state"),
    [(REFUSED, RunState.CONFIGURATION_REFUSED), (NOT_FETCHED, RunState.FETCH_FAILED)],
)
def test_refusal_or_failed_fetch_counts_when_two_readings_in_a_row_show_it(
    failed: Reading, state: RunState
) -> None:
    once = RunState.STARTING
    assert states(OLD, failed, failed, failed) == [once, state, state]
    assert states(OLD, failed, RUNS, failed) == [once, RunState.RUNNING, once]
    unread = RunState.STATS_UNREACHABLE
    assert states(OLD, failed, UNREAD, failed, failed) == [once, unread, once, state]


def test_failure_counts_only_after_one_of_the_same_kind() -> None:
    found = states(OLD, REFUSED, NOT_FETCHED, NOT_FETCHED)
    assert found == [RunState.STARTING, RunState.STARTING, RunState.FETCH_FAILED]


def test_one_reading_shows_a_crash() -> None:
    crashed = SidecarStats(
        plugins={"new": ReloadCounts(success=1)}, active_vms=4, listeners_created=1, concurrency=2
    )
    assert states(OLD, crashed) == [RunState.CRASHING]
