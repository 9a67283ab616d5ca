from typing import Any

import pytest
from msgspec import UNSET

from autowasm.api import status as statuses
from autowasm.api.status import Condition, ConditionType, Module, Phase, Status
from tests.fakes.autowasms import record


def condition(status: str = "True", *, reason: str = "R", at: str = "t1") -> Condition:
    return Condition(type="Ready", status=status, reason=reason, last_transition_time=at)


def module(tag: str, *, at: str = "t1") -> Module:
    return Module.of(record(image=f"a/b:{tag}"), at)


def test_status_reads_back() -> None:
    status = Status(
        phase=Phase.SYNCED,
        message="m",
        observed_generation=3,
        module=module("v1"),
        history=(module("v1"), module("v0")),
        pods=statuses.Pods(matched=2, injected=1),
        refresh="x",
        conditions=(condition(),),
    )
    assert statuses.read(status.to_dict()) == status
    assert status.to_dict()["module"]["fetchedAt"] == "t1"
    assert status.to_dict()["pods"] == {"matched": 2, "injected": 1}


def test_phase_is_always_written() -> None:
    assert Status().to_dict() == {"phase": "Pending"}


@pytest.mark.parametrize(
    "document",
    [None, {}, {"phase": "Odd"}, {"phase": 3}, {"module": {"sha256": 1}}, {"conditions": "none"}],
)
def test_unreadable_status_counts_as_absent(document: Any) -> None:
    assert statuses.read(document) == Status()


def test_fields_of_a_later_version_are_passed_over() -> None:
    assert statuses.read({"phase": "Synced", "later": 1}).phase is Phase.SYNCED


def test_transition_time_moves_only_with_the_status() -> None:
    previous = Status(conditions=(condition("True", reason="A", at="t1"),))
    (same,) = statuses.with_conditions(previous, (condition("True", reason="B"),), now="t2")
    assert (same.reason, same.last_transition_time) == ("B", "t1")
    (moved,) = statuses.with_conditions(previous, (condition("False"),), now="t2")
    assert moved.last_transition_time == "t2"
    (first,) = statuses.with_conditions(Status(), (condition(),), now="t2")
    assert first.last_transition_time == "t2"


def test_history_is_newest_first_one_for_each_source_and_bounded() -> None:
    history: tuple[Module, ...] = ()
    for tag in ["v0", "v1", "v2", "v3", "v4", "v5", "v3"]:
        history = statuses.remember(history, module(tag))
    assert [entry.source for entry in history] == [
        f"registry:a/b:{tag}" for tag in ["v3", "v5", "v4", "v2", "v1"]
    ]


def test_module_is_a_record_with_a_time() -> None:
    assert module("v1").record() == record(image="a/b:v1")
    assert type(module("v1").record()) is not Module


def test_condition_is_found_by_type() -> None:
    assert Status(conditions=(condition(),)).condition(ConditionType.READY) == condition()
    assert Status().condition(ConditionType.READY) is None
    assert Status().module is UNSET
