"""Writes the pages that come from the code: `make reference`. Tests keep them true.

The command line (here, from the programs' own help), metrics, the table of layouts, the resource's fields, the reasons.
"""

import argparse
import os
from pathlib import Path

from autowasm.cli import wasmc, wasmer
from autowasm.registry import layouts as variants
from docs import crd, metrics, reasons

_INTRODUCTION = """\
# Command line

Both programs print this with `--help`. Exit status: 0 success (or stopped on request), 1 failure, 2 usage error. This page is
made by `make reference`.
"""


def render() -> str:
    """The whole page."""
    os.environ["COLUMNS"] = "100"  # argparse wraps to the terminal
    parts = [_INTRODUCTION]
    for parser in (wasmer.build_parser(), wasmc.build_parser()):
        parts.append(_section(parser, level=2))
        parts += [_section(command, level=3) for command in _commands(parser)]
    return "\n".join(parts)


def _commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    for action in parser._actions:  # argparse offers no other way
        if isinstance(action, argparse._SubParsersAction):
            return list(action.choices.values())
    return []


def _section(parser: argparse.ArgumentParser, *, level: int) -> str:
    return f"{'#' * level} {parser.prog}\n\n```text\n{parser.format_help().rstrip()}\n```\n"


LAYOUTS_BEGIN = "<!-- table: registry/layouts.py -->\n"
LAYOUTS_END = "<!-- end of table -->\n"


def with_table(page: str) -> str:
    """The page of layouts with the table as the code has it."""
    before, begin, rest = page.partition(LAYOUTS_BEGIN)
    _, end, after = rest.partition(LAYOUTS_END)
    return f"{before}{begin}{variants.table()}{end}{after}"


if __name__ == "__main__":
    docs = Path(__file__).parent
    (docs / "cli.md").write_text(render())
    (docs / "metrics.md").write_text(metrics.render())
    (docs / "reference/autowasm.md").write_text(crd.render())
    (docs / "reference/conditions.md").write_text(reasons.render())
    layouts = docs / "layouts.md"
    layouts.write_text(with_table(layouts.read_text()))
