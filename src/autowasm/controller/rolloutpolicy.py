"""The operator's policy for staged rollouts in a namespace: a default for AutoWasms without `spec.rollout`, and a minimum. Pure.

Invariant: with a minimum, no AutoWasm of the namespace changes all its Pods at once.
"""

import msgspec
from msgspec import Struct

from autowasm.api import rolloutsteps, validation
from autowasm.api.v1alpha1 import AutoWasm, OnUnknown, Rollout
from autowasm.errors import SpecError, UsageError
from autowasm.reasons import Reason
from autowasm.units import parse_duration


class MinimumRollout(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The minimum care of a rollout. An absent field requires nothing."""

    first_step: int | str | None = None
    """The first step has at most this many Pods: a count or a percentage, as in `spec.rollout.steps`."""
    pause: str | None = None
    """`spec.rollout.pause` is at least this."""
    max_failure_ratio: float | None = None
    """`spec.rollout.maxFailureRatio` is at most this."""
    on_unknown: OnUnknown | None = None
    """`Wait`: `Continue` is refused."""


def check_rule(name: str, default: Rollout | None, minimum: MinimumRollout | None) -> None:
    """Raises UsageError for a rule that no rollout can fulfil, or with an invalid value."""
    where = f"--policy-file: namespaces[{name!r}]"
    try:
        if default is not None:
            validation.check_rollout(default)
        if minimum is not None:
            if minimum.first_step is not None:
                rolloutsteps.check((minimum.first_step,))
            validation.check_rollout(
                Rollout(
                    pause=minimum.pause if minimum.pause is not None else Rollout().pause,
                    max_failure_ratio=minimum.max_failure_ratio or 0.0,
                )
            )
    except SpecError as error:
        raise UsageError(f"{where}: {error}") from error
    problem = _shortfall(default, minimum) if default is not None and minimum is not None else None
    if problem is not None:
        raise UsageError(f"{where}.rollout: {problem[1]}")


def completed(default: Rollout | None, minimum: MinimumRollout | None) -> Rollout:
    """The rollout of an AutoWasm without one: the default, or else the CRD's default, adjusted to the minimum."""
    if default is not None or minimum is None:
        return default or Rollout()
    made = Rollout()
    if minimum.first_step is not None:
        later = [one for one in made.steps if _is_later(one, minimum.first_step)]
        made = msgspec.structs.replace(made, steps=(minimum.first_step, *later))
    if minimum.pause is not None and parse_duration(minimum.pause) > parse_duration(made.pause):
        made = msgspec.structs.replace(made, pause=minimum.pause)
    if minimum.max_failure_ratio is not None:
        ratio = min(minimum.max_failure_ratio, made.max_failure_ratio)
        made = msgspec.structs.replace(made, max_failure_ratio=ratio)
    return made


def _is_later(step: int | str, first: int | str) -> bool:
    return isinstance(step, str) and (isinstance(first, int) or int(step[:-1]) > int(first[:-1]))


def with_default(
    autowasm: AutoWasm, default: Rollout | None, minimum: MinimumRollout | None
) -> AutoWasm:
    """The AutoWasm with the namespace's rollout if it has none of its own."""
    if autowasm.spec.rollout is not None or (default is None and minimum is None):
        return autowasm
    spec = msgspec.structs.replace(autowasm.spec, rollout=completed(default, minimum))
    return msgspec.structs.replace(autowasm, spec=spec)


def check(name: str, autowasm: AutoWasm, minimum: MinimumRollout | None) -> None:
    """Raises SpecError (`PolicyDenied`) if `spec.rollout` is less careful than rule `name` requires."""
    if minimum is None or autowasm.spec.rollout is None:
        return
    found = _shortfall(autowasm.spec.rollout, minimum)
    if found is not None:
        field, problem = found
        raise SpecError(
            f"spec.rollout.{field}",
            f"denied by the operator's policy (wasmer --policy-file): rule {name!r}: {problem}; change it, or ask the operator of wasmer",
            reason=Reason.POLICY_DENIED,
        )


def _shortfall(rollout: Rollout, minimum: MinimumRollout) -> tuple[str, str] | None:
    """The field and its problem; None: the rollout is careful enough."""
    if minimum.first_step is not None and not _is_at_most(rollout.steps[0], minimum.first_step):
        return (
            "steps",
            f"the first step may be {minimum.first_step} at most, not {rollout.steps[0]}",
        )
    if minimum.pause is not None and parse_duration(rollout.pause) < parse_duration(minimum.pause):
        return "pause", f"must be at least {minimum.pause}, not {rollout.pause}"
    ratio = minimum.max_failure_ratio
    if ratio is not None and rollout.max_failure_ratio > ratio:
        return "maxFailureRatio", f"must be at most {ratio}, not {rollout.max_failure_ratio}"
    if minimum.on_unknown is OnUnknown.WAIT and rollout.on_unknown is not OnUnknown.WAIT:
        return "onUnknown", "must be Wait"
    return None


def _is_at_most(step: int | str, most: int | str) -> bool:
    """A count and a percentage are only comparable if the count is one Pod, because no step has fewer."""
    if isinstance(step, int):
        return step == 1 or (isinstance(most, int) and step <= most)
    return isinstance(most, str) and int(step[:-1]) <= int(most[:-1])
