"""Statuses of staged rollouts as wasmer writes them, one for each state, and the views of them that `wasmc rollout` shows."""

from typing import Any

import msgspec
from msgspec import UNSET

from autowasm.api.status import (
    Module,
    Phase,
    PodRequests,
    Pods,
    RolloutPhase,
    RolloutStatus,
    RolloutVariant,
    RolloutVerdict,
    StagedGroup,
    StagedPod,
    Status,
    StepUnit,
)
from autowasm.api.v1alpha1 import Rollout
from autowasm.cli.rolloutview import RolloutView
from autowasm.kube.resources import ObjectKey
from tests.parts.explained import RECORD

KEY = ObjectKey("team", "hello")
OLD, NEW = "77aa44a0b1d3e2f4", "1f0c44a0b1d3e2f4"
_TIME = "2026-11-28T04:00:00Z"


def _variant(digest: str, generation: int, tag: str) -> RolloutVariant:
    source = f"registry:registry.example/team/hello:{tag}"
    record = msgspec.structs.replace(RECORD, source=source)
    return RolloutVariant(digest, generation, Module.of(record, _TIME))


BEGUN = RolloutStatus(
    phase=RolloutPhase.PROGRESSING,
    target=_variant(NEW, 7, "v2"),
    stable=_variant(OLD, 6, "v1"),
    step=2,
    steps=4,
    size=2,
    pods=tuple(StagedPod("team", f"hello-7d4c9b8f6-x{n}", f"uid-{n}") for n in range(2)),
    started="2026-11-28T04:01:00.000Z",
    time="2026-11-28T04:01:00.000Z",
    reason="NotPublished",
    message="step 2 of 4: 2 of 12 Pods have the new filter",
)
_VERDICT = RolloutVerdict(
    pods=2,
    proven=1,
    requests=1204,
    failures=2,
    stable_requests=9820,
    stable_failures=9,
    per_pod=(
        PodRequests("team/hello-7d4c9b8f6-x1", 604, 2),
        PodRequests("team/hello-7d4c9b8f6-x0", 600, 0),
    ),
)
_replace = msgspec.structs.replace
WAITING = _replace(
    BEGUN,
    waited_seconds=12.0,
    reason="NotAccepted",
    message="Envoy of Pod team/hello-7d4c9b8f6-x1 has not accepted the new filter yet",
    verdict=_replace(_VERDICT, pod="team/hello-7d4c9b8f6-x1"),
)
HEALTHY = _replace(
    BEGUN,
    healthy_since="2026-11-28T04:01:10.000Z",
    healthy_seconds=5.0,
    waited_seconds=12.0,
    reason="Pause",
    message="step 2 of 4 is healthy, and must stay so for 30s",
    verdict=_replace(_VERDICT, proven=2, is_by_time=True),
)
PAUSED = _replace(
    WAITING,
    phase=RolloutPhase.PAUSED,
    reason="PausedByCommand",
    message="paused in step 2 of 4",
)
LOST = _replace(
    BEGUN,
    phase=RolloutPhase.PAUSED,
    reason="StableLost",
    message="the EnvoyFilter no longer has the previous filter, so it cannot be restored: change the spec, or set the annotation "
    "wasm.tcm.io/rollout to promote",
)
FAILED = _replace(
    BEGUN,
    phase=RolloutPhase.ABORTED,
    aborted=(RolloutVariant(NEW, 7), RolloutVariant("9b" * 8, 7)),
    size=0,
    pods=(),
    reason="FailureRatio",
    message="step 2 of 4: Pod team/hello-7d4c9b8f6-x1 failed 3 of 104 requests (2.88%), more than 1.09%; all Pods have the previous "
    "filter",
    verdict=_replace(_VERDICT, requests=104, failures=3, pod="team/hello-7d4c9b8f6-x1"),
)
ABORTED = _replace(
    FAILED,
    reason="AbortedByCommand",
    message="step 2 of 4: aborted by command; all Pods have the previous filter",
    verdict=_VERDICT,
)
SUCCEEDED = _replace(
    BEGUN,
    phase=RolloutPhase.SUCCEEDED,
    stable=UNSET,
    step=4,
    size=0,
    pods=(),
    reason="",
    message=f"all Pods have the new filter ({NEW})",
    verdict=_replace(_VERDICT, pods=12, proven=12),
)
FIRST = _replace(BEGUN, stable=UNSET, step=1, size=1, pods=BEGUN.pods[:1])
"""There was no filter before."""
LARGE = _replace(
    WAITING,
    step=11,
    steps=21,
    size=400,
    by=StepUnit.WORKLOAD,
    pods=tuple(StagedPod("other", f"a-rather-long-name-of-a-pod-{n}", f"u{n}") for n in range(200)),
    groups=tuple(StagedGroup(f"workload-{n}", "team") for n in range(40)),
    message="words " * 300 + "\x1b[31m\n",
    verdict=_replace(
        _VERDICT,
        pods=400,
        per_pod=tuple(
            PodRequests(f"other/{'long-' * 40}name-{n}\x1b", 10**9, 10**9) for n in range(10)
        ),
    ),
)

STATES = {
    "begun": BEGUN,
    "waiting": WAITING,
    "healthy": HEALTHY,
    "paused": PAUSED,
    "lost": LOST,
    "failed": FAILED,
    "aborted": ABORTED,
    "succeeded": SUCCEEDED,
    "first": FIRST,
    "large": LARGE,
}


def status(rollout: RolloutStatus | None, **fields: Any) -> Status:
    """The status of an AutoWasm with twelve Pods."""
    known = Status(
        phase=Phase.SYNCED,
        message="published",
        observed_generation=7,
        rollout=rollout or UNSET,
        pods=Pods(12, 12),
    )
    return msgspec.structs.replace(known, **fields)


def view(
    rollout: RolloutStatus | None, *, generation: int = 7, command: str = "", **fields: Any
) -> RolloutView:
    """The view of an AutoWasm of generation 7 with the default steps. `fields` go into the status."""
    return RolloutView(
        key=KEY,
        generation=generation,
        status=status(rollout, **fields),
        spec=Rollout(),
        command=command,
    )
