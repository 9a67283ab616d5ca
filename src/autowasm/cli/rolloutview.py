"""RolloutView: what an AutoWasm says of its staged rollout, and whether the rollout of its spec is done. Pure.

Invariant: a status that is older than the spec never counts as done or failed, so a command that follows `kubectl apply` does not
report the rollout before.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET

from autowasm.api import status as statuses
from autowasm.api.parsing import parse
from autowasm.api.status import RolloutPhase, RolloutStatus, Status
from autowasm.api.v1alpha1 import ROLLOUT_ANNOTATION, Rollout
from autowasm.errors import SpecError, UsageError
from autowasm.kube.resources import ObjectKey


class Outcome(enum.Enum):
    """How far the rollout of the spec is."""

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
        """Whether `status.rollout` is of this generation of the spec."""
        rollout = self.rollout
        return rollout is not None and rollout.target.generation == self.generation

    @property
    def outcome(self) -> Outcome:
        """Of the spec's generation."""
        rollout = self.rollout
        if rollout is None or not self.is_current:
            return Outcome.IN_PROGRESS
        return _OUTCOMES[rollout.phase]

    @property
    def pods(self) -> int | None:
        """Pods with a sidecar that the selector matches; None if the status does not say it."""
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
