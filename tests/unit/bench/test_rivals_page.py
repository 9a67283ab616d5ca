"""The tables of docs/comparison.md, from a run."""

from typing import Any

from tests.bench.swaps import Swap, Usage, figures
from tests.bench.table import Figure, Result, document
from tools.generate import markdown, rivals


def measured(lines: list[Figure], *, verdict: str = "") -> dict[str, Any]:
    machine = {"date": "2026-11-28 09:30 UTC", "processor": "AMD EPYC", "cores": 2}
    return {
        "machine": machine,
        "noise": {"verdict": verdict},
        "minutes": 12.0,
        **document(Result(lines, notes=["Two sidecars."])),
    }


def swap(took: float, *, failed: int = 0, requests: int = 2, size: int = 1_000_000) -> Swap:
    return Swap([took], 0, took, 50, failed, Usage(requests, size))


def test_page_has_a_block_for_each_row() -> None:
    page = rivals.PAGE.read_text()
    for name in rivals.ROWS:
        assert page.count(markdown.begin(rivals.KIND, name)) == 1


def test_swaps_become_a_line_of_both_systems_for_each_cell() -> None:
    lines = figures("1 sidecar", [swap(0.3)] * 3, [swap(0.2)] * 3)
    lines += [Figure("1 sidecar: memory of an agent", "MiB", [36.0], "WasmPlugin", [42.0])]
    lines += [Figure("1 sidecar: memory of wasmer", "MiB", [90.0])]
    ours, theirs = [swap(0.6)], [swap(9.0, failed=7, requests=96, size=33_000_000)]
    lines += figures("8 sidecars, registry at 1 MB/s", ours, theirs)
    page = rivals.render(rivals.PAGE.read_text(), {"wasmplugin": measured(lines)})
    block = markdown.block(page, rivals.KIND, "wasmplugin")
    assert "| 1 | undisturbed | 0.3 / 0.2 | 0.3 / 0.2 | 0.3 / 0.2 | 0 / 0 | 150 / 150 |" in block
    assert "| 8 | at 1 MB/s | 0.6 / 9 | 0.6 / 9 | 0.6 / 9 | 0 / 7 | 50 / 50 |" in block
    assert "| 0 / 0 of 8 | 2 / 96 | 1 / 33 |" in block
    assert "| sidecars | an agent, MiB | wasmer, MiB |" in block
    assert "| 1 | 36 / 42 | 90 |" in block
    assert "* Two sidecars." in block


def test_noise_is_reported_where_the_figures_are() -> None:
    lines = [Figure("start of a sidecar with 5 filters", "s", [2.0], "WasmPlugin", [3.0])]
    found = measured(lines, verdict="other programs use 50% of the processors")
    page = rivals.render(rivals.PAGE.read_text(), {"datapath": found})
    block = markdown.block(page, rivals.KIND, "datapath")
    assert "| start of a sidecar with 5 filters, s | 2 / 3 |" in block
    assert "too noisy to tell:** other programs use 50%" in block
