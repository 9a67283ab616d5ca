"""Finds the Pods of an AutoWasm that have the newer of two filters during a staged rollout (ADR 39). Pure.

`has_target` follows the status, which determines the EnvoyFilter; `has_override` follows the EnvoyFilter in place.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import UNSET

from autowasm.api import status as statuses
from autowasm.api.staged import Overridden
from autowasm.api.status import RolloutPhase, StepUnit
from autowasm.controller.pods.podmatching import Pod

_IN_PROGRESS: Final = frozenset({RolloutPhase.PROGRESSING, RolloutPhase.PAUSED})


def everyone(_pod: Pod) -> bool:
    """All Pods: without a rollout in progress, and in its last step."""
    return True


def has_target(document: Mapping[str, Any]) -> Callable[[Pod], bool]:
    """Whether a Pod should have the newer module. `document`: the AutoWasm."""
    rollout = statuses.read(document.get("status")).rollout
    if rollout is UNSET or rollout.phase not in _IN_PROGRESS or rollout.step >= rollout.steps:
        return everyone
    pods = {(one.namespace, one.name) for one in rollout.pods}
    groups = {(one.namespace, one.name) for one in rollout.groups}
    unit = rollout.by

    def found(pod: Pod) -> bool:
        if (pod.namespace, pod.name) in pods:
            return True
        if unit is StepUnit.NODE:
            return ("", pod.node) in groups
        return unit is StepUnit.WORKLOAD and (pod.namespace, pod.workload) in groups

    return found


def has_override(placed: Overridden, pod: Pod) -> bool:
    """Whether the EnvoyFilter gives this Pod the second filter."""
    namespace = {"NAMESPACE": pod.namespace}
    return placed.has(
        {"NAME": pod.name, **namespace},
        {"NODE_NAME": pod.node},
        {"WORKLOAD_NAME": pod.workload, **namespace},
    )
