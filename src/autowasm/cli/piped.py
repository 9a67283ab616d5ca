"""A module that comes out of a pipe, for commands that need a file: `-f -`, `/dev/stdin`, `<(build)`, a FIFO.

Not a check of the module. Invariants: at most `most` bytes are kept; a pipe is opened once, because the writer of a FIFO ends
with its first reader; the copy is gone when the command ends.
"""

import contextlib
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from autowasm.errors import ContentRejected, UsageError
from autowasm.units import format_size

STDIN: Final = Path("-")
_ALSO_STDIN: Final = frozenset(
    {STDIN, Path("/dev/stdin"), Path("/dev/fd/0"), Path("/proc/self/fd/0")}
)
_CHUNK: Final = 1 << 20


def is_stdin(path: Path) -> bool:
    """Whether it is read from standard input, under any of its names."""
    return path in _ALSO_STDIN


def is_piped(path: Path) -> bool:
    """Whether it can be read once only: standard input, unless it is a plain file, and any other pipe."""
    if path == STDIN:
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or (is_stdin(path) and not stat.S_ISREG(mode))


@contextlib.contextmanager
def as_file(flag: str, path: Path, *, most: int) -> Iterator[Path]:
    """`path`, or a temporary copy of all that comes out of it. Blocks until the writer has ended.

    Raises UsageError, naming the flag, if nothing can be read, ContentRejected beyond `most` bytes.
    """
    if not is_piped(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix=".wasmc-") as folder:
        target = Path(folder) / "module"
        try:
            with _opened(flag, path) as source, target.open("wb") as copy:
                if source.isatty():
                    raise UsageError(f"{flag} {path}: a terminal; pipe a module into the command")
                size = _copy(source, copy, most=most, name=str(path))
        except OSError as error:
            raise UsageError(f"{flag} {path}: {error.strerror or error}") from error
        if size == 0:
            raise UsageError(f"{flag} {path}: nothing came out of it")
        yield target


def standard_input(flag: str) -> BinaryIO:
    """Raises UsageError, naming the flag, if it is closed, which Python has as None."""
    if sys.stdin is None:
        raise UsageError(f"{flag}: standard input is closed")
    return sys.stdin.buffer


@contextlib.contextmanager
def _opened(flag: str, path: Path) -> Iterator[BinaryIO]:
    if path == STDIN:
        yield standard_input(f"{flag} {path}")
        return
    with path.open("rb", buffering=0) as source:
        yield source


def _copy(source: BinaryIO, target: BinaryIO, *, most: int, name: str) -> int:
    size = 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > most:
            raise ContentRejected(
                f"{name} gives more than the {format_size(most)} that are read", reason="TooLarge"
            )
        target.write(chunk)
    return size
