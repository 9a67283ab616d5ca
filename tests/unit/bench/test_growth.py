"""Exponents of growth: of a power law, and of what is added to a part that does not depend on the size."""

import math
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.bench import pictures
from tests.bench.growth import added_exponent, charts, exponent

SIZES = (100, 1_000, 5_000, 10_000)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_exponent_is_that_of_the_power_law(power: float) -> None:
    values = [7 * size**power for size in SIZES]
    assert exponent(SIZES, values) == pytest.approx(power)


def test_part_that_does_not_grow_does_not_hide_linear_growth() -> None:
    values = [500 + 0.01 * size for size in SIZES]
    assert exponent(SIZES, values) < 0.1
    assert added_exponent(SIZES, values) == pytest.approx(1)


def test_part_that_does_not_grow_does_not_hide_quadratic_growth() -> None:
    values = [500 + 1e-6 * size**2 for size in SIZES]
    assert added_exponent(SIZES, values) > 1.9


def test_exponent_of_constant_values_is_unknown() -> None:
    assert math.isnan(added_exponent(SIZES, [5.0, 5.1, 4.9, 5.0]))


def test_each_measure_has_one_picture_with_a_line_for_each_kind_of_growth(tmp_path: Path) -> None:
    def points(*values: float) -> list[dict[str, list[float]]]:
        names = ("settle", "memory", "relist", "event", "change", "idle")
        return [{name: [value] for name in names} for value in values]

    grown = {
        "AutoWasms": ((1, 5, 10), points(1, 5, 10)),
        "Pods": ((10, 100, 1000), points(3, 4, 5)),
    }
    drawn = [pictures.draw(asdict(one), tmp_path) for one in charts(grown)]
    assert {file.stem for file in drawn} == {
        *("growth-settle", "growth-memory", "growth-relist"),
        *("growth-event", "growth-change", "growth-idle"),
    }
    text = (tmp_path / "growth-event.svg").read_text()
    assert "1 to 10 AutoWasms, exponent 1.00" in text
    assert "10 to 1000 Pods, exponent 0.11" in text
    assert text.count(' r="4"') == 6
