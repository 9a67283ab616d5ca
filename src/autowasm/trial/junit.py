"""Results of a suite as JUnit XML, which CI systems show: one `testsuite` for each file.

Invariant: the result is well-formed XML 1.0, whatever a filter writes into its log.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Final

from autowasm.trial.testing import CaseResult

_INVALID: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def document(results: Sequence[tuple[str, Sequence[CaseResult]]]) -> bytes:
    """`results` by the name of the suite's file."""
    root = ET.Element("testsuites")
    for name, cases in results:
        suite = ET.SubElement(
            root,
            "testsuite",
            name=_clean(name),
            tests=str(len(cases)),
            failures=str(sum(not case.passed for case in cases)),
            errors="0",
            time=f"{sum(case.seconds for case in cases):.3f}",
        )
        for case in cases:
            _add(suite, name, case)
    ET.indent(root)
    body = ET.tostring(root, "unicode").encode()
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + body + b"\n"


def _add(suite: ET.Element, file: str, result: CaseResult) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        classname=_clean(file),
        name=_clean(result.case.name),
        file=_clean(file),
        line=str(result.case.line),
        time=f"{result.seconds:.3f}",
    )
    if not result.passed:
        first = result.mismatches[0]
        failure = ET.SubElement(case, "failure", message=_clean(f"{first.path}: {first.lines[0]}"))
        failure.text = _clean(
            "\n".join(
                line
                for each in result.mismatches
                for line in (each.path, *(f"  {line}" for line in each.lines))
            )
        )
    if result.log:
        output = ET.SubElement(case, "system-out")
        output.text = _clean(
            "\n".join(f"{line.level.name.lower()}: {line.text}" for line in result.log)
        )


def _clean(text: str) -> str:
    return _INVALID.sub("\ufffd", text)
