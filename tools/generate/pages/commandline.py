"""docs/cli.md: the help of both programs."""

import argparse
import os

from autowasm.cli import wasmc, wasmer

_INTRODUCTION = """\
# Command line

Both programs print this with `--help`. Exit status: 0 success (or stopped on request), 1 failure, 2 usage error. This page is
made by `make reference`.
"""


def render() -> str:
    """The whole page."""
    os.environ["COLUMNS"] = "100"  # argparse wraps text to the terminal's width
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
