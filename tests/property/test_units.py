import contextlib

from hypothesis import given
from hypothesis import strategies as st

from autowasm.units import format_duration, format_size, parse_duration, parse_size


@given(st.integers(min_value=0, max_value=10**12))
def test_duration_that_is_shown_reads_back_to_the_millisecond(milliseconds: int) -> None:
    assert round(parse_duration(format_duration(milliseconds / 1000)) * 1000) == milliseconds


@given(st.integers(min_value=0, max_value=10**17), st.sampled_from(["", "B"]))
def test_bytes_read_exactly(count: int, unit: str) -> None:
    assert parse_size(f"{count}{unit}") == count


@given(st.text(max_size=20))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for parse in (parse_duration, parse_size):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0  # type: ignore[operator]


@given(st.integers(min_value=0, max_value=2**50))
def test_size_is_shown_with_at_most_one_decimal(count: int) -> None:
    number, unit = format_size(count).split(" ")
    assert unit in {"B", "KiB", "MiB", "GiB"}
    assert len(number.partition(".")[2]) <= 1
