"""`python -m tools.generate.rivals`: write the tables that compare swaps with Istio's WasmPlugin into docs/comparison.md.

The data are the rows `wasmplugin` and `datapath` of `make bench`. Invariant: each number is a figure of a full run, as in
docs/performance.md.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench import swaps, table
from tools.generate import markdown, performance
from tools.generate.paths import DOCS

PAGE: Final = DOCS / "comparison.md"
KIND: Final = performance.KIND
ROWS: Final = ("wasmplugin", "datapath")
MEMORY: Final = "memory of "

_TIMES: Final = (swaps.P50, swaps.P99, swaps.LAST, swaps.FAILED, swaps.ALL, swaps.MISSING, swaps.PULLS, swaps.PULLED)  # fmt: skip
_HEADER: Final = (
    "| sidecars | registry | p50, s | p99, s | last sidecar, s | failed requests | of requests | sidecars without it | "
    "registry requests | MB |"
)

Figure = Mapping[str, Any]


def render(page: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with the tables of these rows; a row that was not measured keeps its block. Raises ValueError if a block is missing."""
    for name, make in zip(ROWS, (_swaps, _datapath), strict=True):
        if name in found:
            page = markdown.with_block(page, KIND, name, make(found[name]))
    return page


def _swaps(document: Mapping[str, Any]) -> str:
    cells: dict[str, dict[str, Figure]] = {}
    for figure in document["figures"]:
        cell, _, name = figure["name"].partition(": ")
        cells.setdefault(cell, {})[name] = figure
    rows = []
    memory = []
    for cell, figures in cells.items():
        sidecars, _, registry = cell.partition(", registry ")
        count = sidecars.partition(" ")[0]
        values = {name: _both(figures[name]) for name in _TIMES}
        values[swaps.MISSING] += f" of {int(count) * len(figures[swaps.LAST]['ours'])}"
        rows.append([count, registry or "undisturbed", *values.values()])
        kept = {
            name.removeprefix(MEMORY): one
            for name, one in figures.items()
            if name.startswith(MEMORY)
        }
        if kept:
            memory.append([count, *map(_both, kept.values())])
    header = f"| sidecars | {' | '.join(_kept_names(document))} |"
    tables = [markdown.table(_HEADER, rows), markdown.table(header, memory)]
    return "\n".join([*tables, _end(document)])


def _kept_names(document: Mapping[str, Any]) -> Sequence[str]:
    """The processes whose memory was measured, in order."""
    names = (one["name"].partition(f": {MEMORY}")[2] for one in document["figures"])
    return [f"{name}, MiB" for name in dict.fromkeys(name for name in names if name)]


def _datapath(document: Mapping[str, Any]) -> str:
    rows = [[f"{one['name']}, {one['unit']}", _both(one)] for one in document["figures"]]
    rows = [[name.rstrip(", "), value] for name, value in rows]
    return "\n".join([markdown.table("| | AutoWasm / WasmPlugin |", rows), _end(document)])


def _both(figure: Figure) -> str:
    """Ours / theirs, as medians."""
    ours, theirs = figure["ours"], figure["theirs"]
    return " / ".join(table.middle(one) for one in (ours, theirs) if one)


def _end(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    lines = [f"* {note}" for note in document["notes"]]
    if document["noise"]["verdict"]:
        lines.append(f"* **The machine was too noisy to tell:** {document['noise']['verdict']}.")
    lines.append(
        f"* {machine['date']}: {machine['processor']}, {machine['cores']} cores, {document['minutes']:g} minutes."
    )
    return "\n".join([*lines, ""])


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.generate.rivals", description=__doc__)
    parser.add_argument("--from", dest="directory", type=Path, default=performance.MEASURED)
    PAGE.write_text(render(PAGE.read_text(), performance.read(parser.parse_args().directory)))


if __name__ == "__main__":
    main()
