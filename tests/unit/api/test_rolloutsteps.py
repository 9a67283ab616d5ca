"""How many Pods a step has; which lists are refused is in `test_validation.py`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autowasm.api import rolloutsteps
from autowasm.api.rolloutsteps import size
from autowasm.errors import SpecError


@pytest.mark.parametrize(
    ("step", "pods", "expected"),
    [
        (1, 0, 1),
        (1, 6, 1),
        (7, 6, 6),
        ("10%", 0, 1),
        ("10%", 6, 1),
        ("10%", 11, 2),
        ("50%", 6, 3),
        ("50%", 7, 4),
        ("100%", 7, 7),
        ("1%", 1000, 10),
        ("29%", 100, 29),
    ],
)
def test_percentages_are_rounded_up_and_a_step_has_at_least_one_pod(
    step: int | str, pods: int, expected: int
) -> None:
    assert size(step, pods) == expected


STEPS = st.lists(
    st.integers(1, 30) | st.integers(1, 100).map("{}%".format), min_size=1, max_size=5
).map(tuple)


@given(STEPS)
def test_every_accepted_list_adds_pods_at_each_step_for_some_number_of_pods(
    steps: tuple[int | str, ...],
) -> None:
    try:
        rolloutsteps.check(steps)
    except SpecError:
        # Refused lists never do.
        assert not all(_adds(steps, index) for index in range(len(steps)))
        return
    assert all(_adds(steps, index) for index in range(len(steps)))


def _adds(steps: tuple[int | str, ...], index: int) -> bool:
    """Whether there is a number of Pods for which this step has more than each one before it."""
    return any(
        all(size(steps[index], pods) > size(before, pods) for before in steps[:index])
        for pods in range(1, 3_200)
    )
