"""Where the real parts are kept between runs, and how one is put there by exactly one process.

Not a package manager: an entry is a folder that is either absent or complete, and is never changed afterwards. What an
entry depends on (versions, flags) belongs in its name. Invariant: whoever sees the folder may use it, without a lock.
"""

import fcntl
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


class PartError(Exception):
    """A real part could not be built or installed. The message holds the output of what was tried."""


def cache_dir() -> Path:
    """The folder of all parts, outside of the checkout; made when absent."""
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
    """Hold the lock `name` of the cache among all processes and threads; waits for as long as another holds it.

    The lock ends with the process that holds it, however that ends.
    """
    locks = cache_dir() / "locks"
    locks.mkdir(exist_ok=True)
    with (locks / f"{name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("Another process is getting this part (%s): waiting for it.", name)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def install_once(entry: str, *, fill: Callable[[Path], None]) -> Path:
    """The complete folder `entry` (a relative path) of the cache; `fill` makes its content where it is absent.

    `fill` gets an empty folder beside the final place, which then appears under its name in one step. What `fill`
    raises reaches the caller, and nothing stays behind.
    """
    target = cache_dir() / entry
    if target.is_dir():
        return target
    with exclusive(entry.replace("/", "-")):
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            fill(staging)
            # mkdtemp makes the folder private; the finished entry is as readable as any other.
            staging.chmod(0o755)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def run(
    command: Sequence[str | Path],
    *,
    what: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run `command` to its end and return its standard output. `what` names the purpose in the error.

    Raises PartError with the whole output when the program is absent or fails.
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
        )
    except OSError as error:
        raise PartError(f"{what}: cannot run {words[0]}: {error}") from error
    if done.returncode != 0:
        raise PartError(
            f"{what}: `{' '.join(words)}` ended with status {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done.stdout
