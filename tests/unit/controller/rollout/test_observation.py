"""StepReadings: the readings by which a Pod of a step is judged."""

import pytest

from autowasm.controller.pods.envoystats import ReadFailure, Reading, UnreadStats, parse
from autowasm.controller.pods.runstate import RunState
from autowasm.controller.rollout.observation import StepReadings
from tests.fakes.sidecarstats import VMS, page
from tests.unit.controller.rollout.states import PODS

POD = PODS[0]
UNREAD = UnreadStats(ReadFailure.TIMEOUT)


def reading(*plugins: str, vms: int = VMS, **figures: int) -> Reading:
    return parse(page(plugins, vms=vms, **figures))


OLD = reading("old")
REFUSED = reading("old", "new", draining=1, fetched=1)
RUNS = reading("old", "new", draining=1, fetched=1, vms=2 * VMS)
NOT_FETCHED = reading("old", "new", draining=1, fetch_failures=1)


def states(*readings: Reading) -> list[RunState | None]:
    """After each reading, of a Pod that gets the target after the first one."""
    found, step = [], StepReadings()
    for seconds, one in enumerate(readings):
        step.add({POD.uid: one}, plugin="new", begun=float(seconds))
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
    assert states(OLD, parse(page({"new": 1}, vms=VMS))) == [RunState.CRASHING]
