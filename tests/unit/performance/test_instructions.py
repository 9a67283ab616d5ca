"""The guard of instruction counts reports what needs more than a tenth more, and each kind of work is recorded."""

import json

from tests.instructions import RECORDED, WORK, slower


def test_only_more_than_a_tenth_more_is_reported() -> None:
    recorded = {"a": 1000, "b": 1000, "c": 1000}
    assert slower({"a": 1101.0, "b": 1099.0, "c": 10.0}, recorded) == [
        "a: 1101 instructions, 1000 recorded"
    ]


def test_work_that_is_not_recorded_is_reported() -> None:
    assert slower({"new": 1.0}, {}) == ["new: 1 instructions, 0 recorded"]


def test_every_kind_of_work_is_recorded() -> None:
    assert json.loads(RECORDED.read_text()).keys() == WORK.keys()
