import itertools
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.bench import pictures
from tests.bench.table import Chart


@pytest.mark.parametrize(
    "highest", [0.0, 0.02, 0.97, 1.47, 4.0, 25.3, 83.2, 294.6, 20000.0, 123456.0]
)
def test_an_axis_begins_at_zero_and_has_room_for_all_values(highest: float) -> None:
    steps = pictures.ticks(highest)
    assert steps[0] == 0
    assert steps[-1] >= highest
    assert 2 <= len(steps) <= 8
    distances = {round(b - a, 9) for a, b in itertools.pairwise(steps)}
    assert len(distances) == 1


def drawn(chart: Chart, folder: Path) -> str:
    return pictures.draw(asdict(chart), folder).read_text()


def test_a_line_has_two_linear_axes_from_zero(tmp_path: Path) -> None:
    values = {"ours": [10.0, 20.0, 80.0]}
    text = drawn(Chart("x", "X", "s", ["1000", "2000", "8000"], values, kind="line"), tmp_path)
    dots = [
        (float(x), float(y))
        for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4"', text)
    ]
    (x1, y1), (x2, y2), (x8, y8) = dots
    assert (x8 - x1) / (x2 - x1) == pytest.approx(7, rel=0.01)
    assert (y8 - y1) / (y2 - y1) == pytest.approx(7, rel=0.01)


def test_a_rival_is_marked_where_it_stands(tmp_path: Path) -> None:
    chart = Chart("x", "X", "times nginx", ["1", "64"], {"1 MiB": [0.9, 1.4]}, mark=("nginx", 1.0))
    text = drawn(chart, tmp_path)
    assert re.search(r'<text[^>]*class="major"[^>]*>nginx 1</text>', text)
    assert re.search(r'<path[^>]*class="major[^"]*line"', text)


def test_a_dark_page_gets_light_text_and_no_white_box(tmp_path: Path) -> None:
    text = drawn(Chart("x", "X", "s", ["a"], {"ours": [1.0]}), tmp_path)
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"background[^}]*white", text)
