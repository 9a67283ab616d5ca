"""The cache of real parts: an entry is made once, whole, by one of all who want it."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.parts import cache


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOWASM_PARTS_CACHE", str(tmp_path / "cache"))


def test_the_environment_names_the_cache_then_xdg_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("AUTOWASM_PARTS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg" / "autowasm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / ".cache" / "autowasm"


def test_an_entry_is_made_once() -> None:
    made = []

    def fill(target: Path) -> None:
        made.append(target)
        (target / "part").write_text("whole")

    first = cache.install_once("group/entry", fill=fill)
    assert cache.install_once("group/entry", fill=fill) == first
    assert len(made) == 1
    assert (first / "part").read_text() == "whole"


def test_a_failed_attempt_leaves_nothing_behind_and_is_made_again() -> None:
    def fail(target: Path) -> None:
        (target / "half").touch()
        raise cache.PartError("no network")

    with pytest.raises(cache.PartError, match="no network"):
        cache.install_once("entry", fill=fail)
    assert [path.name for path in cache.cache_dir().iterdir()] == ["locks"]
    assert cache.install_once("entry", fill=lambda target: None).is_dir()


def test_of_several_processes_one_makes_the_entry_and_the_others_use_it(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, sys, time
        from tests.parts import cache

        def fill(target):
            with open(sys.argv[1], "a") as made:
                made.write(f"{os.getpid()}\\n")
            time.sleep(0.3)
            (target / "part").write_text("whole")

        print((cache.install_once("entry", fill=fill) / "part").read_text())
        """
    )
    made = tmp_path / "made"
    root = Path(__file__).parents[3]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, made],
            cwd=root,
            env=os.environ,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert [process.communicate(timeout=30)[0].strip() for process in processes] == ["whole"] * 4
    assert len(made.read_text().splitlines()) == 1


def test_a_command_that_fails_shows_its_whole_output() -> None:
    script = "import sys; print('on stdout'); print('on stderr', file=sys.stderr); sys.exit(3)"
    with pytest.raises(cache.PartError) as raised:
        cache.run([sys.executable, "-c", script], what="building it")
    for part in ("building it", "status 3", "on stdout", "on stderr"):
        assert part in str(raised.value)


def test_a_command_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(cache.PartError, match="no-such-program"):
        cache.run([tmp_path / "no-such-program"], what="building it")
