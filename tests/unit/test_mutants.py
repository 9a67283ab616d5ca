"""The lists of `make mutants` name existing files and code, so a moved file is found before the next run of mutants."""

import ast
from collections.abc import Iterator

from tests.mutants import accepted, modules


def test_every_module_and_test_file_in_the_list_exists() -> None:
    assert modules.read(modules.FILE.read_text())


def test_every_accepted_survivor_is_of_a_module_in_the_list_and_of_code_that_is_there() -> None:
    known = modules.read(modules.FILE.read_text())
    for entry in accepted.read(accepted.FILE.read_text()):
        assert entry.module in known
        source = (modules.ROOT / entry.module).read_text()
        assert all(line in source for line in entry.before.splitlines()), entry.before
        assert entry.where in {"<module>", *_names(ast.parse(source))}, entry.where


def _names(node: ast.AST, prefix: str = "") -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name
            yield from _names(child, f"{prefix}{child.name}.")
        else:
            yield from _names(child, prefix)
