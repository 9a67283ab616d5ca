"""Missing real parts are built in the background while tests that do not need them run.

A pytest plugin. `tests/durations.json` has the parts that each file used when it was recorded. The main process
installs those of the selected files, one after another (`python -m tests.parts.provision`), and shows the
progress; the scheduler (`scheduling.py`) first hands out the files that need none of them. A file that is not
recorded builds a part at its first use. Invariants: build time does not count as test time; a failed build is
not retried, and each test that needs it fails with the compiler's last lines; no build outlives the run.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.parts import cache, provision

_LOG = "AUTOWASM_PARTS_LOG"
"""The environment variable with the file that every process of the run appends its progress to."""
_REFRESH_SECONDS = 0.5
PROPERTY = "parts"
"""The user property of a test's reports: names of the parts that it used."""


class Missing:
    """The parts that recorded files need and the cache lacks."""

    def __init__(self, parts: Mapping[str, tuple[str, ...]]) -> None:
        self._parts = parts
        self._absent: list[str] | None = None
        self._read = 0.0

    def of(self, files: Iterable[str]) -> list[str]:
        """The missing parts of all `files` together, in the order in which they are built."""
        wanted = {part for file in files for part in self._parts.get(file, ())}
        now = time.monotonic()
        if self._absent is None:
            self._absent = provision.absent(
                {part for all_ in self._parts.values() for part in all_}
            )
        elif self._absent and now - self._read > _REFRESH_SECONDS:
            self._absent = provision.absent(self._absent)
        else:
            return [part for part in self._absent if part in wanted]
        self._read = now
        return [part for part in self._absent if part in wanted]

    def rank(self, file: str) -> int:
        """0 if all parts of the file are installed; otherwise higher the later the last of them is built."""
        missing = self.of([file])
        return 1 + list(provision.PARTS).index(missing[-1]) if missing else 0


class Provisioner:
    """In the main process: at most one background process, and the lines that show its progress."""

    def __init__(self, missing: Missing) -> None:
        self._missing = missing
        self._folder = Path(tempfile.mkdtemp(prefix="autowasm-parts-"))
        self._log = self._folder / "progress.log"
        self._log.touch()
        failures = self._folder / "failures"
        failures.mkdir()
        self._environment = {_LOG: str(self._log), cache.FAILURES: str(failures)}
        self._before = {name: os.environ.get(name) for name in self._environment}
        os.environ.update(self._environment)
        self._process: subprocess.Popen[bytes] | None = None
        # While a test runs, pytest captures the standard output of this process.
        self._terminal = os.dup(1)
        self._ended = threading.Event()
        self._reader = threading.Thread(
            target=self._show, name="progress of the parts", daemon=True
        )
        self._reader.start()

    def start(self, files: Iterable[str]) -> None:
        """Start to build the missing parts of these files; returns at once."""
        missing = self._missing.of(files)
        if not missing or self._process:
            return
        command = [sys.executable, "-m", "tests.parts.provision", "--until-stdin-closes", *missing]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=Path(__file__).parents[1],
                # Its standard input ends with this process, however that ends.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A process group of its own, so the compilers end with it.
                start_new_session=True,
            )

    def end(self) -> None:
        """Stop the build."""
        if self._process:
            if self._process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if self._process.stdin:
                self._process.stdin.close()
        self._ended.set()
        self._reader.join()
        os.close(self._terminal)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(self._folder, ignore_errors=True)

    def _show(self) -> None:
        with self._log.open("rb") as log:
            while True:
                last = self._ended.wait(_REFRESH_SECONDS)
                lines = log.read().splitlines()
                if lines:
                    text = b"".join(b"parts: " + line + b"\n" for line in lines)
                    with suppress(OSError):
                        os.write(self._terminal, b"\n" + text)
                if last:
                    return


class Uses:
    """In a process that runs tests: records the parts that each test uses, itself or by a fixture that an earlier test has set up."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._by_fixture: dict[object, set[str]] = {}
        cache.on_use.append(self._use)

    def _use(self, part: cache.Part) -> None:
        if part.name in provision.PARTS:
            self._seen.add(part.name)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """The wait for recorded parts before a test (`Waiting`) does not count as a use."""
        self._seen = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
        """Every test with this fixture needs the parts that its set-up uses."""
        outer, self._seen = self._seen, set()
        try:
            return (yield)
        finally:
            self._by_fixture.setdefault(_key(fixturedef), set()).update(self._seen)
            self._seen |= outer

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        """Runs before the last report of the test is created."""
        try:
            return (yield)
        finally:
            used = set(self._seen)
            fixtures = (
                item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
            )
            for definitions in fixtures.values():
                for definition in definitions:
                    used |= self._by_fixture.get(_key(definition), set())
            if used:
                item.user_properties.append((PROPERTY, sorted(used)))

    def close(self) -> None:
        """Stop recording uses."""
        cache.on_use.remove(self._use)


def _key(fixture: pytest.FixtureDef[object]) -> tuple[str, str]:
    return fixture.baseid, fixture.argname


class Waiting:
    """In a process that runs tests: excludes builds, and waits for builds, from the time of a test."""

    def __init__(self, parts: Mapping[str, tuple[str, ...]]) -> None:
        self._parts = parts
        self._got: set[str] = set()
        self._lock = threading.Lock()
        self._test = 0
        self._threads = 0
        self._left = 0.0
        cache.while_waiting.append(self.paused)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the timer of pytest-timeout. Several threads may wait at once."""
        with self._lock:
            test = self._test
            self._threads += 1
            if self._threads == 1:
                self._left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            yield
        finally:
            with self._lock:
                # A thread may outlast its test; then the timer belongs to the next test.
                if test == self._test:
                    self._threads -= 1
                    if self._threads == 0 and self._left:
                        signal.setitimer(signal.ITIMER_REAL, self._left)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Before the test, its fixtures and its timer: wait for the parts that its file is known to need."""
        for name in self._parts.get(item.nodeid.partition("::")[0], ()):
            get = provision.PARTS.get(name)
            if get and name not in self._got:
                # The test that uses the part gets the same error, and fails with it.
                with suppress(cache.PartError):
                    get()
                    self._got.add(name)
        self._forget()
        try:
            return (yield)
        finally:
            self._forget()

    def _forget(self) -> None:
        with self._lock:
            self._test += 1
            self._threads = 0
            self._left = 0.0

    def close(self) -> None:
        """Stop reporting builds."""
        cache.while_waiting.remove(self.paused)


def log_of_the_run() -> str | None:
    """The file into which the processes of the run report builds; None outside of a run."""
    return os.environ.get(_LOG)


class Progress:
    """In every process of the run: sends its messages about parts to the log of the run."""

    def __init__(self, file: str) -> None:
        self._handler = logging.FileHandler(file)
        # Without messages of locks: while one process builds a part, all the others wait for it.
        self._handler.addFilter(lambda record: record.name == cache.log.name)
        self._logger = cache.log
        self._level = self._logger.level
        self._logger.addHandler(self._handler)
        self._logger.setLevel(logging.INFO)

    def close(self) -> None:
        """Stop sending them."""
        self._logger.removeHandler(self._handler)
        self._logger.setLevel(self._level)
        self._handler.close()
