"""Facts: one observation of a staged rollout, and the guards of the state machine, which test it. Pure.

Invariant: a guard changes nothing, and its result does not depend on earlier guards; their order is in `statemachine.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from msgspec import UNSET

from autowasm.api import rolloutsteps
from autowasm.api.status import RolloutPhase, RolloutStatus, RolloutVariant
from autowasm.api.v1alpha1 import Rollout
from autowasm.controller.rollout.judgement import Finding, Judgement, RolloutReason, judge
from autowasm.controller.rollout.observation import Command, Observation
from autowasm.controller.rollout.selection import Candidate, Choice, choose
from autowasm.units import parse_duration

State = RolloutStatus | None
"""None: there was no rollout yet."""
_IN_PROGRESS: Final = frozenset({RolloutPhase.PROGRESSING, RolloutPhase.PAUSED})


@dataclass(frozen=True)
class Facts:
    """One call of `advance`, and the values that guards and effects derive from it."""

    state: State
    observation: Observation
    spec: Rollout
    now: float
    """Wall-clock time, seconds since the epoch."""
    gap: float
    """Seconds since the last observation that count as watched."""

    @property
    def current(self) -> RolloutStatus:
        """The state, for guards and effects that need one."""
        if self.state is None:
            raise AssertionError("unreachable: the table asks only where there is a rollout")
        return self.state

    @property
    def target(self) -> RolloutVariant:
        """The spec's target, for effects that need one."""
        if self.observation.target is None:
            raise AssertionError("unreachable: the guard asks for it")
        return self.observation.target

    @property
    def fault(self) -> Finding:
        """The fault of the judgement, for effects that need one."""
        if self.judgement.fault is None:
            raise AssertionError("unreachable: the guard asks for it")
        return self.judgement.fault

    @property
    def wait(self) -> Finding:
        """The reason why the step waits, for effects that need it."""
        if self.judgement.wait is None:
            raise AssertionError("unreachable: the guard asks for it")
        return self.judgement.wait

    @cached_property
    def candidates(self) -> list[Candidate]:
        """The Pods that can be chosen."""
        return [one.candidate for one in self.observation.pods or ()]

    @cached_property
    def judgement(self) -> Judgement:
        """The judgement of the current step."""
        return judge(self.current, self.observation, self.spec)

    @cached_property
    def choice(self) -> Choice:
        """The current step with the Pods that exist now. It grows up to its initial size, or its current size if that is smaller."""
        state = self.current
        now = rolloutsteps.size(self.spec.steps[state.step - 1], len(self.candidates))
        return choose(
            self.candidates,
            choice_of(state),
            size=min(state.size, now),
            capacity=self.observation.capacity,
        )

    @cached_property
    def command(self) -> Command | None:
        """The rollout annotation, if its value is new."""
        text = self.observation.command
        if self.state is None or not text or text == self.state.command:
            return None
        command = Command.parse(text) or Command("")
        is_for_this = command.generation in {None, self.state.target.generation}
        return command if is_for_this else Command("")

    @cached_property
    def stable(self) -> RolloutVariant | None:
        """The variant of Pods that the next rollout does not choose; None: no filter."""
        state, base = self.state, self.observation.base
        if state is None or state.reason == RolloutReason.STABLE_LOST.value:
            return base
        before = state.target if state.phase is RolloutPhase.SUCCEEDED else state.stable
        if before is UNSET:
            return None
        return before if before.digest in self.observation.found else base

    @property
    def is_in_progress(self) -> bool:
        """Whether some Pods may have the target while others do not."""
        return self.state is not None and self.state.phase in _IN_PROGRESS

    @property
    def is_progressing(self) -> bool:
        """Whether the rollout is in progress and not paused."""
        return self.state is not None and self.state.phase is RolloutPhase.PROGRESSING

    @property
    def healthy_seconds(self) -> float:
        """How long the step has been healthy, if it is healthy now. The time before the first healthy observation does not count."""
        state = self.current
        return state.healthy_seconds + self.gap if state.healthy_since else 0.0


def choice_of(state: RolloutStatus) -> Choice:
    """The Pods of the current step."""
    return Choice(state.pods, state.groups, state.by)


def is_same(one: RolloutVariant, other: RolloutVariant) -> bool:
    """Whether both have the same digest and generation."""
    return (one.digest, one.generation) == (other.digest, other.generation)


def pods_are_unknown(facts: Facts) -> bool:
    """The Pods are not listed yet."""
    return facts.observation.pods is None


def _is_new(facts: Facts) -> bool:
    target, state = facts.observation.target, facts.state
    return target is not None and (state is None or not is_same(state.target, target))


def _is_readable(facts: Facts) -> bool:
    return facts.stable is not None or facts.observation.is_readable


def target_is_in_place(facts: Facts) -> bool:
    """Another target, which is the stable variant: an edit was reverted, or does not change the filter."""
    target, stable = facts.observation.target, facts.stable
    is_stable = target is not None and stable is not None and target.digest == stable.digest
    return _is_new(facts) and is_stable


def target_was_aborted(facts: Facts) -> bool:
    """Another target, which was aborted for this generation: a tag that moved away and back."""
    target, state = facts.observation.target, facts.state
    if target is None or state is None or not (_is_new(facts) and _is_readable(facts)):
        return False
    return any(is_same(one, target) for one in state.aborted)


def target_is_new(facts: Facts) -> bool:
    """Another target: the first one, an edit of the spec, or a tag that moved."""
    return _is_new(facts) and _is_readable(facts)


def commanded(verb: str) -> Callable[[Facts], bool]:
    """The rollout annotation has a new value with this verb."""
    return lambda facts: facts.command is not None and facts.command.verb == verb


def retry_is_wanted(facts: Facts) -> bool:
    """The command `retry`; or a new value of the refresh annotation after an abort."""
    state, observation = facts.state, facts.observation
    if state is None or observation.target is None:
        return False
    is_refreshed = observation.refresh not in {"", state.refresh}
    is_aborted = state.phase is RolloutPhase.ABORTED
    return commanded("retry")(facts) or (is_refreshed and is_aborted)


def promotion_is_wanted(facts: Facts) -> bool:
    """The command `promote`. It waits until the module of the spec's target is stored."""
    return facts.observation.target is not None and commanded("promote")(facts)


def pause_is_wanted(facts: Facts) -> bool:
    """The command `pause`. Without a rollout in progress, it waits for the next one."""
    return facts.is_in_progress and commanded("pause")(facts)


def has_another_command(facts: Facts) -> bool:
    """A command that is unknown or for another generation. Some commands wait: for the module, or for a rollout in progress."""
    return facts.command is not None and facts.command.verb not in {"pause", "promote", "retry"}


def stable_is_lost(facts: Facts) -> bool:
    """The stable variant is lost: another client changed the EnvoyFilter, and no leader remembers the variant."""
    state, observation = facts.state, facts.observation
    if _is_new(facts) and not _is_readable(facts):
        return True
    if state is None or state.phase is RolloutPhase.SUCCEEDED or state.stable is UNSET:
        return False
    return state.stable.digest not in observation.found


def pod_has_failed(facts: Facts) -> bool:
    """A Pod of the step fails with the target, or fails more requests than the stable Pods do."""
    return facts.is_in_progress and facts.judgement.fault is not None


def members_have_changed(facts: Facts) -> bool:
    """A Pod of the step is gone, or another Pod can fill a free place."""
    if not facts.is_progressing or facts.observation.target is None:
        return False
    state = facts.current
    return state.step < state.steps and facts.choice != choice_of(state)


def is_overdue(facts: Facts) -> bool:
    """In total, the step was not healthy for `deadline`."""
    if not facts.is_progressing or not is_not_healthy(facts):
        return False
    return facts.current.waited_seconds + facts.gap >= parse_duration(facts.spec.deadline)


def is_not_healthy(facts: Facts) -> bool:
    """A Pod of the step is not proven to run the target."""
    return facts.is_in_progress and facts.judgement.wait is not None


def target_is_pending(facts: Facts) -> bool:
    """The step is healthy, but the spec has another target, whose module is not stored yet."""
    return facts.is_in_progress and facts.observation.target is None


def is_healthy(facts: Facts) -> bool:
    """The step is healthy, but not yet for `pause`."""
    return facts.is_in_progress and not _was_healthy_for_pause(facts)


def _was_healthy_for_pause(facts: Facts) -> bool:
    """A new leader counts the requests of the Pods from 0, so it watches them for the whole pause. Each Pod was read after the pause."""
    beyond = min(facts.healthy_seconds, facts.observation.watched) - parse_duration(
        facts.spec.pause
    )
    return facts.is_progressing and beyond >= 0 and facts.judgement.oldest <= beyond


def last_step_has_passed(facts: Facts) -> bool:
    """The last step, or a step that has all Pods, was healthy for `pause`."""
    if not facts.is_progressing or not _was_healthy_for_pause(facts):
        return False
    state = facts.current
    has_all = len(choice_of(state).members(facts.candidates)) == len(facts.candidates)
    return state.step == state.steps or has_all


def step_has_passed(facts: Facts) -> bool:
    """The step was healthy for `pause`, and there are Pods without the target."""
    return facts.is_progressing and _was_healthy_for_pause(facts)
