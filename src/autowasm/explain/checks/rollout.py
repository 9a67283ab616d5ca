"""Step Rollout: how far the staged rollout of the spec is, what it waits for, why it was aborted, and how to continue.

The controller's status reports it (ADR 39, `controller/rollout/`). Invariant: only a rollout that needs a person, or that ended without
the filter of the spec, is more than a note.
"""

import shlex
from collections.abc import Iterator
from typing import Final

from msgspec import UNSET

from autowasm.api.status import RolloutPhase, RolloutStatus
from autowasm.api.v1alpha1 import FailStrategy
from autowasm.controller.rollout.judgement import RolloutReason
from autowasm.explain.checks.running import REACH_STATISTICS
from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Reporter, Step

_finding: Final = Reporter(Step.ROLLOUT)
_FIELD: Final = "status.rollout"
_STATISTICS: Final = f"{REACH_STATISTICS}, or set spec.rollout.onUnknown: Continue"
_WAITS: Final[dict[str, str]] = {
    RolloutReason.POD_NOT_READY.value: "kubectl describe pod; a sidecar that cannot fetch its module is one cause",
    RolloutReason.NOT_DOWNLOADED.value: "check that the proxy reaches wasmer (see Network below)",
    RolloutReason.NOT_ACCEPTED.value: "check that the proxy is connected to istiod (istioctl proxy-status)",
    RolloutReason.STATS_UNREACHABLE.value: _STATISTICS,
    RolloutReason.UNKNOWN.value: _STATISTICS,
    RolloutReason.MODULE_PENDING.value: "see Source and Module above",
}
"""The remedy for each reason why a step waits. All other reasons only need time."""
_STUCK: Final = frozenset(
    {
        RolloutReason.POD_NOT_READY.value,
        RolloutReason.NOT_DOWNLOADED.value,
        RolloutReason.STATS_UNREACHABLE.value,
        RolloutReason.UNKNOWN.value,
    }
)
"""Reasons that rarely pass by themselves."""
_FAULTS: Final[dict[str, str]] = {
    RolloutReason.CONFIGURATION_REFUSED.value: "correct the configuration (wasmc run -f shows the refusal on your machine)",
    RolloutReason.CRASHING.value: "find the crash in the log of the Pod's istio-proxy, or with wasmc run -f",
    RolloutReason.FETCH_FAILED.value: "check that the proxy reaches wasmer (see Network below)",
    RolloutReason.FAILURE_RATIO.value: "find the failing requests in the log of the Pod's istio-proxy, or with wasmc run -f",
    RolloutReason.DEADLINE_EXCEEDED.value: "correct the cause that the message names",
    RolloutReason.ABORTED_BEFORE.value: "move the tag to another module, or change the spec",
}


def rollout(facts: Facts) -> Iterator[Finding]:
    """A finding for the phase, and a note if it is about an earlier spec. For a plan: the steps in which a change reaches the Pods."""
    wanted = facts.autowasm is not None and facts.autowasm.spec.rollout is not None
    state = facts.status.rollout
    if facts.planned:
        yield from _planned(facts)
        return
    if not wanted and state is UNSET:
        return
    if state is UNSET or not _is_current(facts, state):
        what = "the staged rollout of the current spec has not begun: wasmer first fetches and checks the module"
        remedy = "see AutoWasm, Source and Module above"
        yield _finding(Level.NOTE, "RolloutNotBegun", facts.name, what, remedy, field=_FIELD)
        if state is UNSET:
            return
    yield _of_phase(facts, state)


def _planned(facts: Facts) -> Iterator[Finding]:
    spec = facts.autowasm.spec.rollout if facts.autowasm is not None else None
    if spec is not None:
        steps = ", ".join(map(str, spec.steps))
        own = (facts.document.get("spec") or {}).get("rollout") is not None
        whose = "" if own else f", by the operator's policy for namespace {facts.key.namespace}"
        what = (
            f"a changed filter reaches the Pods in steps ({steps}, all), each of which must stay healthy for {spec.pause}{whose}: the "
            "EnvoyFilter shown here is the final one"
        )
        yield _finding(Level.NOTE, "Rollout", facts.name, what, field="spec.rollout")
    elif facts.unknown_rollout:
        what = "a changed filter reaches the Pods in steps, by the operator's policy: the EnvoyFilter shown here is the final one"
        remedy = "to see which steps, give wasmc plan the policy (--policy-file)"
        yield _finding(Level.NOTE, "Rollout", facts.name, what, remedy, field="spec.rollout")


def unseen_crashes(facts: Facts) -> Iterator[Finding]:
    """A staged rollout of a filter whose crashes no statistic of Envoy shows (docs/reference/sidecar-statistics.md)."""
    autowasm = facts.autowasm
    is_staged = facts.unknown_rollout or (
        autowasm is not None and autowasm.spec.rollout is not None
    )
    strategy = autowasm.spec.filter.fail_strategy if autowasm is not None else None
    if is_staged and strategy is FailStrategy.FAIL_OPEN:
        what = "with FAIL_OPEN, Envoy lets requests pass when the filter crashes, and counts nothing: the rollout of such a filter succeeds"
        remedy = "test it with wasmc test, or roll it out with FAIL_RELOAD first"
        field = "spec.filter.failStrategy"
        yield _finding(Level.NOTE, "UnseenCrashes", facts.name, what, remedy, field=field)


def _is_current(facts: Facts, state: RolloutStatus) -> bool:
    generation = (facts.document.get("metadata") or {}).get("generation")
    return state.target.generation == generation


def _of_phase(facts: Facts, state: RolloutStatus) -> Finding:
    what = f"{state.phase.value}{_generation(facts, state)}: {_said(state)}"
    where = _where(facts, state)
    match state.phase:
        case RolloutPhase.SUCCEEDED:
            return _finding(Level.OK, "Rollout", facts.name, what, field=_FIELD)
        case RolloutPhase.PROGRESSING:
            level = Level.WARNING if state.reason in _STUCK else Level.NOTE
            advice = _WAITS.get(state.reason, "")
            remedy = f"{advice}; follow it" if advice else "follow it"
            remedy += f": {_command(facts, 'status', '-w')}"
            return _finding(level, "Rollout", where, what, remedy, field=_FIELD)
        case RolloutPhase.PAUSED if state.reason == RolloutReason.STABLE_LOST.value:
            remedy = f"change the spec, or {_command(facts, 'promote')}"
            return _finding(Level.ERROR, "RolloutPaused", where, what, remedy, field=_FIELD)
        case RolloutPhase.PAUSED:
            remedy = f"{_command(facts, 'resume')}, or {_command(facts, 'abort')}"
            return _finding(Level.WARNING, "RolloutPaused", facts.name, what, remedy, field=_FIELD)
        case _:
            advice = _FAULTS.get(state.reason, "")
            again = f"then change the spec, or try the same again: {_command(facts, 'retry')}"
            remedy = f"{advice}; {again}" if advice else again.removeprefix("then ")
            return _finding(Level.ERROR, "RolloutAborted", where, what, remedy, field=_FIELD)


def _generation(facts: Facts, state: RolloutStatus) -> str:
    current = _is_current(facts, state)
    return "" if current else f" (of generation {state.target.generation}, an earlier spec)"


def _said(state: RolloutStatus) -> str:
    """The message with the step and the figures, each one time."""
    head = f"step {state.step} of {state.steps}"
    message = state.message or state.reason
    is_told = head in message or state.phase is RolloutPhase.SUCCEEDED
    text = message if is_told else f"{head}: {message}"
    verdict = state.verdict
    if verdict is UNSET or state.phase is RolloutPhase.SUCCEEDED:
        return text
    figures = [f"{verdict.proven} of {verdict.pods} Pods proven"]
    if verdict.requests:
        ratio = verdict.failures / verdict.requests
        figures.append(f"{verdict.failures} of {verdict.requests} requests failed ({ratio:.2%})")
    if verdict.stable_requests:
        ratio = verdict.stable_failures / verdict.stable_requests
        figures.append(f"{ratio:.2%} with the previous filter")
    return f"{text} ({', '.join(figures)})"


def _where(facts: Facts, state: RolloutStatus) -> str:
    pod = state.verdict.pod if state.verdict is not UNSET else ""
    return f"Pod {pod}" if pod else facts.name


def _command(facts: Facts, verb: str, *more: str) -> str:
    key = facts.key
    return shlex.join(["wasmc", "rollout", verb, key.name, "-n", key.namespace, *more])


CHECKS: Final[tuple[Check, ...]] = (rollout, unseen_crashes)
