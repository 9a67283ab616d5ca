"""Which Pods have the newer module of a staged rollout, for proof of load and resends."""

from typing import Any

import msgspec
import pytest

from autowasm.api.status import (
    RolloutPhase,
    RolloutStatus,
    RolloutVariant,
    StagedGroup,
    StagedPod,
    Status,
    StepUnit,
)
from autowasm.controller.pods.podmatching import Pod, has_target

STATE = RolloutStatus(
    phase=RolloutPhase.PROGRESSING,
    target=RolloutVariant("0" * 16, 2),
    step=1,
    steps=3,
    pods=(StagedPod("default", "a", "uid"),),
)


def pod(name: str, node: str = "", workload: str = "") -> Pod:
    uid = name.encode().ljust(16, b"\0")
    return Pod("default", name, uid, (), "", "Running", 1, True, True, node, workload)


PODS = [pod("a", "n1", "w1"), pod("b", "n1", "w2"), pod("c", "n2", "w2")]


def chosen(state: RolloutStatus | None) -> list[str]:
    status = Status(rollout=state) if state is not None else Status()
    condition = has_target({"status": status.to_dict()})
    return [one.name for one in PODS if condition(one)]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, ["a"]),
        ({"phase": RolloutPhase.PAUSED}, ["a"]),
        ({"groups": (StagedGroup("n1"),), "by": StepUnit.NODE, "pods": ()}, ["a", "b"]),
        ({"groups": (StagedGroup("w2", "default"),), "by": StepUnit.WORKLOAD}, ["a", "b", "c"]),
        ({"groups": (StagedGroup("w2", "other"),), "by": StepUnit.WORKLOAD}, ["a"]),
        ({"step": 3, "pods": ()}, ["a", "b", "c"]),
        ({"phase": RolloutPhase.SUCCEEDED, "pods": ()}, ["a", "b", "c"]),
        ({"phase": RolloutPhase.ABORTED, "pods": ()}, ["a", "b", "c"]),
    ],
)
def test_members_of_the_step_have_it(fields: dict[str, Any], names: list[str]) -> None:
    assert chosen(msgspec.structs.replace(STATE, **fields)) == names


def test_without_a_rollout_all_pods_have_it() -> None:
    assert chosen(None) == ["a", "b", "c"]
