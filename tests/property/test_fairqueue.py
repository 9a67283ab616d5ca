"""The fair line under any order of coming and going."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from autowasm.kube.workqueue import FairQueue

Key = tuple[str, int]
STEPS = st.lists(st.one_of(st.sampled_from("abcd"), st.none()), max_size=80)
"""A key of this group comes, or (None) the next one goes."""


@given(STEPS)
def test_no_item_is_lost_and_each_group_keeps_its_order(steps: list[str | None]) -> None:
    line: FairQueue[Key] = FairQueue(lambda key: key[0])
    waiting: dict[str, list[Key]] = {group: [] for group in "abcd"}
    passed: dict[str, Counter[str]] = {}  # how often others went while a group waited
    for number, group in enumerate([*steps, *[None] * len(steps)]):
        if group is not None:
            line.push((group, number))
            if not waiting[group]:
                passed[group] = Counter()
            waiting[group].append((group, number))
        elif len(line):
            key = line.pop()
            assert key == waiting[key[0]].pop(0)
            passed[key[0]] = Counter()
            for other, went in passed.items():
                if waiting[other] and other != key[0]:
                    went[key[0]] += 1
                    assert went[key[0]] <= 1
        assert len(line) == sum(map(len, waiting.values()))
    assert not len(line)


@given(st.lists(st.integers(), max_size=30))
def test_without_groups_it_is_first_come_first_served(keys: list[int]) -> None:
    line: FairQueue[int] = FairQueue()
    for key in keys:
        line.push(key)
    assert [line.pop() for _ in keys] == keys
