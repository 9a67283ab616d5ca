"""`make mutants` on a project of one small module: which mutants survive, and what the run says of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import accepted, modules

MODULE = "src/autowasm/tiny.py"
SOURCE = """\
def is_adult(age: int) -> bool:
    return age >= 18
"""
TESTS = """\
from autowasm import tiny
from autowasm.tiny import is_adult


def test_age() -> None:
    assert tiny.is_adult is is_adult
    assert is_adult(30)
    assert is_adult(3) is False
"""
TEST_OF_THE_BOUNDARY = """

def test_boundary() -> None:
    assert is_adult(18)
    assert not is_adult(17)
"""
ACCEPTED = """\
[[accepted]]
module = "src/autowasm/tiny.py"
where = "is_adult"
before = 'return age >= 18'
after = 'return age > 18'
reason = "{reason}"
"""


class Project:
    def __init__(self, root: Path) -> None:
        self.root = root
        package = root / "src/autowasm"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (root / MODULE).write_text(SOURCE)
        self.tests = root / "tests/unit/test_tiny.py"
        self.tests.parent.mkdir(parents=True)
        self.tests.write_text(TESTS)
        shutil.copytree(modules.FILE.parent, root / "tests/mutants")
        self.accept("")
        listed = '[modules]\n"tiny" = ["tests/unit/test_tiny.py"]\n'
        (root / "tests/mutants/modules.toml").write_text(listed)

    def accept(self, text: str) -> None:
        (self.root / "tests/mutants/accepted.toml").write_text(text)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root / "src")},
            capture_output=True,
            text=True,
        )

    def mutants(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "tests.mutants", "--jobs=1", *arguments)

    def git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        subprocess.run(
            ["git", *identity, *arguments], cwd=self.root, check=True, capture_output=True
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_survivors_fail_the_run_unless_they_are_accepted_and_still_there(project: Project) -> None:
    project.accept(ACCEPTED.format(reason="Ages of 18 do not occur."))
    done = project.mutants("tiny")
    assert done.returncode == 1, done.stderr
    assert (
        f"{MODULE}:2: survivor in is_adult (NumberReplacer)\n- return age >= 18\n+ return age >= 19\n"
    ) in done.stdout
    assert "age > 18" not in done.stdout
    assert f"{MODULE}: 3 mutants, 0 killed, 1 accepted, 2 survived, 0 stale entries" in done.stdout

    project.tests.write_text(TESTS + TEST_OF_THE_BOUNDARY)
    done = project.mutants("tiny")
    assert done.returncode == 1
    assert "stale entry of accepted.toml in is_adult: no such survivor" in done.stdout
    assert "3 killed, 0 accepted, 0 survived, 1 stale entries" in done.stdout

    project.accept("")
    done = project.mutants("tiny")
    assert done.returncode == 0
    assert "3 killed, 0 accepted, 0 survived, 0 stale entries" in done.stdout


def test_tests_that_fail_without_a_mutant_fail_the_run(project: Project) -> None:
    project.tests.write_text(TESTS + "\n\ndef test_broken() -> None:\n    assert is_adult(17)\n")
    done = project.mutants("tiny")
    assert done.returncode == 1
    assert f"{MODULE}: its tests fail without a mutant" in done.stdout
    assert "assert is_adult(17)" in done.stdout


def test_mutants_that_compute_or_wait_without_end_are_killed(project: Project) -> None:
    """The first by its CPU time, the second by wall time."""
    script = f"""
import json
from tests.mutants.mutation import Mutant
from tests.mutants.running import Laboratory, Limits

laboratory = Laboratory(jobs=1)

def ended(body, **limits):
    source = f"import time\\ndef is_adult(age):\\n    {{body}}\\n    return age >= 18"
    mutant = Mutant("{MODULE}", "Test", "", 1, "", "", source)
    (outcome,) = laboratory.outcomes([mutant], ["tests/unit"], limits=Limits(**limits))
    return [outcome.survived, outcome.cpu > 0]

print(json.dumps([
    ended("while True: pass", cpu=1, wall=300),
    ended("time.sleep(600)", cpu=300, wall=2),
    ended("return None", cpu=300, wall=300),
    ended("pass", cpu=300, wall=300),
]))
"""
    done = project.python("-c", script)
    assert done.returncode == 0, done.stderr
    endless, waiting, wrong, same = json.loads(done.stdout.splitlines()[-1])
    survived, came_to_its_end = True, True
    assert endless == waiting == [not survived, not came_to_its_end]
    assert wrong == [not survived, came_to_its_end]
    assert same == [survived, came_to_its_end]


def test_entry_without_a_reason_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accepted\[1\]: give the reason for 'return age >= 18'"):
        accepted.read(ACCEPTED.format(reason=""))


def test_modules_that_differ_from_where_the_branch_left_main_are_examined(
    project: Project,
) -> None:
    def examined(base: str | None = None) -> list[str]:
        base = base or modules.default_base(root=project.root)
        return modules.changed(base, known=[MODULE, "src/autowasm/other.py"], root=project.root)

    project.git("init", "--initial-branch=main")
    project.git("add", ".")
    project.git("commit", "-m", "Begin")
    project.git("commit", "--allow-empty", "-m", "Go on")
    assert examined() == []
    project.git("switch", "--create", "topic")
    (project.root / MODULE).write_text(SOURCE.replace("18", "21"))
    assert examined() == [MODULE], "not committed yet"
    project.git("commit", "--all", "-m", "Raise the age")
    project.git("commit", "--allow-empty", "-m", "Go on")
    assert examined() == [MODULE]
    assert examined("HEAD~1") == []
    project.git("switch", "main")
    project.git("merge", "topic~1")
    assert examined() == [MODULE], "on main: the last commit"
    with pytest.raises(ValueError, match="cannot compare with nowhere"):
        examined("nowhere")
