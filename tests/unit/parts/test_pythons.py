"""Interpreters of other Pythons: the machine's own first, each tried before it is used; the claimed versions are tested."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import pythons as command
from tests.parts import cache, pythons

ROOT = Path(__file__).parents[3]
RUNNING = "{}.{}".format(*sys.version_info)
ABSENT = "3.13" if RUNNING != "3.13" else "3.14"


@pytest.fixture(autouse=True)
def _bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bin", "pyenv", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("AUTOWASM_PARTS_CACHE", str(tmp_path / "cache"))


def program(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{says}\n")
    path.chmod(0o755)
    return path


def test_every_claimed_version_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    claimed = [
        found[1]
        for line in project["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    ]
    assert tuple(claimed) == pythons.VERSIONS
    assert project["requires-python"] == f">={pythons.VERSIONS[0]}"
    tox = re.search(r"py3\{([\d,]+)\}", (ROOT / "tox.ini").read_text())
    assert tox is not None
    assert tuple(f"3.{minor}" for minor in tox[1].split(",")) == pythons.VERSIONS
    image = re.search(r"python:(3\.\d+)\.", (ROOT / "Dockerfile").read_text())
    assert image is not None
    assert image[1] == pythons.IMAGE
    assert pythons.IMAGE in pythons.SUITES, "the image's Python is tested on every machine"


@pytest.mark.parametrize("version", pythons.VERSIONS)
def test_the_integration_tests_run_on_the_python_of_the_image(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[list[str]] = []

    def run(words: list[object], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append([str(word) for word in words])
        return subprocess.CompletedProcess([], 0)

    monkeypatch.setattr(command.subprocess, "run", run)
    monkeypatch.setattr(pythons, "environment", lambda *_, **__: tmp_path / "python")
    assert command.main([version]) == 0
    (words,) = ran
    folders = {word for word in words if word.startswith("tests/")}
    integration = {"tests/integration"} if version == pythons.IMAGE else set()
    assert folders == {"tests/unit", "tests/property"} | integration


@pytest.mark.parametrize("measured", [False, True])
def test_those_that_do_not_run_the_whole_suite_run_the_quick_tests(
    measured: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[str] = []

    def run(words: list[object], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(Path(str(words[0])).parent.name)
        return subprocess.CompletedProcess([], 0)

    monkeypatch.setattr(command.subprocess, "run", run)
    monkeypatch.setattr(command, "_running", lambda: "3.11")
    monkeypatch.setattr(
        command, "_environment", lambda version, *_, **__: tmp_path / version / "python"
    )
    monkeypatch.setenv("COVERAGE", "1" if measured else "")
    assert command.main([]) == 0
    assert ran == (["3.11", "3.12", "3.13"] if measured else ["3.12", "3.13", "3.14"])


def test_the_running_python_measures_where_the_better_one_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def environment(*_: object, **__: object) -> Path:
        raise cache.PartError("no mirror")

    monkeypatch.setattr(command, "_running", lambda: RUNNING)
    monkeypatch.setattr(command, "_MEASURING", ABSENT)
    monkeypatch.setattr(pythons, "environment", environment)
    assert command.main(["--measuring"]) == 0
    assert capsys.readouterr().out == f"{sys.executable}\n"


def test_the_running_interpreter_is_taken_for_its_version() -> None:
    assert pythons.interpreter(RUNNING) == Path(sys.executable).resolve()


def test_the_newest_of_pyenv_is_taken_and_a_broken_one_on_path_is_not(tmp_path: Path) -> None:
    program(tmp_path / "bin" / f"python{ABSENT}", "echo not active >&2; exit 127")
    program(tmp_path / "pyenv/versions" / f"{ABSENT}.1" / "bin/python", f"echo {ABSENT}")
    newest = program(tmp_path / "pyenv/versions" / f"{ABSENT}.2" / "bin/python", f"echo {ABSENT}")
    assert pythons.interpreter(ABSENT) == newest


def test_another_version_under_the_name_is_not_taken(tmp_path: Path) -> None:
    program(tmp_path / "bin" / f"python{ABSENT}", "echo 3.9")
    with pytest.raises(cache.PartError, match=f"install python{ABSENT}"):
        pythons.interpreter(ABSENT)


def test_the_mirror_is_the_one_of_the_machine(tmp_path: Path) -> None:
    lines = (
        "http://mirror.example/security/ bookworm-security main",
        "http://mirror.example/debian/ bookworm-updates main",
        "http://mirror.example/debian/ bookworm contrib",
        "http://mirror.example/debian/ bookworm main",
    )
    program(tmp_path / "bin/apt-get", "\n".join(f"echo {line}" for line in lines))
    source = pythons._source("trixie")
    assert "URIs: http://mirror.example/debian/\nSuites: trixie\n" in source
    assert "Signed-By:" in source
    program(tmp_path / "bin/apt-get", "true")
    with pytest.raises(cache.PartError, match="no mirror"):
        pythons._source("trixie")


def test_a_failed_installation_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(pythons, "_KEYRING", keyring)
    listing = "echo http://mirror.example/debian/ bookworm main"
    program(
        tmp_path / "bin/apt-get",
        f"case $* in *indextargets*) {listing};; *) echo no route >&2; exit 100;; esac",
    )
    with pytest.raises(cache.PartError, match="no route"):
        pythons.interpreter(ABSENT)
    left = [path.name for path in (tmp_path / "cache").iterdir()]
    assert left == ["locks"]


def test_a_version_that_is_named_has_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_ROOT", tmp_path)
    assert shutil.which("apt-get") is None
    assert command.main([ABSENT]) == 1
    assert f"install python{ABSENT}" in capsys.readouterr().err


def test_a_version_that_is_not_claimed_is_a_wrong_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        command.main(["3.9"])
    assert "not claimed by the project: 3.9" in capsys.readouterr().err
