import pytest

from autowasm.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("30s", 30),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1m0.5s", 60.5),
    ],
)
def test_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "30",
        "s",
        "-5s",
        "5 s",
        "5s ",
        "1e3s",
        "5x",
        "1h30",
        ".5s",
        "٣s",
        "9" * 400 + "s",
        "infs",
    ],
)
def test_duration_without_unit_or_with_rubbish_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a form like 30s"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (5400, "1h30m"), (0.25, "250ms"), (86_400, "24h"), (61.5, "1m1s500ms")],
)
def test_duration_is_shown(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("4Gi", 4 * 2**30),
        ("4GiB", 4 * 2**30),
        ("4G", 4 * 10**9),
        ("500k", 500_000),
        ("1.5Mi", 3 * 2**19),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_size_is_read_to_the_byte(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "Gi", "-1", "1 Gi", "1gi", "1e9", "4Gi\n", "9" * 400, "٣"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a form like 512Mi"):
        parse_size(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (33_554_432, "32 MiB"),
        (5 * 2**40, "5120 GiB"),
    ],
)
def test_size_is_shown(count: int, text: str) -> None:
    assert format_size(count) == text
