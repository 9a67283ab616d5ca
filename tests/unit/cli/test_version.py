"""`--version` names the commit and the build date of a package, and the commit of a checkout."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from autowasm.cli import version

VERSION = metadata.version("autowasm")


def _stamp(monkeypatch: pytest.MonkeyPatch, commit: str) -> None:
    build = ModuleType("autowasm._build")
    build.COMMIT, build.DATE = commit, "2026-11-27"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "autowasm._build", build)


def _no_program(*_: object, **__: object) -> None:
    raise AssertionError("a program is started")


def test_version_of_a_package_is_its_stamp_and_needs_no_subprocess(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "run", _no_program)
    _stamp(monkeypatch, "94610a8f1c2d")
    assert version.describe("wasmc") == f"wasmc {VERSION} (commit 94610a8f1c2d, built 2026-11-27)"
    _stamp(monkeypatch, "")
    assert version.describe("wasmer") == f"wasmer {VERSION} (built 2026-11-27)"


def _git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    done = subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_version_of_a_checkout_has_its_commit_and_a_dirty_mark(tmp_path: Path) -> None:
    assert version._checkout_commit(tmp_path) == "", "no repository"
    _git(tmp_path, "init", "--quiet")
    assert version._checkout_commit(tmp_path) == "", "no commit"
    (tmp_path / "file").write_text("one")
    _git(tmp_path, "add", "file")
    _git(tmp_path, "commit", "--quiet", "--message=one")
    commit = _git(tmp_path, "rev-parse", "HEAD")[:12]
    (tmp_path / "untracked").touch()
    assert version._checkout_commit(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert version._checkout_commit(tmp_path) == f"{commit}-dirty"


def test_checkout_without_git_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    assert version._checkout_commit(tmp_path) == "", "not a repository that git can read"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert version._checkout_commit(tmp_path) == ""
