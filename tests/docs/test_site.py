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
from autowasm.reasons import Reason
from tests.docs.blocks import ROOT
from tools.generate import menu
from tools.generate.pages import fields, reasons

_ABROAD = re.compile(
    r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//|<link[^>]*stylesheet[^>]*href="(?:https?:)?//'
)


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


def test_the_page_of_conditions_has_every_reason() -> None:
    page = ROOT / "docs/reference/conditions.md"
    assert page.read_text() == reasons.render(), "run `make reference`"
    proof = (ROOT / "docs/explanation/proof.md").read_text()
    assert [why.value for why in MissingReason if f"`{why.value}`" not in proof] == []


def test_every_reason_is_used_and_no_error_has_another_one() -> None:
    used, literals = set(), []
    for file in (ROOT / "src/autowasm").rglob("*.py"):
        text = file.read_text()
        used |= set(re.findall(r"\bReason\.([A-Z0-9_]+)\b", text))
        literals += [
            f"{file.name}:{node.lineno}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Raise) and _has_literal_reason(node)
        ]
    assert [one.name for one in Reason if one.name not in used] == []
    assert literals == []


def _has_literal_reason(node: ast.AST) -> bool:
    return any(
        isinstance(each, ast.keyword)
        and each.arg == "reason"
        and isinstance(each.value, ast.Constant)
        and isinstance(each.value.value, str)
        for each in ast.walk(node)
    )
