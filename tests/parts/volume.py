"""A small volume that a test can really fill up, and a program that uses it.

A tmpfs of a given size in a user and mount namespace that a holder process keeps (`unshare -rm`: no root needed). Programs
enter it by a command prefix, and the test reads it through /proc. On a machine that forbids such namespaces, the program's
own `os.mkdir` reports a full disk when the test requests it, and `real` is false.
"""

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.parts.process import Process, ProcessError

FORBID = "AUTOWASM_TEST_NO_NAMESPACES"
"""Environment variable: if set, tests behave as on a machine that forbids namespaces."""

_FILLER = "filler"
_BLOCK = b"\0" * 65_536
_SITECUSTOMIZE = """
import errno, os
_mkdir = os.mkdir
def mkdir(path, *arguments, **options):
    if {directory!r} in os.fspath(path) and os.path.exists({flag!r}):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    _mkdir(path, *arguments, **options)
os.mkdir = mkdir
"""


@dataclass(slots=True)
class Volume:
    """`directory` is its path for programs that run with `prefix` and `env`; `view` is its path for the test."""

    directory: Path
    view: Path
    real: bool
    prefix: Sequence[str] = ()
    env: Mapping[str, str] | None = None
    flag: Path = field(default=Path("/"))

    async def fill(self) -> None:
        """Fill every free block."""
        await asyncio.to_thread(self._fill)

    def _fill(self) -> None:
        if not self.real:
            self.flag.touch()
            return
        fd = os.open(self.view / _FILLER, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for block in (_BLOCK, b"\0"):
                _write_until_full(fd, block)
        finally:
            os.close(fd)

    async def free(self) -> None:
        """Release all of that."""
        await asyncio.to_thread((self.view / _FILLER if self.real else self.flag).unlink)


def _write_until_full(fd: int, block: bytes) -> None:
    while True:
        try:
            os.write(fd, block)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return


@asynccontextmanager
async def small_volume(directory: Path, *, size: int) -> AsyncIterator[Volume]:
    """A volume of `size` bytes at `directory`, which is created."""
    await asyncio.to_thread(directory.mkdir, parents=True)
    log = directory.with_name(f"{directory.name}-holder.log")
    ready = directory.with_name(f"{directory.name}-mounted")
    unshare, nsenter, shell = (shutil.which(name) for name in ("unshare", "nsenter", "sh"))
    if os.environ.get(FORBID) or not (unshare and nsenter and shell):
        yield _pretended(directory)
        return
    script = 'mount -t tmpfs -o "size=$1" none "$2" && touch "$3" && exec sleep 3600'
    command: list[str | Path] = [
        unshare,
        "-rm",
        shell,
        "-c",
        script,
        "sh",
        str(size),
        directory,
        ready,
    ]
    async with Process("volume holder", command, log=log) as holder:
        try:
            await holder.start(ready=lambda: asyncio.to_thread(ready.exists), timeout=60)
        except ProcessError:
            yield _pretended(directory)
            return
        enter = [nsenter, "-t", str(holder.pid), "-U", "-m", "--preserve-credentials", "--"]
        view = Path(f"/proc/{holder.pid}/root") / directory.relative_to("/")
        yield Volume(directory, view, real=True, prefix=enter)


def _pretended(directory: Path) -> Volume:
    flag = directory.with_name(f"{directory.name}-full")
    code = directory.with_name(f"{directory.name}-python")
    code.mkdir()
    text = _SITECUSTOMIZE.format(directory=str(directory), flag=str(flag))
    (code / "sitecustomize.py").write_text(text)
    env = {**os.environ, "PYTHONPATH": str(code)}
    return Volume(directory, directory, real=False, env=env, flag=flag)
