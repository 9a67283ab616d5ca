"""Log lines that the documentation quotes are written by the program with exactly these words."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    page
    for page in (*(ROOT / "docs").rglob("*.md"), *(ROOT / "tools/generate/dashboards").glob("*.py"))
    if "adr" not in page.parts
)
LEVELS = {"debug", "info", "warning", "error", "exception"}
QUOTED = (
    # Forms such as: log `fetch failed`; the log line `ready`; a line `answered`; the log has `loop blocked`
    r"\b(?:[Ll]og:? |[Ll]og line |line |log has |log says )`([a-z][^`=]*)`",
    r"`([a-z][^`=]*)` in the log\b",
    # Log `watch interrupted`, `list failed` with …; the log has the error (`reconcile failed`)
    r"\b[Ll]og `[^`]*`, `([a-z]+ [a-z ]+)`",
    r"\blog has the \w+ \(`([a-z][^`]*)`\)",
    # The line `blob not readable` indicates a disk problem
    r"`([a-z]+ [a-z -]+)` (?:has|indicates)\b",
)


def quoted(text: str) -> set[str]:
    """The log lines that a page quotes; not those of Envoy."""
    text = re.sub(r"(?:sidecar's|access) log\b[^.|]*", "", " ".join(text.split()))
    return {found for pattern in QUOTED for found in re.findall(pattern, text)}


def _constants(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _constants(node.body)
        yield from _constants(node.orelse)


@functools.cache
def written() -> frozenset[str]:
    """First arguments of calls of a logger, or of a name that stands for one of its methods."""
    found: set[str] = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = ast.unparse(node.func)
            if called == "log" or (
                "log" in called.rpartition(".")[0] and called.rpartition(".")[2] in LEVELS
            ):
                found.update(_constants(node.args[0]))
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_quoted_log_line_is_one_that_is_written(page: Path) -> None:
    assert quoted(page.read_text()) <= written()


def test_quotes_are_found_in_the_page_about_alerts() -> None:
    assert {"fetch failed", "list failed", "answered", "ready", "blob not readable"} <= (
        quoted((ROOT / "docs" / "operations.md").read_text())
    )


def test_a_line_that_is_not_written_is_found() -> None:
    assert quoted("**See** Log `no such line` with `digest`.") == {"no such line"}
    assert "no such line" not in written()
