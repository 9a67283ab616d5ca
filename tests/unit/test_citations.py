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


_CODE = re.compile(r"`([\w./-]*\w\.py|[\w-]+/[\w/-]+)`")
_NOT_OURS = {
    "y.py",  # an example of CONTRIBUTING.md
    "autowasm/_build.py",  # made by the build
    "kubernetes_asyncio/__init__.py",
    "cli/config",  # of docker/cli
    "net/http",  # of Go
}


def test_every_file_of_code_that_is_cited_is_there() -> None:
    """`src/autowasm/server/ranges.py`, `server/ranges.py`, `server/ranges` or `ranges.py`."""
    known = {
        "/".join(path.relative_to(ROOT).parts[number:])
        for folder in ("src", "tests", "tools", "dashboards", "manifests", "hatch_build.py")
        for path in (ROOT / folder, *(ROOT / folder).rglob("*"))
        for number in range(len(path.relative_to(ROOT).parts))
    }
    packages = {path.name for path in (ROOT / "src/autowasm").iterdir() if path.is_dir()}
    cited = {
        (name, found[1].removeprefix("../").rstrip("/"))
        for name, text in _texts().items()
        for found in _CODE.finditer(text)
        if found[1].endswith(".py") or found[1].partition("/")[0] in packages
    } - {(name, path) for name in _texts() for path in _NOT_OURS}
    assert len(cited) > 300
    missing = {(name, path) for name, path in cited if not {path, f"{path}.py"} & known}
    assert missing == set()
