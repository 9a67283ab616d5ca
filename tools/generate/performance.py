"""`python -m tools.generate.performance`: write the figures that `make bench` left in build/bench/ into docs/performance.md.

Only the blocks of figures; the text around them is written by hand. Invariant: every figure on the page is from a run, and
none is from a run with SIZE=small.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench import pictures
from tests.bench.__main__ import ROWS
from tools.generate import markdown
from tools.generate.paths import DOCS

PAGE: Final = DOCS / "performance.md"
PICTURES: Final = "pictures"
MEASURED: Final = Path("build/bench")

KIND: Final = "figures"
"""The kind of the blocks of the page."""
_SUMMARY: Final = "summary"
_HEADER: Final = "| what | ours | rival | ratio | budget | |"

Found = Mapping[str, Mapping[str, Any]]


def read(directory: Path) -> dict[str, dict[str, Any]]:
    """The measured results, by row, without runs that only tried the benchmark."""
    found = {}
    for row in ROWS:
        file = directory / f"{row}.json"
        if file.is_file():
            document = json.loads(file.read_text())
            if document["size"] == "full":
                found[row] = document
    return found


def render(page: str, found: Found) -> str:
    """The page with these figures in it; rows that were not measured keep theirs. Raises ValueError if the page lacks a block."""
    blocks = {_SUMMARY: _summary(page, found)} if found else {}
    blocks |= {row: _row(document) for row, document in found.items()}
    for name, block in blocks.items():
        page = markdown.with_block(page, KIND, name, block)
    return page


def _summary(page: str, found: Found) -> str:
    kept = _kept(page)
    rows = [
        cells
        for row in ROWS
        for cells in (_budgets(row, found[row]) if row in found else kept.get(row, []))
    ]
    conditions = _conditions(list(found.values()))
    if kept.keys() - found.keys():
        said = f"{', '.join(found)}: "
        earlier = [one for one in _kept_conditions(page) if not one.startswith(said)]
        conditions = "\n\n".join([*earlier, said + conditions])
    return f"{markdown.table(_HEADER, rows)}\n{conditions}\n"


def _budgets(row: str, document: Mapping[str, Any]) -> list[list[str]]:
    return [
        _cells(f"{row}: {one['shown'][0]}", one["shown"])
        for one in document["figures"]
        if one["budget"]
    ]


def _kept(page: str) -> dict[str, list[list[str]]]:
    """The lines that the summary of the page has, by row."""
    found: dict[str, list[list[str]]] = {}
    for line in markdown.block(page, KIND, _SUMMARY).splitlines():
        row = line.removeprefix("| ").partition(": ")[0]
        if line.startswith("| ") and row in ROWS:
            found.setdefault(row, []).append(
                line.removeprefix("| ").removesuffix(" |").split(" | ")
            )
    return found


def _row(document: Mapping[str, Any]) -> str:
    rows = [_cells(one["shown"][0], one["shown"]) for one in document["figures"]]
    lines = [markdown.table(_HEADER, rows)]
    lines += [f"* {note}" for note in document["notes"]]
    if document["noise"]["verdict"]:
        lines.append(f"* **The machine was too noisy to tell:** {document['noise']['verdict']}.")
    minutes, repeats = document["minutes"], document["repeats"]
    lines += [f"* {document['machine']['date']}, {repeats} repeats, {minutes:g} minutes.", ""]
    for chart in document["charts"]:
        lines += [f"![{chart['title']}]({PICTURES}/{chart['name']}.svg)", ""]
    return "\n".join(lines)


def _cells(name: str, shown: Sequence[str]) -> list[str]:
    return [name, *(cell.strip() for cell in shown[1:])]


def _kept_conditions(page: str) -> list[str]:
    lines = markdown.block(page, KIND, _SUMMARY).splitlines()
    return [line for line in lines if line and not line.startswith("|")]


def _conditions(documents: Sequence[Mapping[str, Any]]) -> str:
    machine = max((one["machine"] for one in documents), key=lambda one: str(one["date"]))
    versions = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return (
        f"{machine['date']}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, Linux {machine['kernel']}, Python {machine['python']}, {versions}; "
        f"all TCP sockets together may hold {machine['tcp_memory_mb']} MB."
    )


def main() -> None:
    """Rewrite the page and its pictures."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.generate.performance", description=__doc__
    )
    parser.add_argument("--from", dest="directory", type=Path, default=MEASURED)
    arguments = parser.parse_args()
    found = read(arguments.directory)
    if not found:
        parser.exit(1, f"no full run in {arguments.directory}: `make bench` first\n")
    PAGE.write_text(render(PAGE.read_text(), found))
    for document in found.values():
        for chart in document["charts"]:
            pictures.draw(chart, PAGE.parent / PICTURES)


if __name__ == "__main__":
    main()
