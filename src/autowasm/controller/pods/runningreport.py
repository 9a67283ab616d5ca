"""RunningReport: how many sidecars run the module, which ones do not, and why. Pure.

`runwatch.py` has the report of each Pod, `runtracker.py` decides when sidecars are read. Invariants: unknown states are reported as
unknown; a Pod counts as running only if its own statistics prove it; Pods without a sidecar do not count (`Loaded` names them).
"""

import heapq
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from autowasm.api.status import Condition, ConditionType, NotRunningPod
from autowasm.controller.pods.podmatching import Pod
from autowasm.controller.pods.runstate import RunFigures, RunReport, RunState
from autowasm.reasons import Reason

STEP: Final = 500
"""Pods in one step: about half a millisecond."""
_NAMED: Final = 3
"""Pods in a message."""
_ORDER: Final = (
    RunState.CONFIGURATION_REFUSED,
    RunState.CRASHING,
    RunState.FETCH_FAILED,
    RunState.NOT_ACCEPTED,
    RunState.STATS_UNREACHABLE,
    RunState.UNKNOWN,
    RunState.STARTING,
)
"""The first of these that a Pod has is the reason of the condition."""
_RANKS: Final = {state: number for number, state in enumerate(_ORDER)}
_FACTS: Final = frozenset(state for state in _ORDER if state.is_failure) | {RunState.NOT_ACCEPTED}
"""The module does not run. With the other states, it may run."""
UNREAD: Final = RunReport(RunState.STARTING, "has not been read since the change")


@dataclass(frozen=True, slots=True)
class RunningReport:
    """The report on one object."""

    running: int
    not_running: tuple[NotRunningPod, ...]
    """The first Pods that are not known to run the module."""
    condition: Condition
    """`Running`, without `lastTransitionTime`."""
    states: Mapping[str, int]
    """Pods by `RunState` value."""


def report(
    pods: Iterable[Pod],
    report_of: Callable[[bytes], RunReport | None],
    *,
    generation: int,
    names: int,
    is_settled: bool,
    what: str = "the module",
) -> Generator[None, None, RunningReport]:
    """Build the report, in steps.

    `pods`: matched Pods that have not ended; `report_of`: the latest report by the uid of the Pod; `names`: the maximum number of Pods
    to name; `is_settled`: no sidecar is read any more, so the message reports the requests; `what`: the filter that the Pods should run, for the
    message.
    """
    injected = running = matched = 0
    others: list[tuple[int, str, str, RunReport]] = []
    states: dict[str, int] = {}
    figures: list[RunFigures] = []
    for pod in pods:
        matched += 1
        if matched % STEP == 0:
            others = heapq.nsmallest(names, others, key=lambda one: one[:3])
            yield
        if not pod.injected:
            continue
        injected += 1
        found = report_of(pod.uid) or UNREAD
        states[found.state.value] = states.get(found.state.value, 0) + 1
        figures.append(found.figures)
        if found.state is RunState.RUNNING:
            running += 1
        else:
            others.append((_RANKS[found.state], pod.namespace, pod.name, found))
    worst = heapq.nsmallest(names, others, key=lambda one: one[:3])
    named = tuple(
        NotRunningPod(
            namespace=namespace, name=name, reason=found.state.value, message=found.message
        )
        for _, namespace, name, found in worst
    )
    status, reason = _verdict(injected, worst[0][3].state if worst else None)
    message = _sentence(matched, injected, running, named, what)
    if is_settled and injected:
        message += _requests(figures)
    condition = Condition(
        type=ConditionType.RUNNING.value,
        status=status,
        reason=reason,
        message=message,
        observed_generation=generation,
    )
    return RunningReport(running, named, condition, states)


def _verdict(injected: int, worst: RunState | None) -> tuple[str, str]:
    if not injected:
        return "Unknown", Reason.NO_PODS
    if worst is None:
        return "True", RunState.RUNNING.value
    return ("False" if worst in _FACTS else "Unknown"), worst.value


def _sentence(
    matched: int, injected: int, running: int, named: Sequence[NotRunningPod], what: str
) -> str:
    if not injected:
        return "no matched Pod has a sidecar" if matched else "the selector matches no Pod"
    text = f"{running} of {injected} sidecars are known to run {what}"
    if not named:
        return text
    listed = "; ".join(f"{one.namespace}/{one.name} {one.message}" for one in named[:_NAMED])
    rest = injected - running - min(_NAMED, len(named))
    more = f"; and {rest} more" if rest > 0 else ""
    return f"{text}: {listed}{more}"


def _requests(figures: Iterable[RunFigures]) -> str:
    """The outcome of requests in all sidecars that were read, since the first reading after the change, and before."""
    total = failed = earlier = earlier_failed = 0
    for one in figures:
        if one.requests is not None:
            total, failed = total + one.requests.total, failed + one.requests.failed
        if one.requests_before is not None:
            earlier += one.requests_before.total
            earlier_failed += one.requests_before.failed
    if not total:
        return "; no request was counted since"
    text = f"; since then {failed} of {total} requests got a 5xx response ({failed / total:.2%})"
    return text + (f", before {earlier_failed / earlier:.2%}" if earlier else "")
