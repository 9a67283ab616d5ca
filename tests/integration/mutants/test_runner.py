"""`python -m tests.mutants` on a project of one small module: killed mutants, reports, and failures."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import modules

ROOT = Path(__file__).parents[3]

COUNTDOWN = """\
def countdown(left: list[str]) -> int:
    steps = 0
    while left:
        left.pop()
        steps += 1
    return steps
"""
CHECKS_ALL = """\
from autowasm.tiny import countdown


def test_countdown() -> None:
    assert countdown(["three", "two", "one"]) == 3
    assert countdown([]) == 0
"""
TINY = "src/autowasm/tiny.py"
IS_ADULT = "def is_adult(age: int) -> bool:\n    return age >= 18\n"
CHECKS_ADULT = """\
from autowasm.tiny import is_adult


def test_age() -> None:
    assert is_adult(30)
    assert is_adult(3) is False
"""
CHECKS_BOUNDARY = """

def test_boundary() -> None:
    assert is_adult(18)
    assert not is_adult(17)
"""
ACCEPTED_ADULT = """\
[[accepted]]
module = "src/autowasm/tiny.py"
where = "is_adult"
before = 'return age >= 18'
after = 'return age > 18'
reason = "Ages of 18 do not occur."
"""
DOUBLED = """\
def doubled(number: int) -> int:
    total = number
    total += number
    return total
"""
CHECKS_LITTLE = """\
from autowasm.tiny import doubled


def test_doubled() -> None:
    assert doubled(0) == 0
"""


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
        """The exit status of the runner, and its output."""
        return self.python("-m", "tests.mutants", "--jobs", "1", *arguments)

    def python(self, *arguments: str) -> tuple[int, str]:
        """The exit status, and the output."""
        done = subprocess.run(
            [sys.executable, *arguments],
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
    # Without `left.pop()`, the loop never ends.
    project.module(COUNTDOWN, test=CHECKS_ALL)
    status, output = project.run("--in", "countdown", "tiny")
    assert "tiny.py: 7 mutants, 7 killed, 0 accepted, 0 survived, 0 stale entries" in output
    assert status == 0


SURVIVOR_SOURCE = "def larger(a: int, b: int) -> int:\n    return a if a > b else b\n"
SURVIVOR_TEST = """\
from autowasm import tiny
from autowasm.tiny import larger


def test_larger() -> None:
    assert tiny.larger is larger
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


def test_survivors_fail_the_run_unless_they_are_accepted_and_still_there(project: Project) -> None:
    project.module(IS_ADULT, test=CHECKS_ADULT)
    project.accept(ACCEPTED_ADULT)
    status, output = project.run("tiny")
    assert status == 1, output
    assert (
        f"{TINY}:2: survivor in is_adult (NumberReplacer)\n- return age >= 18\n+ return age >= 19\n"
    ) in output
    assert "age > 18" not in output
    assert f"{TINY}: 3 mutants, 0 killed, 1 accepted, 2 survived, 0 stale entries" in output

    project.module(IS_ADULT, test=CHECKS_ADULT + CHECKS_BOUNDARY)
    status, output = project.run("tiny")
    assert status == 1
    assert "stale entry of accepted.toml in is_adult: no such survivor" in output
    assert "3 killed, 0 accepted, 0 survived, 1 stale entries" in output

    project.accept("")
    status, output = project.run("tiny")
    assert status == 0
    assert "3 killed, 0 accepted, 0 survived, 0 stale entries" in output


def test_an_entry_without_a_reason_is_an_error(project: Project) -> None:
    project.module(SURVIVOR_SOURCE, test=SURVIVOR_TEST)
    project.accept(ENTRY.format(reason=" "))
    status, output = project.run("tiny")
    assert "accepted[1]: give the reason for 'return a if a > b else b'" in output
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
    assert "src/autowasm/tiny.py: its tests fail without a mutant" in output
    assert "assert (larger(1, 2), larger(2, 1), larger(2, 2)) == (0, 0, 0)" in output
    assert "killed" not in output
    assert status == 1


def test_a_weak_test_lets_a_dropped_statement_survive(project: Project) -> None:
    project.module(DOUBLED, test=CHECKS_LITTLE)
    status, output = project.run("tiny")
    assert "tiny.py:3: survivor in doubled (StatementRemover)\n- total += number\n+ pass" in output
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


def test_mutants_that_compute_or_wait_without_end_are_killed(project: Project) -> None:
    """The first by its CPU time, the second by wall time."""
    project.module(IS_ADULT, test=CHECKS_ADULT)
    script = """
import json
from tests.mutants.mutation import Mutant
from tests.mutants.running import Laboratory, Limits

laboratory = Laboratory(jobs=1)

def ended(body, **limits):
    source = f"import time\\ndef is_adult(age):\\n    {body}\\n    return age >= 18"
    mutant = Mutant("src/autowasm/tiny.py", "Test", "", 1, "", "", source)
    (outcome,) = laboratory.outcomes([mutant], ["tests/test_tiny.py"], limits=Limits(**limits))
    return [outcome.survived, outcome.cpu > 0]

print(json.dumps([
    ended("while True: pass", cpu=1, wall=300),
    ended("time.sleep(600)", cpu=300, wall=2),
    ended("return None", cpu=300, wall=300),
    ended("pass", cpu=300, wall=300),
]))
"""
    status, output = project.python("-c", script)
    assert status == 0, output
    endless, waiting, wrong, same = json.loads(output.splitlines()[-1])
    survived, came_to_its_end = True, True
    assert endless == waiting == [not survived, not came_to_its_end]
    assert wrong == [not survived, came_to_its_end]
    assert same == [survived, came_to_its_end]


def test_modules_that_differ_from_where_the_branch_left_main_are_examined(
    project: Project,
) -> None:
    def examined(base: str | None = None) -> list[str]:
        base = base or modules.default_base(root=project.root)
        return modules.changed(base, known=[TINY, "src/autowasm/other.py"], root=project.root)

    project.module(IS_ADULT, test=CHECKS_ADULT)
    project.git("init", "--initial-branch=main")
    project.git("add", ".")
    project.git("commit", "-m", "Begin")
    project.git("commit", "--allow-empty", "-m", "Go on")
    assert examined() == []
    project.git("switch", "--create", "topic")
    project.write(TINY, IS_ADULT.replace("18", "21"))
    assert examined() == [TINY], "not committed yet"
    project.git("commit", "--all", "-m", "Raise the age")
    project.git("commit", "--allow-empty", "-m", "Go on")
    assert examined() == [TINY]
    assert examined("HEAD~1") == []
    project.git("switch", "main")
    project.git("merge", "topic~1")
    assert examined() == [TINY], "on main: the last commit"
    with pytest.raises(ValueError, match="cannot compare with nowhere"):
        examined("nowhere")
