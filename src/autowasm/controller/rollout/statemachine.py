"""The state machine of a staged rollout (ADR 39): `advance(state, observation, spec, now) -> (state, actions)`. Pure.

`EVENTS` gives each event its guard (`guards.py`), and the first guard that holds determines the event; for each phase, `TABLE` gives the
next phase and the effect (`effects.py`). The state is `status.rollout`: only that survives a crash. Invariants: one call makes one
transition; a step begins only after the previous one has passed; a Pod is added only within the step's size; an aborted rollout starts
again only on request; only watched time counts, so setting a clock neither passes nor ends a step.
"""

import enum
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
from msgspec import UNSET

from autowasm.api.status import RolloutPhase, RolloutStatus
from autowasm.api.v1alpha1 import Rollout
from autowasm.controller.pods.loadreport import epoch
from autowasm.controller.rollout import effects, guards
from autowasm.controller.rollout.effects import Action, Result
from autowasm.controller.rollout.guards import Facts, State, is_same
from autowasm.controller.rollout.judgement import RolloutReason
from autowasm.controller.rollout.observation import Observation

MAX_GAP: Final = 60.0
"""Seconds, the maximum that counts between two observations. Between two leaders, it is the difference of two clocks, which may disagree."""
REPORT: Final = 15.0
"""Seconds after which times and figures are written again while a rollout progresses."""


class Event(enum.Enum):
    """The meaning of an observation for the machine; the docstring of its guard explains it."""

    PODS_UNKNOWN = enum.auto()
    TARGET_IN_PLACE = enum.auto()
    TARGET_ABORTED = enum.auto()
    NEW_TARGET = enum.auto()
    ABORT = enum.auto()
    PROMOTE = enum.auto()
    PAUSE = enum.auto()
    RESUME = enum.auto()
    RETRY = enum.auto()
    OTHER_COMMAND = enum.auto()
    STABLE_LOST = enum.auto()
    POD_FAILED = enum.auto()
    MEMBERS_CHANGED = enum.auto()
    OVERDUE = enum.auto()
    NOT_HEALTHY = enum.auto()
    TARGET_PENDING = enum.auto()
    HEALTHY = enum.auto()
    LAST_STEP_PASSED = enum.auto()
    STEP_PASSED = enum.auto()


EVENTS: Final[tuple[tuple[Event, Callable[[Facts], bool]], ...]] = (
    (Event.PODS_UNKNOWN, guards.pods_are_unknown),
    # The user's events: a new target before a command, because the command may be meant for it.
    (Event.TARGET_IN_PLACE, guards.target_is_in_place),
    (Event.TARGET_ABORTED, guards.target_was_aborted),
    (Event.NEW_TARGET, guards.target_is_new),
    (Event.ABORT, guards.commanded("abort")),
    (Event.PROMOTE, guards.promotion_is_wanted),
    (Event.PAUSE, guards.pause_is_wanted),
    (Event.RESUME, guards.commanded("resume")),
    (Event.RETRY, guards.retry_is_wanted),
    (Event.OTHER_COMMAND, guards.has_another_command),
    # Without the stable variant, nothing can be reverted.
    (Event.STABLE_LOST, guards.stable_is_lost),
    # The Pods' events: failures first.
    (Event.POD_FAILED, guards.pod_has_failed),
    (Event.MEMBERS_CHANGED, guards.members_have_changed),
    (Event.OVERDUE, guards.is_overdue),
    (Event.NOT_HEALTHY, guards.is_not_healthy),
    (Event.TARGET_PENDING, guards.target_is_pending),
    (Event.HEALTHY, guards.is_healthy),
    (Event.LAST_STEP_PASSED, guards.last_step_has_passed),
    (Event.STEP_PASSED, guards.step_has_passed),
)
"""In the order of evaluation. None: nothing happens."""


class Transition(NamedTuple):
    """The next phase, and the function that creates the next state."""

    phase: RolloutPhase
    effect: Callable[[Facts], Result]


_PROGRESSING, _PAUSED = RolloutPhase.PROGRESSING, RolloutPhase.PAUSED
_SUCCEEDED, _ABORTED = RolloutPhase.SUCCEEDED, RolloutPhase.ABORTED

_BEGIN = Transition(_PROGRESSING, effects.begin)
_ENTER = Transition(_PROGRESSING, effects.pass_step)
_CHOOSE = Transition(_PROGRESSING, effects.change_members)
_WAIT = Transition(_PROGRESSING, effects.wait)
_NOTE = Transition(_PROGRESSING, effects.note_health)
_RESUME = Transition(_PROGRESSING, effects.resume)
_PAUSE = Transition(_PAUSED, effects.pause)
_HOLD = Transition(_PAUSED, effects.lose_stable)
_LOOK = Transition(_PAUSED, effects.look_only)
_ADOPT = Transition(_SUCCEEDED, effects.adopt)
_PROMOTE = Transition(_SUCCEEDED, effects.promote)
_FINISH = Transition(_SUCCEEDED, effects.finish)
_ABORT = Transition(_ABORTED, effects.abort)
_FAIL = Transition(_ABORTED, effects.fail)
_EXCEED = Transition(_ABORTED, effects.exceed)
_REFUSE = Transition(_ABORTED, effects.refuse_aborted)
_STAY_PROGRESSING = Transition(_PROGRESSING, effects.ignore_command)
_STAY_PAUSED = Transition(_PAUSED, effects.ignore_command)
_STAY_SUCCEEDED = Transition(_SUCCEEDED, effects.ignore_command)
_STAY_ABORTED = Transition(_ABORTED, effects.ignore_command)
_NO = None
_IN_PROGRESS: Final = frozenset({_PROGRESSING, _PAUSED})

PHASES: Final = (None, _PROGRESSING, _PAUSED, _SUCCEEDED, _ABORTED)
TABLE: Final[dict[Event, tuple[Transition | None, ...]]] = {
    # in phase:              no rollout  Progressing        Paused         Succeeded        Aborted
    Event.PODS_UNKNOWN:     (_NO,        _NO,               _NO,           _NO,             _NO),
    Event.TARGET_IN_PLACE:  (_ADOPT,     _ADOPT,            _ADOPT,        _ADOPT,          _ADOPT),
    Event.TARGET_ABORTED:   (_NO,        _REFUSE,           _REFUSE,       _REFUSE,         _REFUSE),
    Event.NEW_TARGET:       (_BEGIN,     _BEGIN,            _BEGIN,        _BEGIN,          _BEGIN),
    Event.ABORT:            (_NO,        _ABORT,            _ABORT,        _STAY_SUCCEEDED, _STAY_ABORTED),
    Event.PROMOTE:          (_NO,        _PROMOTE,          _PROMOTE,      _STAY_SUCCEEDED, _PROMOTE),
    Event.PAUSE:            (_NO,        _PAUSE,            _STAY_PAUSED,  _NO,             _NO),
    Event.RESUME:           (_NO,        _STAY_PROGRESSING, _RESUME,       _STAY_SUCCEEDED, _STAY_ABORTED),
    Event.RETRY:            (_NO,        _STAY_PROGRESSING, _STAY_PAUSED,  _STAY_SUCCEEDED, _BEGIN),
    Event.OTHER_COMMAND:    (_NO,        _STAY_PROGRESSING, _STAY_PAUSED,  _STAY_SUCCEEDED, _STAY_ABORTED),
    Event.STABLE_LOST:      (_HOLD,      _HOLD,             _HOLD,         _HOLD,           _HOLD),
    Event.POD_FAILED:       (_NO,        _FAIL,             _FAIL,         _NO,             _NO),
    Event.MEMBERS_CHANGED:  (_NO,        _CHOOSE,           _NO,           _NO,             _NO),
    Event.OVERDUE:          (_NO,        _EXCEED,           _NO,           _NO,             _NO),
    Event.NOT_HEALTHY:      (_NO,        _WAIT,             _LOOK,         _NO,             _NO),
    Event.TARGET_PENDING:   (_NO,        _NOTE,             _LOOK,         _NO,             _NO),
    Event.HEALTHY:          (_NO,        _NOTE,             _LOOK,         _NO,             _NO),
    Event.LAST_STEP_PASSED: (_NO,        _FINISH,           _NO,           _NO,             _NO),
    Event.STEP_PASSED:      (_NO,        _ENTER,            _NO,           _NO,             _NO),
}  # fmt: skip
"""Each row has one transition for each of `PHASES`. None keeps the state."""


def advance(
    state: State, observation: Observation, spec: Rollout, now: float
) -> tuple[State, tuple[Action, ...]]:
    """The next state and the actions. `now`: wall-clock time, seconds since the epoch; it may jump.

    The caller first writes the state into the status if `is_worth_writing`, and then writes the EnvoyFilter of `placement`. A
    state that does not fit the spec (any client may write a status) counts as none.
    """
    state = _fitting(state, observation, spec)
    gap = 0.0
    if state is not None and state.phase in _IN_PROGRESS:
        since = now - epoch(state.time) if observation.elapsed is None else observation.elapsed
        gap = round(min(max(since, 0.0), MAX_GAP), 3)
        placed = state.placed_seconds + gap if observation.is_published else 0.0
        state = msgspec.structs.replace(
            state, time=effects.stamp(now), placed_seconds=round(placed, 3)
        )
    look = Facts(state, observation, spec, now, gap)
    transition = transition_of(look)
    if transition is None:
        return state, ()
    new, actions = transition.effect(look)
    return msgspec.structs.replace(new, time=effects.stamp(now)), actions


def transition_of(look: Facts) -> Transition | None:
    """The transition of the first event that holds; None: no event holds."""
    event = event_of(look)
    phase = look.state.phase if look.state is not None else None
    return TABLE[event][PHASES.index(phase)] if event is not None else None


def event_of(look: Facts) -> Event | None:
    """The first event whose guard holds."""
    return next((event for event, holds in EVENTS if holds(look)), None)


def _fitting(state: State, observation: Observation, spec: Rollout) -> State:
    """None if the state cannot belong to this spec. While the module of a new spec is fetched, the state belongs to the previous spec."""
    if state is None or observation.target is None or not is_same(state.target, observation.target):
        return state
    in_progress = state.phase in _IN_PROGRESS
    is_lost = state.reason == RolloutReason.STABLE_LOST.value
    fits = state.steps == len(spec.steps) + 1 and 1 <= state.step <= state.steps
    return state if fits or is_lost or not in_progress else None


def is_worth_writing(stored: State, state: State) -> bool:
    """Whether the state must be in the status before the EnvoyFilter changes, or the figures in the status are old."""
    if stored is None or state is None:
        return stored is not state
    if _lasting(stored) != _lasting(state):
        return True
    is_old = abs(epoch(state.time) - epoch(stored.time)) >= REPORT
    return is_old and state.phase is _PROGRESSING


def _lasting(state: RolloutStatus) -> RolloutStatus:
    """The state without the fields that change at each observation."""
    return msgspec.structs.replace(
        state,
        time="",
        placed_seconds=0.0,
        healthy_seconds=0.0,
        waited_seconds=0.0,
        message="",
        verdict=UNSET,
    )
