"""The cache of real parts: an entry is made once, whole, by one of the concurrent callers."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.parts import cache


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOWASM_PARTS_CACHE", str(tmp_path / "cache"))
    # The progress of these parts is not shown to the person who runs the tests.
    monkeypatch.setattr(cache.log, "handlers", [])


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


PART = cache.Part("one", "the part", 90)


def test_looking_for_a_part_builds_nothing() -> None:
    def get() -> Path:
        return cache.install_once("entry", fill=lambda target: None, part=PART)

    assert not cache.is_there(get)
    get()
    assert cache.is_there(get)


def test_requested_parts_are_reported_even_if_cached_without_those_of_their_builds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[str] = []
    monkeypatch.setattr(cache, "on_use", [lambda part: used.append(part.name)])
    compiler = cache.Part("compiler", "the compiler", 1)

    def fill(target: Path) -> None:
        cache.install_once("compiler", fill=lambda folder: None, part=compiler)

    for _ in range(2):
        cache.install_once("entry", fill=fill, part=PART)
    assert used == ["one", "one"]
    cache.is_there(lambda: cache.install_once("entry", fill=fill, part=PART))
    assert used == ["one", "one"]


def test_within_one_run_a_part_that_failed_is_not_tried_a_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[Path] = []

    def fail(target: Path) -> None:
        attempts.append(target)
        raise cache.PartError("undefined: x")

    def get() -> Path:
        return cache.install_once("entry", fill=fail, part=PART)

    monkeypatch.setenv(cache.FAILURES, str(tmp_path))
    for _ in range(3):
        with pytest.raises(cache.PartError, match="undefined: x"):
            get()
    assert len(attempts) == 1
    assert cache.is_there(get)  # nothing is left to wait for
    monkeypatch.delenv(cache.FAILURES)
    with pytest.raises(cache.PartError, match="undefined: x"):
        get()
    assert len(attempts) == 2


def test_partial_entry_of_a_killed_process_is_removed() -> None:
    leftover = cache.cache_dir() / "bin/.group-key-a1b2c3d4"
    other = cache.cache_dir() / "bin/.group-key-other-a1b2c3d4"
    for folder in (leftover, other):
        (folder / "half").mkdir(parents=True)
    cache.install_once("bin/group-key", fill=lambda target: None)
    assert not leftover.exists()
    assert other.exists()


def test_waiting_for_a_part_is_bracketed(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    @contextmanager
    def waiting() -> Iterator[None]:
        events.append("waits")
        yield
        events.append("goes on")

    monkeypatch.setattr(cache, "while_waiting", [waiting])
    for _ in range(2):
        cache.install_once("entry", fill=lambda target: events.append("builds"), part=PART)
    assert events == ["waits", "builds", "goes on"]


def test_progress_names_the_part_its_usual_time_and_its_actual_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", logger=cache.log.name)
    monkeypatch.setattr(cache, "_TICK_SECONDS", 0.01)

    def fill(target: Path) -> None:
        deadline = time.monotonic() + 30
        while "Still" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)

    cache.install_once("entry", fill=fill, part=PART)
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "Getting the part (usually 1 min 30 s)."
    assert messages[1] == "Still getting the part: 0 s so far (usually 1 min 30 s)."
    assert messages[-1].startswith("Got the part in ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (60, "1 min"), (200, "3 min 20 s")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert cache.duration(seconds) == text


def test_parts_of_one_turn_are_made_one_after_another() -> None:
    at_work: list[str] = []
    most: list[int] = []

    def make(name: str) -> None:
        def fill(target: Path) -> None:
            at_work.append(name)
            time.sleep(0.02)
            most.append(len(at_work))
            at_work.remove(name)

        cache.install_once(name, fill=fill, part=cache.Part(name, name, 1, turn="compiler"))

    with ThreadPoolExecutor() as pool:
        list(pool.map(make, ["a", "b", "c"]))
    assert most == [1, 1, 1]


def test_a_command_that_fails_shows_the_end_of_its_output() -> None:
    script = "import sys; print(*range(1000), sep='\\n'); sys.exit('undefined: x')"
    with pytest.raises(cache.PartError) as raised:
        cache.run([sys.executable, "-c", script], what="building it")
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("building it: ")
    assert lines[-2:] == ["999", "undefined: x"]
    assert len(lines) == 41


def test_a_command_that_fails_shows_its_output() -> None:
    script = "import sys; print('on stdout'); print('on stderr', file=sys.stderr); sys.exit(3)"
    with pytest.raises(cache.PartError) as raised:
        cache.run([sys.executable, "-c", script], what="building it")
    for part in ("building it", "status 3", "on stdout", "on stderr"):
        assert part in str(raised.value)


def test_a_command_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_DEADLINE_SECONDS", 0.1)
    with pytest.raises(cache.PartError, match=r"building it: .* did not end in"):
        cache.run([sys.executable, "-c", "import time; time.sleep(600)"], what="building it")


def test_a_command_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(cache.PartError, match="no-such-program"):
        cache.run([tmp_path / "no-such-program"], what="building it")
