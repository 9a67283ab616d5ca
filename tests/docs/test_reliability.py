"""docs/reliability.md names each row of the fault suite, and no other."""

import ast
import re

from tests.docs.blocks import ROOT


def test_the_page_names_each_row_of_the_fault_suite_and_no_other() -> None:
    rows = {
        node.name
        for file in (ROOT / "tests/chaos").glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)
        and node.name.startswith("test_")
    }
    assert len(rows) > 25
    page = (ROOT / "docs/reliability.md").read_text()
    assert set(re.findall(r"`(test_\w+)`", page)) == rows


def test_the_page_names_files_that_exist() -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    files = re.findall(r"`(tests/[\w/]+\.py)`", page)
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []
