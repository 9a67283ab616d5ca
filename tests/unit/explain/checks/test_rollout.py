"""The check of the staged rollout: level, place and the way on, in each state."""

from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from autowasm.api import staged
from autowasm.api.status import RolloutPhase, RolloutStatus
from autowasm.api.v1alpha1 import Rollout
from autowasm.controller.rollout.judgement import RolloutReason
from autowasm.explain import plan
from autowasm.explain.checks import envoyfilter, resource, rollout
from autowasm.explain.examine import examine
from autowasm.explain.facts import Facts
from autowasm.explain.finding import Finding, Level, Step
from autowasm.settings import EnvoyFetch
from tests.fakes import rollouts
from tests.fakes.rollouts import (
    ABORTED,
    BEGUN,
    FAILED,
    HEALTHY,
    LOST,
    PAUSED,
    STATES,
    SUCCEEDED,
    WAITING,
)
from tests.parts.explained import autowasm, facts, findings_of


def given(state: RolloutStatus | None, *, generation: int = 7, **changes: Any) -> Facts:
    """An AutoWasm with `spec.rollout` and this state."""
    document = autowasm()
    document["metadata"]["generation"] = generation
    document["spec"]["rollout"] = {}
    document["status"] = rollouts.status(state).to_dict()
    return facts(document, **changes)


def found(state: RolloutStatus | None, **fields: Any) -> dict[str, Finding]:
    return findings_of(rollout.rollout, given(state, **fields))


def test_nothing_is_said_without_a_staged_rollout() -> None:
    assert findings_of(rollout.rollout, facts()) == {}
    assert findings_of(rollout.rollout, facts(planned=True)) == {}


def test_a_plan_says_that_the_change_comes_in_steps() -> None:
    (finding,) = found(FAILED, planned=True).values()
    assert (finding.level, finding.field) == (Level.NOTE, "spec.rollout")
    assert "(1, 10%, 50%, all), each of which must stay healthy for 30s" in finding.what
    assert "policy" not in finding.what


def test_a_plan_says_whose_steps_they_are_and_how_to_see_them() -> None:
    without = facts(planned=True)
    assert without.autowasm is not None
    spec = msgspec.structs.replace(without.autowasm.spec, rollout=Rollout(steps=(1, "5%")))
    completed = msgspec.structs.replace(without.autowasm, spec=spec)
    by_policy = msgspec.structs.replace(without, autowasm=completed)
    (finding,) = findings_of(rollout.rollout, by_policy).values()
    assert "(1, 5%, all)" in finding.what
    assert f"by the operator's policy for namespace {without.key.namespace}" in finding.what
    unknown = msgspec.structs.replace(without, unknown_rollout=True)
    (finding,) = findings_of(rollout.rollout, unknown).values()
    assert (finding.level, finding.field) == (Level.NOTE, "spec.rollout")
    assert "--policy-file" in finding.remedy


def test_rollout_that_cannot_see_a_crash_is_noted() -> None:
    def noted(state: RolloutStatus | None, **fields: Any) -> dict[str, Finding]:
        document = dict(given(state).document)
        document["spec"]["filter"]["failStrategy"] = fields.pop("strategy", "FAIL_OPEN")
        return findings_of(rollout.unseen_crashes, facts(document, **fields))

    for found in (noted(BEGUN), noted(None, planned=True)):
        assert found["UnseenCrashes"].level is Level.NOTE
        assert found["UnseenCrashes"].field == "spec.filter.failStrategy"
    assert noted(BEGUN, strategy="FAIL_RELOAD") == {}
    assert findings_of(rollout.unseen_crashes, facts()) == {}


@pytest.mark.parametrize(
    ("state", "level", "check", "where", "command"),
    [
        (BEGUN, Level.NOTE, "Rollout", "AutoWasm team/test", "wasmc rollout status test -n team -w"),
        (WAITING, Level.NOTE, "Rollout", "Pod team/hello-7d4c9b8f6-x1", "wasmc rollout status test -n team -w"),
        (HEALTHY, Level.NOTE, "Rollout", "AutoWasm team/test", "wasmc rollout status test -n team -w"),
        (PAUSED, Level.WARNING, "RolloutPaused", "AutoWasm team/test", "wasmc rollout resume test -n team"),
        (LOST, Level.ERROR, "RolloutPaused", "AutoWasm team/test", "wasmc rollout promote test -n team"),
        (FAILED, Level.ERROR, "RolloutAborted", "Pod team/hello-7d4c9b8f6-x1", "wasmc rollout retry test -n team"),
        (ABORTED, Level.ERROR, "RolloutAborted", "AutoWasm team/test", "wasmc rollout retry test -n team"),
        (SUCCEEDED, Level.OK, "Rollout", "AutoWasm team/test", ""),
    ],
)  # fmt: skip
def test_each_state_has_a_level_a_place_and_the_command_to_go_on(
    state: RolloutStatus, level: Level, check: str, where: str, command: str
) -> None:
    (finding,) = found(state).values()
    assert (finding.level, finding.check, finding.object) == (level, check, where)
    assert (finding.step, finding.field) == (Step.ROLLOUT, "status.rollout")
    assert command in finding.remedy
    assert bool(finding.remedy) is (level is not Level.OK)


def test_a_failed_pod_is_reported_with_its_figures() -> None:
    finding = found(FAILED)["RolloutAborted"]
    assert finding.what == (
        "Aborted: step 2 of 4: Pod team/hello-7d4c9b8f6-x1 failed 3 of 104 requests (2.88%), more than 1.09%; all Pods have the "
        "previous filter (1 of 2 Pods proven, 3 of 104 requests failed (2.88%), 0.09% with the previous filter)"
    )
    assert finding.remedy.startswith("find the failing requests in the log")


def test_a_waiting_step_names_its_reason() -> None:
    assert found(WAITING)["Rollout"].what == (
        "Progressing: step 2 of 4: Envoy of Pod team/hello-7d4c9b8f6-x1 has not accepted the new filter yet (1 of 2 Pods proven, 2 of "
        "1204 requests failed (0.17%), 0.09% with the previous filter)"
    )


def test_statistics_that_cannot_be_read_are_a_warning_with_both_ways_out() -> None:
    state = msgspec.structs.replace(WAITING, reason=RolloutReason.STATS_UNREACHABLE.value)
    finding = found(state)["Rollout"]
    assert finding.level is Level.WARNING
    assert finding.remedy.startswith(
        "allow wasmer to connect to port 15090 of the Pods, if a NetworkPolicy forbids it, "
        "or set spec.rollout.onUnknown: Continue; follow it: "
    )


@pytest.mark.parametrize("reason", list(RolloutReason))
@pytest.mark.parametrize("phase", list(RolloutPhase))
def test_every_reason_has_a_finding_whose_remedy_is_complete(
    reason: RolloutReason, phase: RolloutPhase
) -> None:
    (finding,) = found(msgspec.structs.replace(WAITING, phase=phase, reason=reason.value)).values()
    assert not finding.remedy.startswith((";", "then"))
    assert (phase is RolloutPhase.SUCCEEDED) is (finding.level is Level.OK)


def test_the_rollout_of_an_earlier_spec_is_reported_as_such() -> None:
    findings = found(FAILED, generation=8)
    assert findings["RolloutNotBegun"].level is Level.NOTE
    assert "(of generation 7, an earlier spec)" in findings["RolloutAborted"].what
    assert list(found(None)) == ["RolloutNotBegun"]


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_the_report_has_the_rollout_before_the_pods(state: RolloutStatus) -> None:
    steps = [one.step for one in examine(given(state))]
    assert steps.index(Step.ROLLOUT) < steps.index(Step.PODS)


def test_the_phase_refers_to_the_rollout() -> None:
    document = given(WAITING).document
    status = {**document["status"], "phase": "Progressing", "message": "rollout: it goes on"}
    finding = findings_of(resource.phase, facts({**document, "status": status}))["Phase"]
    assert (finding.level, finding.remedy) == (Level.NOTE, "see Rollout below")


def test_an_aborted_first_rollout_leaves_an_envoyfilter_that_is_as_it_should_be() -> None:
    first = msgspec.structs.replace(ABORTED, stable=UNSET)
    known = given(first)
    assert known.autowasm is not None
    live = staged.render(known.autowasm, EnvoyFetch(), stable=None, target=None)
    wanted = plan.desired_now(known.autowasm, live, known.status, EnvoyFetch())
    assert wanted == live
    assert findings_of(envoyfilter.edited, given(first, live=live, desired=wanted)) == {}
