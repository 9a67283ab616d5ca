"""Step Pods: the published module runs in the sidecars, by their own statistics.

Statistics that were read now (`explain/gather.py`) count more than the status, which the controller wrote after the last change
(`controller/pods/runtracker.py`). Invariant: a sidecar whose state is not known is a note, never an error.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import UNSET

from autowasm.api.status import ConditionType
from autowasm.controller.pods import envoystats
from autowasm.explain.facts import Facts, RunFact
from autowasm.explain.finding import Check, Finding, Level, Reporter, Step

_finding: Final = Reporter(Step.PODS)
_FIELD: Final = "status.pods.running"
_NAMED: Final = 3
_RUNNING: Final = "Running"
_UNDECIDED: Final = frozenset({"Unknown", "StatsUnreachable", "Starting"})
"""Undecided after one reading. The status may know more, from the readings before and after the change."""
REACH_STATISTICS: Final = (
    f"allow wasmer to connect to port {envoystats.PORT} of the Pods, if a NetworkPolicy forbids it"
)
"""The remedy for sidecars whose statistics wasmer cannot read."""
_REMEDIES: Final = {
    "ConfigurationRefused": "check spec.filter.pluginConfig with wasmc run -f; the proxy's log has the module's reason: kubectl logs POD -c istio-proxy",
    "Crashing": "the proxy's log has the reason (kubectl logs POD -c istio-proxy); go back to the previous module if it crashes again",
    "FetchFailed": "check that the proxy reaches wasmer (see Network below); wasmer resends the module when sidecars got errors",
    "NotAccepted": "istioctl proxy-status shows whether istiod has sent the configuration, and the proxy's log why it was rejected",
    "StatsUnreachable": f"{REACH_STATISTICS}; the module may run",
    "Starting": "wait for it",
    "Unknown": "kubectl exec POD -c istio-proxy -- pilot-agent request GET 'stats/prometheus?filter=^wasm' shows the statistics",
}
_LEVELS: Final = {
    "ConfigurationRefused": Level.ERROR,
    "Crashing": Level.ERROR,
    "FetchFailed": Level.ERROR,
    "NotAccepted": Level.WARNING,
}


def running(facts: Facts) -> Iterator[Finding]:
    """In how many sidecars the module runs, and a finding for each reason why it does not run in others."""
    if facts.planned or facts.record is None or not facts.injected:
        return
    others = _reported(facts)
    fresh = {one.pod: one for one in facts.runs if others is None or one.state not in _UNDECIDED}
    if others is None and not fresh:
        what = "the status does not report whether the module runs: wasmer has just published it, or its version does not report this"
        yield _finding(Level.NOTE, "RunNotTold", facts.name, what, field=_FIELD)
        return
    yield _summary(facts, fresh)
    states = {pod: one for pod, one in (others or {}).items() if pod not in fresh}
    states |= {pod: one for pod, one in fresh.items() if one.state != _RUNNING}
    by_state: dict[str, list[RunFact]] = {}
    for one in states.values():
        by_state.setdefault(one.state, []).append(one)
    for state, found in by_state.items():
        names = ", ".join(one.pod for one in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        yield _finding(
            _LEVELS.get(state, Level.NOTE),
            f"Run{state}",
            f"{'Pod' if len(found) == 1 else 'Pods'} {names}{more}",
            found[0].message or f"is not known to run the module: {state}",
            _REMEDIES.get(state, ""),
        )


def _reported(facts: Facts) -> dict[str, RunFact] | None:
    """The Pods that the status names, if it is about this spec."""
    pods, condition = facts.status.pods, facts.status.condition(ConditionType.RUNNING)
    generation = facts.document.get("metadata", {}).get("generation")
    if pods is UNSET or pods.running is UNSET or condition is None:
        return None
    if isinstance(generation, int) and condition.observed_generation < generation:
        return None
    found = {}
    for one in pods.not_running:
        where = f"{one.namespace}/{one.name}"
        found[where] = RunFact(pod=where, state=one.reason, message=one.message)
    return found


def _summary(facts: Facts, fresh: Mapping[str, RunFact]) -> Finding:
    if fresh:
        runs = sum(one.state == _RUNNING for one in fresh.values())
        what = f"{runs} of {len(fresh)} sidecars whose statistics were read now run the module"
        level = Level.OK if runs == len(fresh) else Level.NOTE
        return _finding(level, "Running", facts.name, what)
    condition, pods = facts.status.condition(ConditionType.RUNNING), facts.status.pods
    is_true = condition is not None and condition.status == "True"
    since = f" (as of {pods.time})" if pods is not UNSET and pods.time else ""
    count = pods.running if pods is not UNSET and pods.running is not UNSET else 0
    injected = pods.injected if pods is not UNSET else 0
    what = f"{count} of {injected} sidecars are known to run the module{since}"
    return _finding(Level.OK if is_true else Level.NOTE, "Running", facts.name, what, field=_FIELD)


CHECKS: Final[tuple[Check, ...]] = (running,)
