"""Step EnvoyFilter: the staged rollout, and what it waits for."""

from collections.abc import Iterator
from typing import Final

from msgspec import UNSET

from autowasm.api.status import RolloutPhase, RolloutVerdict
from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Reporter, Step

_finding: Final = Reporter(Step.ENVOYFILTER)
_FIELD: Final = "status.rollout"
_GOES_ON: Final = frozenset({"Pause", "NotPublished", "NotRead", "ModulePending"})
"""Reasons that end by themselves."""
_REMEDIES: Final = {
    "StatsUnreachable": "let wasmer reach port 15090 of the Pods (NetworkPolicy), or set spec.rollout.onUnknown: Continue",
    "Unknown": "the statistics of this sidecar cannot be attributed: set spec.rollout.onUnknown: Continue, or promote",
    "NotAccepted": "see the log of the Pod's istio-proxy: istiod has not sent the filter, or Envoy has rejected it",
    "PodNotReady": "see why the Pod is not ready: kubectl describe pod",
    "StableLost": "another client changed the EnvoyFilter: change the AutoWasm, or run wasmc rollout promote",
    "PausedByCommand": "wasmc rollout resume goes on, promote gives the filter to all Pods, abort takes it back",
}
_FOLLOW: Final = "follow it: wasmc rollout status -w"


def rollout(facts: Facts) -> Iterator[Finding]:
    """Which step it is in, and what it waits for. An aborted one is the phase Degraded."""
    autowasm = facts.autowasm
    if facts.planned:
        if autowasm is not None and autowasm.spec.rollout is not None:
            steps = ", ".join(map(str, autowasm.spec.rollout.steps))
            what = f"a changed filter reaches the Pods in steps ({steps}, all): the EnvoyFilter here is that of the end"
            yield _finding(Level.NOTE, "Rollout", facts.name, what, field="spec.rollout")
        return
    state = facts.status.rollout
    if state is UNSET or state.phase not in {RolloutPhase.PROGRESSING, RolloutPhase.PAUSED}:
        return
    verdict = state.verdict if state.verdict is not UNSET else RolloutVerdict()
    what = f"step {state.step} of {state.steps} of a rollout ({state.phase.value}), {verdict.proven} of {verdict.pods} Pods proven"
    if state.message:
        what += f"; {state.message}"
    level = Level.NOTE if state.reason in _GOES_ON else Level.WARNING
    remedy = _FOLLOW if level is Level.NOTE else _REMEDIES.get(state.reason, _FOLLOW)
    yield _finding(level, "Rollout", facts.name, what, remedy, field=_FIELD)


CHECKS: Final[tuple[Check, ...]] = (rollout,)
