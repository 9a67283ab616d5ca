"""Findings as text for a terminal, as JSON, and as an exit status.

Invariants: text fits any terminal of 40 columns or more; names from the cluster are escaped before they are printed; the JSON's keys
are stable.
"""

import argparse
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from autowasm.api.status import is_written
from autowasm.cli.stdio import fitted
from autowasm.explain.facts import Facts
from autowasm.explain.finding import NOT_CHECKED, Finding, Level, worst
from autowasm.text import shown

MIN_WIDTH: Final = 40
MAX_WIDTH: Final = 100
_LEVEL: Final = 9
_STEP: Final = 13
_LONGEST: Final = 1_000
_COLOURS: Final = {
    Level.OK: "32",
    Level.NOTE: "36",
    Level.WARNING: "33",
    Level.ERROR: "31",
}


def table(name: str, findings: Sequence[Finding], *, width: int, colour: bool) -> str:
    """A headline, then level, step, place, problem and remedy of each finding."""
    width = fitted(width, least=MIN_WIDTH, most=MAX_WIDTH)
    lines = [*wrapped(f"{name}: {headline(findings)}", width, ""), ""]
    for finding in findings:
        lines += _row(finding, width=width, colour=colour)
    return "\n".join(lines)


def overview(
    explained: Sequence[tuple[Facts, Sequence[Finding]]], *, where: str, width: int, colour: bool
) -> str:
    """The AutoWasms that have problems, each with its warnings and errors, and a line with the totals."""
    parts, healthy = [], 0
    for facts, findings in explained:
        problems = [each for each in findings if each.level >= Level.WARNING]
        if problems:
            parts.append(table(facts.name, problems, width=width, colour=colour))
        else:
            healthy += 1
    if not explained:
        return f"no AutoWasms {where}"
    unwell = len(explained) - healthy
    numbers = f"{len(explained)} AutoWasm{'s' if len(explained) > 1 else ''} {where}"
    parts.append(f"{numbers}: {unwell} with problems, {healthy} without")
    return "\n\n".join(parts)


def headline(findings: Sequence[Finding]) -> str:
    """`2 errors, 1 warning`, or a text that reports that there are none."""
    counts = Counter(finding.level for finding in findings)
    parts = [
        f"{counts[level]} {level.name.lower()}{'s' if counts[level] > 1 else ''}"
        for level in (Level.ERROR, Level.WARNING)
        if counts[level]
    ]
    return ", ".join(parts) or "no problems found in the checks that ran"


def exit_status(level: Level, arguments: argparse.Namespace) -> int:
    """1 for an error, and with --strict for a warning; else 0."""
    return 1 if level >= (Level.WARNING if arguments.strict else Level.ERROR) else 0


def _row(finding: Finding, *, width: int, colour: bool) -> list[str]:
    level = finding.level.name.lower()
    head = f"{level:<{_LEVEL}}{finding.step.value:<{_STEP}}"
    indent = " " * len(head)
    where = shown(finding.object, most=_LONGEST)
    where += f" {shown(finding.field, most=_LONGEST)}" if finding.field else ""
    lines = wrapped(f"{head}{where}:", width, indent)
    lines += wrapped(f"{indent}{shown(finding.what, most=_LONGEST)}", width, indent)
    if finding.remedy:
        lines += wrapped(
            f"{indent}-> {shown(finding.remedy, most=_LONGEST)}", width, f"{indent}   "
        )
    if colour:
        lines[0] = f"\x1b[{_COLOURS[finding.level]}m{level}\x1b[0m{lines[0][len(level) :]}"
    return lines


def wrapped(text: str, width: int, indent: str) -> list[str]:
    """The lines of the text; `indent` is for those after the first."""
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=True, break_on_hyphens=False
    )


def as_json(facts: Facts, findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings of one AutoWasm; keys in a fixed order."""
    return {
        "namespace": facts.key.namespace,
        "name": facts.key.name,
        "verdict": worst(tuple(findings)).name.lower(),
        "phase": facts.status.phase.value if is_written(facts.document.get("status")) else None,
        "module": facts.record.sha256 if facts.record is not None else None,
        "pods": {"matched": len(facts.pods), "injected": len(facts.injected)},
        "notChecked": dict(facts.unread),
        "findings": [
            {
                "level": finding.level.name.lower(),
                "step": finding.step.value,
                "check": finding.check,
                "object": finding.object,
                "field": finding.field or None,
                "what": finding.what,
                "remedy": finding.remedy or None,
            }
            for finding in findings
            if finding.check != NOT_CHECKED
        ],
    }
