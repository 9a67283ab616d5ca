"""Which test file runs next: every file once, the longest first, users of a control plane together."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.parts import provision
from tests.scheduling import RECORD, Plan, Recorded, recorded

FILES = [f"tests/test_{number}.py" for number in range(8)]
KNOWN = st.dictionaries(
    st.sampled_from(FILES),
    st.builds(Recorded, seconds=st.floats(0, 300), control_plane=st.booleans()),
)


def test_the_longest_file_comes_first() -> None:
    plan = Plan({"a": Recorded(5), "b": Recorded(50), "c": Recorded(20)})
    assert plan.choose(["a", "b", "c"], worker=0, busy=0) == "b"


def test_a_worker_before_a_long_test_gets_a_short_file_next() -> None:
    plan = Plan({"long": Recorded(50), "short": Recorded(1)})
    assert plan.choose(["long", "short"], worker=0, busy=60) == "short"
    assert plan.choose(["long", "short"], worker=0, busy=1) == "long"


def test_short_files_and_files_without_a_record_keep_their_order() -> None:
    plan = Plan({"a": Recorded(1), "c": Recorded(2)})
    assert plan.choose(["a", "new", "c"], worker=0, busy=0) == "a"
    assert plan.choose(["new", "c"], worker=0, busy=0) == "new"


def test_users_of_a_control_plane_run_on_every_second_worker_while_others_are_left() -> None:
    plan = Plan({"plane": Recorded(50, control_plane=True), "other": Recorded(10)})
    assert plan.choose(["plane", "other"], worker=0, busy=0) == "plane"
    assert plan.choose(["plane", "other"], worker=1, busy=0) == "other"
    assert plan.choose(["plane"], worker=1, busy=0) == "plane"


def test_while_no_file_is_ready_the_one_whose_parts_come_first_is_next() -> None:
    plan = Plan({"a": Recorded(50), "b": Recorded(5)}, wait={"a": 9, "b": 3}.__getitem__)
    assert plan.choose(["a", "b"], worker=0, busy=0) == "b"


def test_a_file_whose_parts_are_not_there_waits() -> None:
    plan = Plan({"a": Recorded(50), "b": Recorded(5)}, wait=lambda file: int(file != "b"))
    assert plan.choose(["a", "b"], worker=0, busy=0) == "b"
    assert plan.choose(["a"], worker=0, busy=0) == "a"


@given(known=KNOWN, worker=st.integers(0, 7), busy=st.floats(0, 300), data=st.data())
def test_some_waiting_file_is_always_chosen(
    known: dict[str, Recorded], worker: int, busy: float, data: st.DataObject
) -> None:
    waiting = data.draw(st.lists(st.sampled_from(FILES), min_size=1, unique=True))
    ready = data.draw(st.sets(st.sampled_from(FILES)))
    plan = Plan(known, wait=lambda file: int(file not in ready))
    assert plan.choose(waiting, worker=worker, busy=busy) in waiting


def test_the_record_names_files_that_exist() -> None:
    root = Path(__file__).parents[2]
    assert [file for file in recorded(root / RECORD) if not (root / file).is_file()] == []


def test_the_record_names_parts_that_there_are() -> None:
    root = Path(__file__).parents[2]
    named = {part for found in recorded(root / RECORD).values() for part in found.parts}
    assert named <= provision.PARTS.keys()


def test_without_a_record_nothing_is_known(tmp_path: Path) -> None:
    assert recorded(tmp_path / "absent.json") == {}
    file = tmp_path / RECORD.name
    rows = {
        "a": {"seconds": 3.5, "control_plane": True},
        "b": {"seconds": 1, "control_plane": False, "parts": ["crane", "helm"]},
    }
    file.write_text(json.dumps(rows))
    assert recorded(file) == {
        "a": Recorded(3.5, control_plane=True),
        "b": Recorded(1, parts=("crane", "helm")),
    }
