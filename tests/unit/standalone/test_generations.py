"""Generations as an API server counts them."""

from typing import Any

import pytest

from autowasm.standalone.documents import next_generation


@pytest.mark.parametrize(
    ("previous", "spec", "expected"),
    [
        (None, {"a": 1}, 1),
        ({"metadata": {"generation": 3}, "spec": {"a": 1}}, {"a": 1}, 3),
        ({"metadata": {"generation": 3}, "spec": {"a": 1}}, {"a": 2}, 4),
        ({"metadata": {"generation": 3}}, {"a": 1}, 4),
        ({"metadata": {}, "spec": {"a": 1}}, {"a": 1}, 1),
        ({"metadata": {"generation": "x"}, "spec": {}}, {}, 1),
        ({"metadata": {"generation": 0}, "spec": {}}, {}, 1),
        ({"metadata": None, "spec": {}}, {"a": 1}, 1),
    ],
)
def test_counts_changes_of_the_spec(
    previous: dict[str, Any] | None, spec: object, expected: int
) -> None:
    assert next_generation(previous, spec) == expected
