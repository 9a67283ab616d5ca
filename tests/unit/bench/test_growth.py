"""Exponents of growth: of a power law, and of what is added to a part that does not depend on the size."""

import math

import pytest

from tests.bench.growth import added_exponent, exponent

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


def test_exponent_of_what_does_not_grow_is_unknown() -> None:
    assert math.isnan(added_exponent(SIZES, [5.0, 5.1, 4.9, 5.0]))
