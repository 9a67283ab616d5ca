"""When a step is healthy, what it waits for, and what ends it."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from autowasm.api.status import MAX_PER_POD, StepUnit
from autowasm.api.v1alpha1 import OnUnknown
from autowasm.controller.pods.runstate import RunState
from autowasm.controller.rollout.judgement import (
    MIN_REQUESTS,
    Judgement,
    RolloutReason,
    judge,
)
from autowasm.controller.rollout.observation import (
    Figures,
    Observation,
    PodObservation,
)
from autowasm.controller.rollout.selection import Candidate
from tests.unit.controller.rollout.states import PODS, SPEC, observation, observed, state

CONTINUE = msgspec.structs.replace(SPEC, on_unknown=OnUnknown.CONTINUE)


def judged(*pods: PodObservation, spec: Any = SPEC, **fields: Any) -> Judgement:
    """Of the first step, in which only p0 has the target."""
    return judge(state(), observation(*pods, **fields), spec)


def last(*pods: PodObservation, **fields: Any) -> Judgement:
    return judge(state(step=3, pods=()), observation(*pods, **fields), SPEC)


def reason(judgement: Judgement) -> str:
    found = judgement.fault or judgement.wait
    return found.reason.value if found is not None else "healthy"


def test_running_pods_that_serve_are_healthy() -> None:
    judgement = judged()
    assert reason(judgement) == "healthy"
    assert judgement.verdict.pods == judgement.verdict.proven == 1
    assert not judgement.verdict.is_by_time


def test_verdict_has_the_pods_with_the_largest_share_of_failures_and_no_more_than_ten() -> None:
    figures = {0: Figures(), 1: Figures(1000, 9), 2: Figures(10, 1), 3: Figures(500, 5)}
    few = last(*(observed(number, figures=one) for number, one in figures.items()))
    told = [(one.pod, one.requests, one.failures) for one in few.verdict.per_pod][:4]
    assert told == [
        ("default/p3", 500, 5),
        ("default/p2", 10, 1),
        ("default/p1", 1000, 9),
        ("default/p0", 0, 0),
    ]
    crowd = tuple(
        PodObservation(candidate=Candidate("default", f"q{n}", f"u{n}")) for n in range(50)
    )
    many = judge(state(step=3, pods=()), replace(observation(), pods=crowd), SPEC)
    assert len(many.verdict.per_pod) == MAX_PER_POD == 10
    assert {one.pod for one in judged().verdict.per_pod} == {"default/p0"}, "those of the step"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"run": RunState.CONFIGURATION_REFUSED}, "ConfigurationRefused"),
        ({"run": RunState.CRASHING}, "Crashing"),
        ({"run": RunState.FETCH_FAILED}, "FetchFailed"),
        ({"figures": Figures(200, 3)}, "FailureRatio"),
    ],
)
def test_failure_is_a_fault_with_the_pod(changes: dict[str, Any], expected: str) -> None:
    judgement = judged(observed(0, **changes))
    assert judgement.fault is not None
    assert judgement.fault.reason.value == expected
    assert judgement.fault.pod == judgement.verdict.pod == "default/p0"
    assert "default/p0" in judgement.fault.message
    assert reason(judged(observed(1, **changes))) == "healthy", "of a Pod without the target"


@pytest.mark.parametrize("run", [RunState.CRASHING, RunState.STARTING])
def test_judgement_has_the_message_of_the_statistics(run: RunState) -> None:
    judgement = judged(observed(0, run=run, message="has 3 reloads"))
    finding = judgement.fault or judgement.wait
    assert finding is not None
    assert finding.message == "Envoy of Pod default/p0 has 3 reloads"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"run": None}, "NotRead"),
        ({"run": RunState.RUNNING, "age": 5.1}, "NotRead"),
        ({"run": RunState.CRASHING, "age": 5.1}, "NotRead"),
        ({"run": RunState.NOT_ACCEPTED}, "NotAccepted"),
        ({"run": RunState.STARTING}, "Starting"),
        ({"run": RunState.STATS_UNREACHABLE}, "StatsUnreachable"),
        ({"run": RunState.UNKNOWN}, "Unknown"),
        ({"candidate": replace(PODS[0], ready=False)}, "PodNotReady"),
    ],
)
def test_step_waits_for_an_unproven_pod(changes: dict[str, Any], expected: str) -> None:
    judgement = judged(observed(0, **changes))
    assert judgement.fault is None
    assert judgement.wait is not None
    assert judgement.wait.reason.value == expected
    assert judgement.verdict.pod == "default/p0"
    assert judgement.verdict.proven == 0


def test_step_that_is_not_in_place_is_waited_for() -> None:
    assert reason(judged(is_published=False)) == "NotPublished"


@pytest.mark.parametrize("run", [RunState.STATS_UNREACHABLE, RunState.UNKNOWN])
@pytest.mark.parametrize(
    ("downloaded", "expected"), [(True, "healthy"), (None, "healthy"), (False, "NotDownloaded")]
)
def test_unknown_pods_count_by_download_and_time_if_the_spec_allows(
    run: RunState, downloaded: bool | None, expected: str
) -> None:
    judgement = judged(observed(0, run=run, downloaded=downloaded), spec=CONTINUE)
    assert reason(judgement) == expected
    assert reason(judged(observed(0, run=None), spec=CONTINUE)) == "NotRead"
    assert reason(judged(observed(0, run=RunState.NOT_ACCEPTED), spec=CONTINUE)) == "NotAccepted"


def test_unreadable_pod_is_reported_as_proven_by_time() -> None:
    unknown = observed(0, run=RunState.UNKNOWN, figures=Figures())
    assert judged(unknown, spec=CONTINUE).verdict.is_by_time
    assert judged(observed(0, figures=Figures(MIN_REQUESTS - 1))).verdict.is_by_time
    assert not judged(observed(0, figures=Figures(MIN_REQUESTS))).verdict.is_by_time


@pytest.mark.parametrize(
    ("requests", "failures", "expected"),
    [
        (1, 1, "healthy"),
        (2, 2, "FailureRatio"),
        (99, 1, "healthy"),
        (100, 1, "healthy"),
        (100, 2, "FailureRatio"),
        (1000, 10, "healthy"),
        (1000, 11, "FailureRatio"),
    ],
)
def test_ratio_is_judged_over_a_hundred_requests_at_least(
    requests: int, failures: int, expected: str
) -> None:
    assert reason(judged(observed(0, figures=Figures(requests, failures)))) == expected


def test_ratio_may_exceed_that_of_the_stable_pods_by_the_limit_only() -> None:
    """The stable Pods fail 5 %: the limit is 6 %."""
    stable = [observed(n, figures=Figures(200, 10)) for n in range(1, 6)]
    assert reason(judged(observed(0, figures=Figures(200, 12)), *stable)) == "healthy"
    judgement = judged(observed(0, figures=Figures(200, 13)), *stable)
    assert judgement.fault is not None
    assert "failed 13 of 200 requests (6.50%), more than 6.00%" in judgement.fault.message
    verdict = judgement.verdict
    assert (verdict.requests, verdict.failures) == (200, 13)
    assert (verdict.stable_requests, verdict.stable_failures) == (1000, 50)


def test_few_failures_of_many_pods_are_judged_together() -> None:
    pods = [observed(n, figures=Figures(60, 1)) for n in range(6)]
    judgement = last(*pods)
    assert judgement.fault is not None
    assert "the Pods of the step failed 6 of 360 requests (1.67%)" in judgement.fault.message
    assert judgement.fault.pod == "default/p0"


def test_without_stable_requests_a_pod_is_compared_with_itself_before() -> None:
    pods = [observed(n, figures=Figures(200, 11), before=Figures(1000, 50)) for n in range(6)]
    assert reason(last(*pods)) == "healthy"
    without = [observed(n, figures=Figures(200, 11)) for n in range(6)]
    assert reason(last(*without)) == "FailureRatio"


def test_failure_ratio_of_few_stable_requests_excuses_little() -> None:
    """One of one failed is no ratio of 100 %."""
    stable = [observed(n, figures=Figures(0)) for n in range(1, 5)]
    bad = observed(0, figures=Figures(100, 3))
    judgement = judged(bad, *stable, observed(5, figures=Figures(1, 1)))
    assert reason(judgement) == "FailureRatio"


def test_last_step_has_all_pods_and_waits_for_those_that_are_ready() -> None:
    assert reason(last(observed(4, run=RunState.NOT_ACCEPTED))) == "NotAccepted"
    broken = observed(4, candidate=replace(PODS[4], ready=False), run=RunState.STATS_UNREACHABLE)
    judgement = last(broken)
    assert reason(judgement) == "healthy"
    assert judgement.verdict.pods == 5
    crashing = replace(broken, run=RunState.CRASHING)
    assert reason(last(crashing)) == "Crashing"


def test_pods_of_whole_nodes_are_judged_like_those_of_the_last_step() -> None:
    nodes = state(pods=(), groups=(PODS[2].group(StepUnit.NODE),), by=StepUnit.NODE)
    for run, expected in ((RunState.RUNNING, "healthy"), (RunState.CRASHING, "Crashing")):
        assert reason(judge(nodes, observation(observed(2, run=run)), SPEC)) == expected
    unready = observed(2, candidate=replace(PODS[2], ready=False), run=None)
    assert reason(judge(nodes, observation(unready), SPEC)) == "healthy"


def test_first_of_several_findings_is_the_same_in_any_order() -> None:
    pods = tuple(observed(n, run=RunState.CRASHING) for n in range(6))
    one, other = (
        judge(state(step=3), replace(Observation(target=None, is_published=True), pods=each), SPEC)
        for each in (pods, pods[::-1])
    )
    assert one == other
    assert one.fault is not None
    assert one.fault.pod == "default/p0"


def test_every_run_state_has_a_reason() -> None:
    reasons = {one.value for one in RolloutReason}
    assert {one.value for one in RunState} - {"Running"} <= reasons
