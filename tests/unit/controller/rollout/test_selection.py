"""Which Pods a step has: order, spread, replacement, and whole workloads or nodes where names do not fit."""

import random
from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from autowasm.api.status import StagedGroup, StagedPod, StepUnit
from autowasm.controller.rollout.selection import Candidate, Choice, choose

NOTHING = Choice()


def pod(number: int, *, node: str = "", workload: str = "details", ready: bool = True) -> Candidate:
    return Candidate("default", f"p{number}", f"uid-{number}", node, workload, ready)


def mesh(pods: int, *, nodes: int = 4, workloads: int = 1) -> list[Candidate]:
    return [pod(n, node=f"n{n % nodes}", workload=f"w{n % workloads}") for n in range(pods)]


def names(choice: Choice) -> list[str]:
    return [one.name for one in choice.pods]


def step(
    candidates: Sequence[Candidate], chosen: Choice = NOTHING, *, size: int, capacity: int = 500
) -> Choice:
    return choose(candidates, chosen, size=size, capacity=capacity)


def test_larger_steps_contain_the_pods_of_smaller_ones_for_any_input_order() -> None:
    candidates = mesh(40, workloads=3)
    one, ten = step(candidates, size=1), step(candidates, step(candidates, size=1), size=10)
    assert len(one.pods) == 1
    assert names(ten)[0] == names(one)[0]
    assert len(ten.pods) == 10
    shuffled = random.Random(1).sample(candidates, 40)
    assert step(shuffled, step(shuffled, size=1), size=10) == ten


def test_other_uids_give_another_first_pod() -> None:
    firsts = {
        step([Candidate("default", f"p{n}", f"{salt}-{n}") for n in range(6)], size=1).pods[0].name
        for salt in range(40)
    }
    assert len(firsts) == 6


def test_pods_are_spread_over_workloads_and_nodes() -> None:
    candidates = [
        pod(n, node=f"n{n // 6}", workload=f"w{n % 3}") for n in range(24)
    ]  # four nodes with two Pods of each of three workloads
    chosen = step(candidates, size=12).members(candidates)
    assert Counter(one.workload for one in chosen) == {"w0": 4, "w1": 4, "w2": 4}
    assert max(Counter(one.node for one in chosen).values()) <= 4
    four = step(candidates[::3], size=4).members(candidates)
    assert len({one.node for one in four}) == 4


def test_last_pod_of_a_small_workload_comes_after_all_others_but_the_last_ones() -> None:
    candidates = [*(pod(n, workload="large") for n in range(9)), pod(9, workload="small")]
    assert "p9" not in names(step(candidates, size=8))
    assert set(names(step(candidates, size=10))) == {one.name for one in candidates}


def test_pods_that_are_not_ready_wait_unless_none_is_ready() -> None:
    candidates = [pod(0), *(pod(n, ready=False) for n in range(1, 6))]
    assert names(step(candidates, size=3)) == ["p0"]
    broken = [pod(n, ready=False) for n in range(6)]
    assert len(step(broken, size=2).pods) == 2
    ready = [pod(n) for n in range(6)]
    chosen = step(ready, size=1)
    unready = [pod(n, ready=False) for n in range(6)]
    assert step(unready, chosen, size=3) == chosen, "a Pod stays chosen, and no broken one is added"


def test_gone_pod_is_replaced_and_the_others_stay() -> None:
    candidates = mesh(10)
    before = step(candidates, size=4)
    gone = before.pods[1].uid
    left = [one for one in candidates if one.uid != gone]
    after = step(left, before, size=4)
    assert len(after.pods) == 4
    assert [one for one in before.pods if one.uid != gone] == list(after.pods[:3])
    assert step(left, before, size=3).pods == after.pods[:3], "a smaller step adds none"
    assert step(candidates, before, size=1) == before, "and takes none back"


def test_pod_that_is_made_again_under_its_name_takes_its_place() -> None:
    candidates = [Candidate("default", f"db-{n}", f"uid-{n}") for n in range(3)]
    before = step(candidates, size=1)
    name = before.pods[0].name
    again = [one if one.name != name else Candidate("default", name, "uid-9") for one in candidates]
    assert step(again, before, size=1).pods == (StagedPod("default", name, "uid-9"),)


def test_without_room_for_names_whole_workloads_are_chosen() -> None:
    candidates = [pod(n, node=f"n{n}", workload=f"w{n % 10}") for n in range(100)]
    first = step(candidates, size=3, capacity=5)
    assert first.by is StepUnit.POD
    half = step(candidates, first, size=50, capacity=5)
    assert half.by is StepUnit.WORKLOAD
    members = half.members(candidates)
    assert set(names(first)) <= {one.name for one in members}
    assert 40 <= len(members) <= 50
    assert len(half.pods) + len(half.groups) <= 5
    more = step(candidates, half, size=60, capacity=6)
    assert set(half.groups) <= set(more.groups)
    assert len(members) < len(more.members(candidates)) <= 60


def test_without_several_workloads_whole_nodes_are_chosen() -> None:
    candidates = mesh(100, nodes=10)
    half = step(candidates, size=50, capacity=6)
    assert half.by is StepUnit.NODE
    assert len(half.members(candidates)) == 50
    assert half.proxies()[-1] == {"NODE_NAME": half.groups[-1].name}


def test_without_a_whole_that_fits_the_step_stays_smaller() -> None:
    candidates = mesh(100, nodes=1)
    half = step(candidates, size=50, capacity=7)
    assert half.by is StepUnit.POD
    assert len(half.pods) == 7


def test_proxies_are_recognized_by_the_metadata_of_their_nodes() -> None:
    choice = Choice((StagedPod("a", "p", "u"),), (StagedGroup("details", "b"),), StepUnit.WORKLOAD)
    assert choice.proxies() == (
        {"NAME": "p", "NAMESPACE": "a"},
        {"WORKLOAD_NAME": "details", "NAMESPACE": "b"},
    )


CANDIDATES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=20
).map(
    lambda rows: [
        pod(n, node=f"n{node}" if node else "", workload=f"w{workload}", ready=ready)
        for n, (node, workload, ready) in enumerate(rows)
    ]
)


@given(CANDIDATES, CANDIDATES, st.integers(1, 20), st.integers(1, 20), st.integers(0, 20))
def test_no_choice_exceeds_its_size_or_the_capacity_and_chosen_pods_stay(
    candidates: list[Candidate], later: list[Candidate], first: int, second: int, capacity: int
) -> None:
    one = step(candidates, size=first, capacity=capacity)
    assert len(one.members(candidates)) <= first
    assert len(one.pods) + len(one.groups) <= capacity
    two = step(later, one, size=second, capacity=capacity)
    kept, members = one.members(later), two.members(later)
    assert {each.uid for each in kept} <= {each.uid for each in members}
    assert len(members) <= max(second, len(kept))
    assert len(two.pods) + len(two.groups) <= max(capacity, len(one.pods) + len(one.groups))
    assert step(later, two, size=second, capacity=capacity).members(later) == members
