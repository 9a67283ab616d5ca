"""Files that the code and the pages cite are in this repository."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FOLDERS = ("src", "tests", "tools", "docs", "examples", "manifests", "dashboards", ".ci")
_SUFFIXES = {".py", ".md", ".yaml", ".tpl", ".sh", ".toml"}
_DOCUMENT = re.compile(
    r"\bdesign (?:D\d|section \d|document)|design\.md|\(D\d+(?:, ?D\d+)*\)", re.IGNORECASE
)
"""A document that was never part of it."""
_DECISION = re.compile(r"\bADRs? (\d{1,4})(?:(?:, | and )(?:ADR )?(\d{1,4})\b)*")


def _texts() -> dict[str, str]:
    files = [
        path
        for folder in _FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in _SUFFIXES and path != Path(__file__) and path.is_file()
    ]
    files += sorted(ROOT.glob("*.md"))
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in files}


def test_no_document_is_cited_that_is_not_here() -> None:
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in _texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if _DOCUMENT.search(line)
    ]
    assert found == [], "cite the decision in docs/adr"


def test_every_decision_that_is_cited_is_there() -> None:
    known = {int(path.name[:4]) for path in (ROOT / "docs/adr").glob("[0-9]*.md")}
    cited = {
        (name, int(number))
        for name, text in _texts().items()
        for found in _DECISION.finditer(text)
        for number in re.findall(r"\d+", found[0])
    }
    assert len(cited) > 50
    assert {(name, number) for name, number in cited if number not in known} == set()
