"""RolloutView: the staged rollout of an AutoWasm, whether the rollout of its spec is done, and the commands for it. Pure.

A command is a value of the rollout annotation. Invariants: a status that is older than the spec never counts as done or failed, so a
command after `kubectl apply` does not report the previous rollout; a value is for the generation that is being rolled out, so a
simultaneous edit does not get a command that was meant for the previous spec; two values are never equal, so the same command can be
given again.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import UNSET

from autowasm.api import status as statuses
from autowasm.api.status import RolloutPhase, RolloutStatus, Status
from autowasm.api.v1alpha1 import ROLLOUT_ANNOTATION, Rollout
from autowasm.api.validation import parse
from autowasm.controller.rollout.judgement import RolloutReason
from autowasm.errors import AutoWasmError, SpecError, UsageError
from autowasm.kube.resources import ObjectKey
from autowasm.reasons import Reason

_PROGRESSING, _PAUSED = RolloutPhase.PROGRESSING, RolloutPhase.PAUSED
_SUCCEEDED, _ABORTED = RolloutPhase.SUCCEEDED, RolloutPhase.ABORTED
_ALLOWED: Final = {
    "pause": {_PROGRESSING},
    "resume": {_PAUSED},
    "promote": {_PROGRESSING, _PAUSED, _ABORTED},
    "abort": {_PROGRESSING, _PAUSED},
    "retry": {_ABORTED},
}
"""The phases in which a command changes something (`controller/rollout/statemachine.py`)."""
_RESULTS: Final = {
    "pause": {_PAUSED},
    "resume": {_PROGRESSING, _SUCCEEDED},
    "promote": {_SUCCEEDED},
    "abort": {_ABORTED},
    "retry": {_PROGRESSING, _SUCCEEDED},
}
"""The phases of a rollout in which a command was carried out, maybe some steps ago."""
_FOR_THE_SPEC: Final = frozenset({"promote", "retry"})
"""Commands that need the module of the spec."""
_NOTHING: Final = (
    "a change of the spec starts the next one (with the annotation wasm.tcm.io/rollout: pause, it "
    "waits in its first step)"
)


class Outcome(enum.Enum):
    """The progress of the rollout of the spec."""

    IN_PROGRESS = enum.auto()
    SUCCEEDED = enum.auto()
    ABORTED = enum.auto()


_OUTCOMES = {
    RolloutPhase.PROGRESSING: Outcome.IN_PROGRESS,
    RolloutPhase.PAUSED: Outcome.IN_PROGRESS,
    RolloutPhase.SUCCEEDED: Outcome.SUCCEEDED,
    RolloutPhase.ABORTED: Outcome.ABORTED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutView:
    """One version of the object."""

    key: ObjectKey
    generation: int
    """Of the spec."""
    status: Status
    spec: Rollout | None
    """None: absent (wasmer's operator may have set a default), or the spec is invalid."""
    command: str
    """The rollout annotation."""

    @property
    def rollout(self) -> RolloutStatus | None:
        """`status.rollout`."""
        return self.status.rollout if self.status.rollout is not UNSET else None

    @property
    def is_current(self) -> bool:
        """Whether `status.rollout` belongs to this generation of the spec."""
        rollout = self.rollout
        return rollout is not None and rollout.target.generation == self.generation

    @property
    def outcome(self) -> Outcome:
        """The outcome for the spec's generation."""
        rollout = self.rollout
        if rollout is None or not self.is_current:
            return Outcome.IN_PROGRESS
        return _OUTCOMES[rollout.phase]

    @property
    def pods(self) -> int | None:
        """Pods with a sidecar that the selector matches; None if the status does not have the number."""
        return self.status.pods.injected if self.status.pods is not UNSET else None


def view_of(key: ObjectKey, document: Mapping[str, Any]) -> RolloutView:
    """Read an object of the API server. Raises UsageError if it has no staged rollout."""
    metadata = document.get("metadata") or {}
    view = RolloutView(
        key=key,
        generation=metadata.get("generation") or 0,
        status=statuses.read(document.get("status")),
        spec=_spec(document),
        command=(metadata.get("annotations") or {}).get(ROLLOUT_ANNOTATION) or "",
    )
    if view.rollout is None and (document.get("spec") or {}).get("rollout") is None:
        raise UsageError(
            f"AutoWasm {key} has no spec.rollout: a changed filter reaches all Pods at once. With spec.rollout ({{}} for the defaults) it "
            "reaches them in steps"
        )
    return view


def _spec(document: Mapping[str, Any]) -> Rollout | None:
    try:
        return parse(document).spec.rollout
    except SpecError:
        return None


def check_command(verb: str, view: RolloutView) -> RolloutStatus:
    """The rollout, if the command changes something now. Raises AutoWasmError."""
    rollout = view.rollout
    if rollout is None:
        raise _refused(
            f"AutoWasm {view.key}: the rollout has not begun ({view.status.phase.value}: {view.status.message})"
        )
    is_lost = rollout.reason == RolloutReason.STABLE_LOST.value
    if is_lost and verb not in {"promote", "abort"}:
        raise _refused(f"AutoWasm {view.key}: {verb} cannot help: {rollout.message}")
    if verb in _FOR_THE_SPEC and not view.is_current and not is_lost:
        raise _refused(
            f"AutoWasm {view.key}: the rollout is of generation {rollout.target.generation}, the spec has generation {view.generation}, whose "
            f"rollout has not begun ({view.status.phase.value}: {view.status.message})"
        )
    if rollout.phase not in _ALLOWED[verb]:
        possible = [one for one, phases in _ALLOWED.items() if rollout.phase in phases]
        advice = f"possible now: {', '.join(possible)}" if possible else _NOTHING
        raise _refused(
            f"AutoWasm {view.key}: the rollout is {rollout.phase.value}, so {verb} changes nothing; {advice}"
        )
    return rollout


def command_value(verb: str, *, generation: int, now: datetime) -> str:
    """The value of the annotation: the command, its generation, and the time, which makes it new."""
    time = now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{verb}@{generation} {time}"


def is_handled(given: str, view: RolloutView) -> bool:
    """Whether wasmer has read this value. Raises AutoWasmError if another value has replaced it."""
    if view.rollout is not None and view.rollout.command == given:
        return True
    if view.command != given:
        raise _refused(
            f"AutoWasm {view.key}: another command has replaced this one: {view.command[:80] or 'the annotation was removed'}"
        )
    return False


def check_result(verb: str, view: RolloutView) -> None:
    """Raises AutoWasmError if wasmer read the command, but the rollout had moved on meanwhile."""
    rollout = view.rollout
    if rollout is None or rollout.phase not in _RESULTS[verb]:
        phase = rollout.phase.value if rollout is not None else "gone"
        message = rollout.message if rollout is not None else ""
        raise _refused(
            f"AutoWasm {view.key}: {verb} was not carried out, or the rollout has ended since: it is {phase}: {message}"
        )


def _refused(message: str) -> AutoWasmError:
    return AutoWasmError(message, reason=Reason.ROLLOUT_COMMAND_FAILED)
