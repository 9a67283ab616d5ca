import pytest

from tests.bench.table import (
    Figure,
    Result,
    Verdict,
    at_least,
    at_most,
    document,
    ratio_at_least,
    show,
)


@pytest.mark.parametrize(
    ("runs", "verdict"),
    [
        ([4.0, 5.0], "met"),
        ([5.1, 6.0], "missed"),
        ([4.9, 5.1], "too close to tell"),
    ],
)
def test_a_budget_within_the_noise_is_neither_met_nor_missed(
    runs: list[float], verdict: Verdict
) -> None:
    assert Figure("turn", "ms", runs, budget=at_most(5)).verdict == verdict


def test_ratio_is_of_runs_that_followed_each_other() -> None:
    """The machine became twice as slow in the second round; the ratio did not change."""
    figure = Figure("serve", "MB/s", [90, 45], "nginx", [100, 50], ratio_at_least(0.85))
    assert figure.ratios == [0.9, 0.9]
    assert figure.verdict == "met"
    assert figure.noise > 0.5


def test_without_a_rival_there_is_no_ratio() -> None:
    figure = Figure("memory", "MiB", [100.0])
    assert figure.ratio is None
    assert figure.verdict == ""


def test_unequal_numbers_of_runs_are_compared_by_their_medians() -> None:
    assert Figure("x", "s", [2.0, 4.0], "y", [1.0]).ratio == 3.0


def test_table_and_document_show_the_same_figures() -> None:
    figure = Figure("events", "1/s", [50_000.0], "Watch", [2_000.0], at_least(40_000))
    text = show([figure])
    found = document(Result([figure]))["figures"][0]
    assert found["verdict"] == "met"
    assert found["ratio"] == 25.0
    for cell in found["shown"]:
        assert cell in text
