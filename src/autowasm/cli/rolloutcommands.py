"""The commands of `wasmc rollout`: may one be given now, the value of the annotation, whether wasmer carried it out. Pure.

Invariants: a value is for the generation that is being rolled out, so an edit at the same time does not get a command that was meant
for the spec before; two values are never equal, so the same command can be given again.
"""

from datetime import UTC, datetime
from typing import Final

from autowasm.api.status import RolloutPhase, RolloutStatus
from autowasm.cli.rolloutview import RolloutView
from autowasm.controller.rollout.judgement import RolloutReason
from autowasm.errors import AutoWasmError
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


def check(verb: str, view: RolloutView) -> RolloutStatus:
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


_NOTHING: Final = (
    "a change of the spec starts the next one (with the annotation wasm.tcm.io/rollout: pause, it "
    "waits in its first step)"
)


def value(verb: str, *, generation: int, now: datetime) -> str:
    """The value of the annotation: the command, its generation, and the time, which makes it new."""
    time = now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{verb}@{generation} {time}"


def is_handled(given: str, view: RolloutView) -> bool:
    """Whether wasmer has read this value. Raises AutoWasmError if another one has replaced it."""
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
