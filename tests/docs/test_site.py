"""The site is built without a warning, needs no other server, and its made pages are up to date."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autowasm.controller.pods.loadreport import MissingReason
from tests.docs.blocks import ROOT
from tools.generate import menu
from tools.generate.pages import fields, reasons

_ABROAD = re.compile(
    r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//|<link[^>]*stylesheet[^>]*href="(?:https?:)?//'
)
_NOT_ABOUT_AN_AUTOWASM = {"explain", "cli"}


@pytest.mark.timeout(300)
def test_the_site_is_built_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    assert [page.name for page in pages if _ABROAD.search(page.read_text())] == []


def test_every_page_is_in_the_menu() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    docs = ROOT / "docs"
    menu.complete(nav, docs)
    shown = yaml.safe_dump(nav)
    pages = [str(page.relative_to(docs)) for page in sorted(docs.rglob("*.md"))]
    assert [page for page in pages if page not in shown] == []


def test_the_fields_are_those_of_the_schema() -> None:
    page = ROOT / "docs/reference/autowasm.md"
    assert page.read_text() == fields.render(), "run `make reference`"


def test_the_reasons_are_those_of_the_code() -> None:
    known = {reason for described in reasons.REASONS.values() for reason in described}
    assert _reasons() == known
    page = ROOT / "docs/reference/conditions.md"
    assert page.read_text() == reasons.render(), "run `make reference`"
    proof = (ROOT / "docs/explanation/proof.md").read_text()
    assert [why.value for why in MissingReason if f"`{why.value}`" not in proof] == []


def _reasons() -> set[str]:
    """Whatever the code says as a reason."""
    source, found = ROOT / "src/autowasm", set()
    for file in source.rglob("*.py"):
        if file.relative_to(source).parts[0] in _NOT_ABOUT_AN_AUTOWASM:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            found |= _said(node)
    return found


def _said(node: ast.AST) -> set[str]:
    if isinstance(node, ast.keyword) and node.arg in {"reason", "not_found"}:
        return _words(node.value)
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = " ".join(map(ast.unparse, targets)).lower()
        if any(part in names for part in ("reason", "share_exceeded", "module_lost")):
            return _words(node.value)
    if isinstance(node, ast.Tuple) and len(node.elts) > 1:
        first = node.elts[0]
        if isinstance(first, ast.Constant) and first.value in {"True", "False", "Unknown"}:
            return _words(node.elts[1])
    return set()


def _words(node: ast.AST) -> set[str]:
    """Texts in CamelCase."""
    return {
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant)
        and isinstance(each.value, str)
        and re.fullmatch(r"([A-Z][a-z]+)+", each.value)
    }
