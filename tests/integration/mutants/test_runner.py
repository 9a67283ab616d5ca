"""`python -m tests.mutants` on a project of one small module: what it kills, what it reports, and when it fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

COUNTDOWN = """\
def countdown(start: int) -> int:
    steps = 0
    while start > 0:
        start -= 1
        steps += 1
    return steps
"""
CHECKS_ALL = """\
from autowasm.tiny import countdown


def test_countdown() -> None:
    assert countdown(3) == 3
    assert countdown(0) == 0
    assert countdown(-1) == 0
"""
CHECKS_LITTLE = CHECKS_ALL.replace("assert countdown(3) == 3", "countdown(3)")


class Project:
    """A copy of the runner beside one module and its test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._list = root / "tests/mutants"
        shutil.copytree(
            ROOT / "tests/mutants",
            self._list,
            ignore=shutil.ignore_patterns("*.toml", "__pycache__"),
        )
        self.write("src/autowasm/__init__.py", "")
        self.write("tests/mutants/modules.toml", '[modules]\ntiny = ["tests/test_tiny.py"]\n')
        self.accept("")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def module(self, source: str, *, test: str) -> None:
        self.write("src/autowasm/tiny.py", source)
        self.write("tests/test_tiny.py", test)

    def accept(self, entries: str) -> None:
        self.write("tests/mutants/accepted.toml", entries)

    def git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        subprocess.run(
            ["git", *identity, *arguments], cwd=self.root, check=True, capture_output=True
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """The exit status, and what is printed."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.mutants", "--jobs", "1", *arguments],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root / "src")},
            capture_output=True,
            text=True,
            timeout=100,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_run_passes_when_each_mutant_is_killed_even_one_that_never_ends(
    project: Project,
) -> None:
    # Without `start -= 1`, the loop never ends.
    project.module(COUNTDOWN, test=CHECKS_ALL)
    status, output = project.run("--in", "countdown", "tiny")
    assert "tiny.py: 12 mutants, 12 killed, 0 accepted, 0 survived, 0 stale entries" in output
    assert status == 0


SURVIVOR_SOURCE = "def larger(a: int, b: int) -> int:\n    return a if a > b else b\n"
SURVIVOR_TEST = """\
from autowasm.tiny import larger


def test_larger() -> None:
    assert (larger(1, 2), larger(2, 1), larger(2, 2)) == (2, 2, 2)
"""
ENTRY = """\
[[accepted]]
module = "src/autowasm/tiny.py"
where = "larger"
before = 'return a if a > b else b'
after = 'return a if a >= b else b'
reason = "{reason}"
"""


def test_a_survivor_fails_the_run_and_is_printed_with_line_operator_and_change(
    project: Project,
) -> None:
    project.module(SURVIVOR_SOURCE, test=SURVIVOR_TEST)
    status, output = project.run("--toml", "tiny")
    assert (
        "src/autowasm/tiny.py:2: survivor in larger (ReplaceComparisonOperator_Gt_GtE)\n"
        "- return a if a > b else b\n"
        "+ return a if a >= b else b\n"
    ) in output
    assert ENTRY.format(reason="") in output
    assert "1 survived" in output
    assert status == 1


def test_a_survivor_that_is_listed_with_a_reason_passes(project: Project) -> None:
    project.module(SURVIVOR_SOURCE, test=SURVIVOR_TEST)
    project.accept(ENTRY.format(reason="equal numbers are the same number"))
    status, output = project.run("tiny")
    assert "1 accepted, 0 survived, 0 stale entries" in output
    assert status == 0


def test_an_entry_without_a_reason_is_an_error(project: Project) -> None:
    project.module(SURVIVOR_SOURCE, test=SURVIVOR_TEST)
    project.accept(ENTRY.format(reason=" "))
    status, output = project.run("tiny")
    assert "give the reason for 'return a if a > b else b'" in output
    assert status == 2


def test_an_entry_whose_mutant_is_killed_fails_the_run(project: Project) -> None:
    project.module(
        SURVIVOR_SOURCE.replace("a > b", "a < b"),
        test=SURVIVOR_TEST.replace("2, 2, 2)", "1, 1, 2)"),
    )
    project.accept(ENTRY.format(reason="equal numbers are the same number"))
    status, output = project.run("tiny")
    assert "stale entry of accepted.toml in larger" in output
    assert "1 stale entries" in output
    assert status == 1


def test_tests_that_fail_without_a_mutant_are_reported_instead_of_counted_as_kills(
    project: Project,
) -> None:
    project.module(SURVIVOR_SOURCE, test=SURVIVOR_TEST.replace("(2, 2, 2)", "(0, 0, 0)"))
    status, output = project.run("tiny")
    assert "its tests fail without a mutant" in output
    assert "killed" not in output
    assert status == 1


def test_a_weak_test_lets_a_dropped_statement_survive(project: Project) -> None:
    project.module(COUNTDOWN, test=CHECKS_LITTLE)
    status, output = project.run("tiny")
    assert "tiny.py:5: survivor in countdown (StatementRemover)\n- steps += 1\n+ pass" in output
    assert status == 1


def test_without_names_only_modules_that_differ_from_the_previous_commit_or_main_are_run(
    project: Project,
) -> None:
    project.module(SURVIVOR_SOURCE, test=SURVIVOR_TEST)
    project.git("init", "--initial-branch=main")
    project.git("add", ".")
    project.git("commit", "-m", "one")
    project.write("README", "")
    project.git("add", ".")
    project.git("commit", "-m", "two")
    status, output = project.run()
    assert "No module of modules.toml differs from HEAD~1." in output
    assert status == 0

    project.git("switch", "-c", "branch")
    project.write("src/autowasm/tiny.py", f"{SURVIVOR_SOURCE}\n")
    project.git("commit", "-am", "three")
    project.write("README", "more")
    project.git("commit", "-am", "four")
    status, output = project.run()
    assert "tiny.py:2: survivor" in output
    assert status == 1
    status, output = project.run("--base", "HEAD~1")
    assert "No module of modules.toml differs from HEAD~1." in output
    assert status == 0


def test_a_module_that_is_not_listed_is_refused(project: Project) -> None:
    project.module(SURVIVOR_SOURCE, test=SURVIVOR_TEST)
    status, output = project.run("large")
    assert "large: not in tests/mutants/modules.toml" in output
    assert status == 2
