"""Writes the figures that `make bench` left in build/bench/ into docs/performance.md: `make bench-docs`.

Only between the marks; the words around them are written by hand. Invariant: no figure is on the page that no run gave, and
none of a run with SIZE=small.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench import pictures
from tests.bench.__main__ import ROWS

PAGE: Final = Path(__file__).with_name("performance.md")
PICTURES: Final = "pictures"
MEASURED: Final = Path("build/bench")

_SUMMARY: Final = "summary"
_COLUMNS: Final = "| what | ours | rival | ratio | budget | |\n|---|---|---|---|---|---|"

Found = Mapping[str, Mapping[str, Any]]


def begin(name: str) -> str:
    """The mark before a block."""
    return f"<!-- figures: {name} -->\n"


END: Final = "<!-- end of figures -->\n"


def read(directory: Path) -> dict[str, dict[str, Any]]:
    """What was measured, by row; runs that only tried the benchmark are left out."""
    found = {}
    for row in ROWS:
        file = directory / f"{row}.json"
        if file.is_file():
            document = json.loads(file.read_text())
            if document["size"] == "full":
                found[row] = document
    return found


def render(page: str, found: Found) -> str:
    """The page with these figures in it; rows that were not measured keep theirs. Raises ValueError for a lost mark."""
    blocks = {_SUMMARY: _summary(found)} if found else {}
    blocks |= {row: _row(document) for row, document in found.items()}
    for name, block in blocks.items():
        before, mark, rest = page.partition(begin(name))
        _, end, after = rest.partition(END)
        if not mark or not end:
            raise ValueError(f"{PAGE.name}: no block for {name}")
        page = f"{before}{mark}{block}{end}{after}"
    return page


def _summary(found: Found) -> str:
    lines = [
        _line(f"{row}: {one['shown'][0]}", one["shown"])
        for row, document in found.items()
        for one in document["figures"]
        if one["budget"]
    ]
    return "\n".join([_COLUMNS, *lines, "", _conditions(list(found.values())), ""])


def _row(document: Mapping[str, Any]) -> str:
    lines = [_COLUMNS]
    lines += [_line(one["shown"][0], one["shown"]) for one in document["figures"]]
    lines.append("")
    lines += [f"* {note}" for note in document["notes"]]
    if document["noise"]["verdict"]:
        lines.append(f"* **The machine was too noisy to tell:** {document['noise']['verdict']}.")
    minutes, repeats = document["minutes"], document["repeats"]
    lines += [f"* {document['machine']['date']}, {repeats} repeats, {minutes:g} minutes.", ""]
    for chart in document["charts"]:
        lines += [f"![{chart['title']}]({PICTURES}/{chart['name']}.svg)", ""]
    return "\n".join(lines)


def _line(name: str, shown: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cell.strip() for cell in shown[1:])} |"


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
    parser = argparse.ArgumentParser(prog="python -m docs.performance", description=__doc__)
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
