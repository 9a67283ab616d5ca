"""The cache of the real parts between runs; exactly one process creates an entry.

Not a package manager: an entry is a folder that is either absent or complete, and is never changed afterwards. What an
entry depends on (versions, flags) belongs in its name. Invariant: a process that sees the folder may use it, without a lock.
"""

import fcntl
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)
_lock_log = log.getChild("lock")


FAILURES = "AUTOWASM_PARTS_FAILURES"
"""The environment variable with a folder in which the processes of one test run record failed builds and their errors."""
_OUTPUT_LINES = 40
_TICK_SECONDS = 60.0
_DEADLINE_SECONDS = 3600.0
"""For one command: ten times the slowest build on a busy machine with a slow network. A guard against hanging."""


class PartError(Exception):
    """A real part could not be built or installed. The message ends with the last lines of the output."""


class Absent(PartError):
    """The part is not in the cache; raised if it must not be built (`is_there`)."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is built or installed in one step; `seconds` is its usual time on two idle cores, for the progress message.

    Parts with the same `turn` are made one after another, even by different processes.
    """

    name: str
    what: str
    seconds: float
    turn: str = ""


on_use: list[Callable[[Part], None]] = []
"""Called with each part that this process requests, even if it is already in the cache."""

while_waiting: list[Callable[[], AbstractContextManager[object]]] = []
"""Entered while a thread of this process builds a part or waits for another process that does."""

_looking: ContextVar[bool] = ContextVar("looking", default=False)
_filling: ContextVar[bool] = ContextVar("filling", default=False)


def is_there(get: Callable[[], object]) -> bool:
    """Whether `get`, which requests parts, returns or fails at once. Builds nothing; False where `get` would have to build."""
    token = _looking.set(True)
    try:
        get()
    except Absent:
        return False
    except PartError:
        return True
    finally:
        _looking.reset(token)
    return True


def cache_dir() -> Path:
    """The folder of all parts, outside of the checkout; created if absent."""
    given = os.environ.get("AUTOWASM_PARTS_CACHE")
    if given:
        path = Path(given)
    else:
        base = os.environ.get("XDG_CACHE_HOME")
        path = (Path(base) if base else Path.home() / ".cache") / "autowasm"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def this_platform() -> str:
    """Part of every key of a compiled program: home directories are shared between machines."""
    return f"{platform.system()}-{platform.machine()}".lower()


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold the lock `name` of the cache, exclusively among all processes and threads; waits until it is free.

    The lock ends with the process that holds it, however that ends.
    """
    locks = cache_dir() / "locks"
    locks.mkdir(exist_ok=True)
    with (locks / f"{name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _lock_log.info("Waiting for another process, which is at work on %s.", name)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def install_once(entry: str, *, fill: Callable[[Path], None], part: Part | None = None) -> Path:
    """The complete folder `entry` (a relative path) of the cache; `fill` creates its content if it is absent.

    `fill` gets an empty folder beside the final place, which then appears under its name in one step. An error of `fill`
    reaches the caller, and no files remain. With `part`, the log reports that it is being made and for how long. Where
    FAILURES is set, a PartError of `fill` is raised again for each later caller, in every process of the run, so no
    caller waits for the same failure again.
    """
    if part and not _looking.get() and not _filling.get():
        for tell in on_use:
            tell(part)
    target = cache_dir() / entry
    if target.is_dir():
        return target
    if part:
        _raise_noted_failure(entry)
    if _looking.get():
        raise Absent(f"{entry} is not in {cache_dir()}")
    with _all(while_waiting), exclusive(entry.replace("/", "-")), _turn(part):
        if target.is_dir():
            return target
        if part:
            _raise_noted_failure(entry)
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        token = _filling.set(True)
        try:
            with progress(part) if part else nullcontext():
                fill(staging)
            # mkdtemp makes the folder private; the finished entry is as readable as any other.
            staging.chmod(0o755)
            staging.rename(target)
        except PartError as error:
            if part:
                _note_failure(entry, str(error))
            raise
        finally:
            _filling.reset(token)
            shutil.rmtree(staging, ignore_errors=True)
    return target


@contextmanager
def progress(part: Part) -> Iterator[None]:
    """Log that `part` is being made, how long that usually takes, and every minute how long it has taken."""
    usually = f"usually {duration(part.seconds)}"
    log.info("Getting %s (%s).", part.what, usually)
    begun = time.monotonic()
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(_TICK_SECONDS):
            elapsed = duration(time.monotonic() - begun)
            log.info("Still getting %s: %s so far (%s).", part.what, elapsed, usually)

    ticker = threading.Thread(target=tick, name=f"progress of {part.name}", daemon=True)
    ticker.start()
    try:
        yield
    except BaseException:
        log.info("Cannot get %s, after %s.", part.what, duration(time.monotonic() - begun))
        raise
    finally:
        ended.set()
        ticker.join()
    log.info("Got %s in %s.", part.what, duration(time.monotonic() - begun))


def duration(seconds: float) -> str:
    """A duration for people, such as `45 s` or `3 min 20 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return " ".join(
        text
        for text in (
            f"{minutes} min" if minutes else "",
            f"{rest} s" if rest or not minutes else "",
        )
        if text
    )


def _turn(part: Part | None) -> AbstractContextManager[None]:
    return exclusive(part.turn) if part and part.turn else nullcontext()


@contextmanager
def _all(makers: Sequence[Callable[[], AbstractContextManager[object]]]) -> Iterator[None]:
    if not makers:
        yield
        return
    with makers[0](), _all(makers[1:]):
        yield


def _remove_leftovers(target: Path) -> None:
    """Remove the incomplete files of a killed process. The caller holds the lock of the entry, so no other process works there."""
    leftover = re.compile(re.escape(f".{target.name}-") + "[a-z0-9_]{8}")
    for path in target.parent.iterdir():
        if leftover.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _failure_file(entry: str) -> Path | None:
    folder = os.environ.get(FAILURES)
    return Path(folder) / hashlib.sha256(bytes(cache_dir() / entry)).hexdigest() if folder else None


def _raise_noted_failure(entry: str) -> None:
    file = _failure_file(entry)
    if file:
        with suppress(FileNotFoundError):
            raise PartError(file.read_text())


def _note_failure(entry: str, message: str) -> None:
    file = _failure_file(entry)
    if file and file.parent.is_dir():
        file.write_text(message)


def run(
    command: Sequence[str | Path],
    *,
    what: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run `command` to its end and return its standard output. The error names the purpose, `what`.

    Raises PartError with the last lines of the output if the program is absent, fails or does not end within an hour.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_DEADLINE_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise PartError(
            f"{what}: `{' '.join(words)}` did not end in {duration(_DEADLINE_SECONDS)}"
        ) from error
    except OSError as error:
        raise PartError(f"{what}: cannot run {words[0]}: {error}") from error
    if done.returncode != 0:
        lines = f"{done.stdout}{done.stderr}".splitlines()[-_OUTPUT_LINES:]
        command_line = " ".join(words)
        raise PartError(
            "\n".join((f"{what}: `{command_line}` ended with status {done.returncode}", *lines))
        )
    return done.stdout
