import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench import machine
from tests.bench.__main__ import ROWS
from tests.bench.table import Chart, Figure, Result, at_most, document
from tools.generate import markdown, performance


def measured(row: str, *, size: str = "full", note: str = "") -> dict[str, Any]:
    """The stored result of `make bench`."""
    result = Result(
        [Figure("longest turn", "ms", [3.0, 4.0], "nginx", [2.0, 2.0], at_most(5))],
        [Chart(row, "A picture", "ms", ["1", "2"], {"ours": [1.0, 2.0]})],
        [note] if note else [],
    )
    noise = {"rounds": [], "verdict": "other programs use 50% of the processors"}
    return {
        "row": row,
        "size": size,
        "repeats": 2,
        "minutes": 1.0,
        "machine": machine.describe(),
        "noise": noise,
        **document(result),
    }


def test_page_has_a_block_for_every_row() -> None:
    page = performance.PAGE.read_text()
    for name in ("summary", *ROWS):
        assert page.count(markdown.begin(performance.KIND, name)) == 1
    assert page.count(markdown.end(performance.KIND)) == len(ROWS) + 1


def test_figures_replace_only_the_text_between_the_marks() -> None:
    page = performance.PAGE.read_text()
    once = performance.render(page, {"herd": measured("herd", note="No cgroup here.")})
    assert "| longest turn (ms) | 3.5 (3–4) | nginx 2 (2–2) | 1.75× | ≤ 5 | met |" in once
    assert "* No cgroup here." in once
    assert "too noisy to tell:** other programs use 50%" in once
    assert "](pictures/herd.svg)" in once
    assert performance.render(once, {"herd": measured("herd", note="No cgroup here.")}) == once
    assert once.partition("### slow")[2] == page.partition("### slow")[2]


def test_a_run_that_only_tried_the_benchmark_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "herd.json").write_text(json.dumps(measured("herd", size="small")))
    (tmp_path / "slow.json").write_text(json.dumps(measured("slow")))
    assert list(performance.read(tmp_path)) == ["slow"]


def test_a_lost_mark_is_an_error() -> None:
    with pytest.raises(ValueError, match="no block figures: herd"):
        performance.render(
            markdown.begin(performance.KIND, "summary") + markdown.end(performance.KIND),
            {"herd": measured("herd")},
        )


def test_rows_that_were_not_measured_keep_their_lines_of_the_summary() -> None:
    page = performance.PAGE.read_text()
    found = {"herd": measured("herd")}
    once = performance.render(page, found)
    before, after = (
        markdown.block(one, performance.KIND, "summary").splitlines() for one in (page, once)
    )
    assert [one for one in before if one.startswith("| serve: ")]
    others = [one for one in before if not one.startswith(("| herd: ", "herd: "))]
    assert [one for one in after if not one.startswith("| herd: ")][:-2] == others
    assert after[-1].startswith(f"herd: {found['herd']['machine']['date']}")
    assert performance.render(once, found) == once
    assert [one for one in after if one.startswith("| herd: ")] == [
        "| herd: longest turn (ms) | 3.5 (3–4) | nginx 2 (2–2) | 1.75× | ≤ 5 | met |"
    ]
