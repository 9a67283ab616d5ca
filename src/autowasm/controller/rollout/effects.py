"""The effects of the state machine's transitions: the next state, and the actions besides writing it. Pure.

Invariants: a step that begins or changes its Pods has no watched time; a message is short enough for the status. `statemachine.py`
assigns the effects to events.
"""

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
from msgspec import UNSET

from autowasm.api import rolloutsteps
from autowasm.api.status import (
    MAX_ABORTED,
    MAX_MESSAGE,
    RolloutPhase,
    RolloutStatus,
    RolloutVariant,
    RolloutVerdict,
    StepUnit,
)
from autowasm.controller.rollout.guards import Facts, choice_of, is_same
from autowasm.controller.rollout.judgement import Finding, RolloutReason
from autowasm.controller.rollout.observation import Command
from autowasm.controller.rollout.selection import Choice, choose
from autowasm.units import format_duration, parse_duration

LOOK: Final = 2.0
"""Seconds between two observations of a step."""
SLOW_LOOK: Final = 15.0
"""The same for a paused rollout."""


@dataclass(frozen=True, slots=True)
class RecordEvent:
    """Record an Event after the status is written."""

    kind: Literal["Normal", "Warning"]
    name: str
    message: str


@dataclass(frozen=True, slots=True)
class BeginCounts:
    """Count requests from now on: a step has begun."""


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Call `advance` again after this many seconds at the latest."""

    seconds: float


Action = RecordEvent | BeginCounts | LookAgain
Result = tuple[RolloutStatus, tuple[Action, ...]]


def stamp(seconds: float) -> str:
    """RFC 3339 with milliseconds."""
    return (
        datetime.fromtimestamp(seconds, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def begin(facts: Facts) -> Result:
    """The first step of a rollout of the spec's target, from the stable variant."""
    new = RolloutStatus(
        phase=RolloutPhase.PROGRESSING,
        target=facts.target,
        stable=facts.stable or UNSET,
        aborted=_aborted_before(facts),
        steps=len(facts.spec.steps) + 1,
        command=_handled_at_begin(facts),
        refresh=facts.observation.refresh,
    )
    return pass_step(dataclasses.replace(facts, state=new))


def _aborted_before(facts: Facts) -> tuple[RolloutVariant, ...]:
    """The targets that were aborted for this generation."""
    aborted = facts.state.aborted if facts.state is not None else ()
    return tuple(one for one in aborted if one.generation == facts.target.generation)


def _handled_at_begin(facts: Facts) -> str:
    """The value of the annotation that counts as handled when a rollout begins.

    A command that comes with an edit is for the new rollout. A paused rollout stays paused, in its first step. A command that is
    older than the first rollout counts only if it gives no Pod a new filter.
    """
    text, state = facts.observation.command, facts.state
    command = Command.parse(text)
    verb = command.verb if command is not None else ""
    if state is None:
        return "" if verb in {"pause", "abort"} else text
    if facts.command is not None and verb == "retry":
        return text
    return "" if state.phase is RolloutPhase.PAUSED and verb == "pause" else state.command


def pass_step(facts: Facts) -> Result:
    """The next step that may have more Pods than the current one; if there is none, the last step."""
    state, candidates = facts.current, facts.candidates
    choice = choice_of(state)
    members = len(choice.members(candidates))
    for number, step in enumerate(facts.spec.steps[state.step :], start=state.step + 1):
        size = rolloutsteps.size(step, len(candidates))
        if size > members:
            chosen = choose(candidates, choice, size=size, capacity=facts.observation.capacity)
            return _entered(facts, step=number, size=size, choice=chosen)
    return _entered(facts, step=state.steps, size=0, choice=None)


def _entered(facts: Facts, *, step: int, size: int, choice: Choice | None) -> Result:
    """`choice` None: all Pods, so no names."""
    state, total = facts.current, len(facts.candidates)
    members = len(choice.members(facts.candidates)) if choice is not None else total
    message = f"step {step} of {state.steps}: {members} of {total} Pods have the new filter"
    if choice is not None and choice.groups:
        message += f"; it names {choice.by.value.lower()}s, because one EnvoyFilter cannot hold that many Pod names"
    elif choice is not None and len(choice.pods) >= facts.observation.capacity < size:
        message += f" instead of {size}, because one EnvoyFilter cannot hold more names"
    choice = choice or Choice()
    new = msgspec.structs.replace(
        _without_step(state),
        step=step,
        size=size,
        pods=choice.pods,
        groups=choice.groups,
        by=choice.by,
        started=stamp(facts.now),
        reason=RolloutReason.NOT_PUBLISHED.value,
        message=message,
        verdict=UNSET,
    )
    name = "RolloutStarted" if state.step == 0 else "RolloutStep"
    return new, (RecordEvent("Normal", name, message), BeginCounts(), LookAgain(LOOK))


def change_members(facts: Facts) -> Result:
    """The same step with other Pods: they have to be proven, too."""
    choice = facts.choice
    new = msgspec.structs.replace(
        _waited(facts),
        pods=choice.pods,
        groups=choice.groups,
        by=choice.by,
        placed_seconds=0.0,
        reason=RolloutReason.NOT_PUBLISHED.value,
        message="the Pods of the step have changed",
    )
    return new, (LookAgain(LOOK),)


def wait(facts: Facts) -> Result:
    """The step is not healthy."""
    return _with_finding(_waited(facts), facts.wait), (LookAgain(LOOK),)


def _waited(facts: Facts) -> RolloutStatus:
    """The state after a period in which the step was not healthy."""
    state = facts.current
    return msgspec.structs.replace(
        state,
        healthy_since="",
        healthy_seconds=0.0,
        waited_seconds=round(state.waited_seconds + facts.gap, 3),
        verdict=facts.judgement.verdict,
    )


def note_health(facts: Facts) -> Result:
    """The step is healthy, and is still watched."""
    state = facts.current
    reason = RolloutReason.PAUSE
    message = f"step {state.step} of {state.steps} is healthy, and must stay so for {_text(facts.spec.pause)}"
    if facts.judgement.verdict.is_by_time:
        message += "; for Pods with too few requests or without statistics, only the time counts"
    if facts.observation.target is None:
        reason = RolloutReason.MODULE_PENDING
        message = "the module of the edited spec is not stored yet"
    new = msgspec.structs.replace(
        state,
        healthy_since=state.healthy_since or stamp(facts.now),
        healthy_seconds=round(facts.healthy_seconds, 3),
        verdict=facts.judgement.verdict,
        reason=reason.value,
        message=message,
    )
    return new, (LookAgain(LOOK),)


def look_only(facts: Facts) -> Result:
    """A paused rollout is watched, but its timer is stopped."""
    new = msgspec.structs.replace(facts.current, verdict=facts.judgement.verdict)
    return new, (LookAgain(SLOW_LOOK),)


def pause(facts: Facts) -> Result:
    """The Pods keep their filters until `resume`."""
    state = facts.current
    message = f"paused in step {state.step} of {state.steps}"
    new = msgspec.structs.replace(
        _paused(_handled(facts)), reason=RolloutReason.PAUSED_BY_COMMAND.value, message=message
    )
    return new, (RecordEvent("Normal", "RolloutPaused", message), LookAgain(SLOW_LOOK))


def _paused(state: RolloutStatus) -> RolloutStatus:
    """The step has to be healthy for the whole `pause` after it is resumed: what its Pods do meanwhile does not count."""
    return msgspec.structs.replace(
        state, phase=RolloutPhase.PAUSED, healthy_since="", healthy_seconds=0.0
    )


def resume(facts: Facts) -> Result:
    """The step continues, with a new deadline."""
    state = facts.current
    message = f"resumed in step {state.step} of {state.steps}"
    new = msgspec.structs.replace(
        _handled(facts),
        phase=RolloutPhase.PROGRESSING,
        waited_seconds=0.0,
        reason="",
        message=message,
    )
    return new, (RecordEvent("Normal", "RolloutResumed", message), LookAgain(0.0))


def lose_stable(facts: Facts) -> Result:
    """Nothing is written until a person decides: without the stable variant, no Pod can go back."""
    message = (
        "the EnvoyFilter no longer has the previous filter, so it cannot be restored: change the spec, or set the "
        "annotation wasm.tcm.io/rollout to promote"
    )
    state = facts.state
    if state is None:
        state = RolloutStatus(
            phase=RolloutPhase.PAUSED,
            target=facts.target,
            steps=len(facts.spec.steps) + 1,
            command=_handled_at_begin(facts),
            refresh=facts.observation.refresh,
        )
    elif state.reason == RolloutReason.STABLE_LOST.value:
        return state, (LookAgain(SLOW_LOOK),)
    finding = Finding(RolloutReason.STABLE_LOST, message)
    new = _with_finding(_paused(state), finding)
    return new, (RecordEvent("Warning", "RolloutPaused", message), LookAgain(SLOW_LOOK))


def adopt(facts: Facts) -> Result:
    """The target is the stable variant: there is nothing to roll out, or the rollout is reverted."""
    state = facts.state
    if state is not None and state.phase is RolloutPhase.SUCCEEDED:
        return msgspec.structs.replace(state, target=facts.target), ()
    new = RolloutStatus(
        phase=RolloutPhase.SUCCEEDED,
        target=facts.target,
        aborted=_aborted_before(facts),
        command=_handled_at_begin(facts),
        refresh=facts.observation.refresh,
        message="all Pods already have the filter of the spec",
    )
    return new, (
        RecordEvent("Normal", "RolloutSucceeded", new.message),
    ) if state is not None else ()


def promote(facts: Facts) -> Result:
    """All Pods get the target at once: the user takes responsibility for the judgement."""
    return _succeeded(msgspec.structs.replace(_handled(facts), target=facts.target))


def finish(facts: Facts) -> Result:
    """All Pods have proven the target."""
    return _succeeded(msgspec.structs.replace(facts.current, verdict=facts.judgement.verdict))


def _succeeded(state: RolloutStatus) -> Result:
    aborted = tuple(one for one in state.aborted if not is_same(one, state.target))
    message = f"all Pods have the new filter ({state.target.digest})"
    new = msgspec.structs.replace(
        _without_step(state),
        phase=RolloutPhase.SUCCEEDED,
        stable=UNSET,
        aborted=aborted,
        step=state.steps,
        reason="",
        message=message,
    )
    return new, (RecordEvent("Normal", "RolloutSucceeded", message),)


def fail(facts: Facts) -> Result:
    """A Pod fails with the target."""
    return _aborted(facts, facts.current, facts.fault)


def exceed(facts: Facts) -> Result:
    """The step was not healthy in time."""
    message = f"not healthy for {_text(facts.spec.deadline)}: {facts.wait.message}"
    finding = Finding(RolloutReason.DEADLINE_EXCEEDED, message, facts.wait.pod)
    return _aborted(facts, facts.current, finding)


def abort(facts: Facts) -> Result:
    """The command `abort`."""
    finding = Finding(RolloutReason.ABORTED_BY_COMMAND, "aborted by command")
    return _aborted(facts, _handled(facts), finding)


def refuse_aborted(facts: Facts) -> Result:
    """A tag moved back to a module whose rollout was aborted: it is not tried again."""
    message = "this filter was aborted before, for the same generation of the spec"
    state = msgspec.structs.replace(
        facts.current, target=facts.target, stable=facts.stable or UNSET
    )
    finding = Finding(RolloutReason.ABORTED_BEFORE, message)
    return _aborted(facts, state, finding)


def _aborted(facts: Facts, state: RolloutStatus, finding: Finding) -> Result:
    has_stable = state.stable is not UNSET
    others = [one for one in state.aborted if not is_same(one, state.target)]
    back = "all Pods have the previous filter" if has_stable else "no Pod has the filter"
    verdict = facts.judgement.verdict if facts.is_in_progress else RolloutVerdict()
    new = msgspec.structs.replace(
        _without_step(state),
        phase=RolloutPhase.ABORTED,
        aborted=(msgspec.structs.replace(state.target, module=UNSET), *others)[:MAX_ABORTED],
        refresh=facts.observation.refresh,
        verdict=msgspec.structs.replace(verdict, pod=finding.pod),
        reason=finding.reason.value,
        message=_cut(f"step {state.step} of {state.steps}: {finding.message}; {back}"),
    )
    return new, (RecordEvent("Warning", "RolloutFailed", new.message),)


def ignore_command(facts: Facts) -> Result:
    """A command that has no meaning in this phase. It hides no Pod that is not healthy: the pause begins again."""
    new = _handled(facts)
    if facts.is_progressing and not facts.judgement.is_healthy:
        new = msgspec.structs.replace(_waited(facts), command=new.command)
    return new, (LookAgain(0.0),)


def _handled(facts: Facts) -> RolloutStatus:
    return msgspec.structs.replace(facts.current, command=facts.observation.command)


def _without_step(state: RolloutStatus) -> RolloutStatus:
    """The state without the Pods, times and durations of a step."""
    return msgspec.structs.replace(
        state,
        size=0,
        by=StepUnit.POD,
        pods=(),
        groups=(),
        healthy_since="",
        placed_seconds=0.0,
        healthy_seconds=0.0,
        waited_seconds=0.0,
    )


def _with_finding(state: RolloutStatus, finding: Finding) -> RolloutStatus:
    return msgspec.structs.replace(
        state, reason=finding.reason.value, message=_cut(finding.message)
    )


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def _text(duration: str) -> str:
    return format_duration(parse_duration(duration))
