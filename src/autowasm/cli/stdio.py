"""Standard input, pipes and files of `-f` (`-`, `/dev/stdin`, `<(build)`, a FIFO, a folder); progress and replaced lines on a terminal.

Invariants: at most `most` bytes of a pipe are kept; a pipe is opened once, because the writer of a FIFO stops after its first
reader; the copy is removed when the command ends; the progress line is written only to a terminal and erased at the end of its
block; a LiveBlock erases only lines that it wrote, its last lines stay, and a pipe gets no control characters.
"""

import contextlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self, TextIO

from autowasm.errors import ContentRejected, UsageError
from autowasm.reasons import Reason
from autowasm.units import format_size

STDIN: Final = Path("-")
_ALSO_STDIN: Final = frozenset(
    {STDIN, Path("/dev/stdin"), Path("/dev/fd/0"), Path("/proc/self/fd/0")}
)
_CHUNK: Final = 1 << 20
_UP: Final = "\x1b[{}A"
_ERASE_DOWN: Final = "\r\x1b[J"
_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
_MAX_FILES: Final = 1_000


def is_stdin(path: Path) -> bool:
    """Whether `path` is standard input, under any of its names."""
    return path in _ALSO_STDIN


def is_piped(path: Path) -> bool:
    """Whether `path` can be read only once: a pipe, or standard input that is not a plain file."""
    if path == STDIN:
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or (is_stdin(path) and not stat.S_ISREG(mode))


@contextlib.contextmanager
def as_file(flag: str, path: Path, *, most: int) -> Iterator[Path]:
    """`path`, or a temporary copy of the data of a pipe. Blocks until the writer has ended.

    Raises UsageError, with the flag's name, if nothing can be read; ContentRejected for more than `most` bytes.
    """
    if not is_piped(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix=".wasmc-") as folder:
        target = Path(folder) / "module"
        try:
            with _opened(flag, path) as source, target.open("wb") as copy:
                if source.isatty():
                    raise UsageError(
                        f"{flag} {path}: is a terminal; pipe a module into the command"
                    )
                size = _copy(source, copy, most=most, name=str(path))
        except OSError as error:
            raise UsageError(f"{flag} {path}: {error.strerror or error}") from error
        if size == 0:
            raise UsageError(f"{flag} {path}: is empty")
        yield target


def standard_input(flag: str) -> BinaryIO:
    """Raises UsageError, with the flag's name, if it is closed (None in Python)."""
    if sys.stdin is None:
        raise UsageError(f"{flag}: standard input is closed")
    return sys.stdin.buffer


def is_coloured(stream: TextIO) -> bool:
    """Whether text on the stream is coloured.

    Text is coloured on a terminal unless NO_COLOR is set (https://no-color.org) or TERM is dumb. CLICOLOR_FORCE turns colours on
    everywhere (https://bixense.com/clicolors), except with NO_COLOR.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") not in {"", "0"}:
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


UNWRAPPED: Final = 1_000_000
"""Columns of a file or a pipe: no item is wrapped there, so that `grep` finds it."""
_COLUMNS, _LINES = 80, 24
"""Of a terminal that does not report its size."""


def width_of(stream: TextIO) -> int:
    """Columns: $COLUMNS, which shells do not export by themselves; else those of the terminal; UNWRAPPED for a file or a pipe."""
    given = _given("COLUMNS")
    if not given and not stream.isatty():
        return UNWRAPPED
    return given or _terminal_size(stream).columns or _COLUMNS


def height_of(stream: TextIO) -> int:
    """Lines of a terminal: $LINES, which shells do not export by themselves; else those of the terminal."""
    return _given("LINES") or _terminal_size(stream).lines or _LINES


def _given(variable: str) -> int:
    """A size in the environment; 0: none."""
    given = os.environ.get(variable, "")
    return int(given) if given.isdecimal() else 0


def _terminal_size(stream: TextIO) -> os.terminal_size:
    """0 for a value that the terminal does not report."""
    try:
        return os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return os.terminal_size((0, 0))


def fitted(width: int, *, least: int, most: int) -> int:
    """`width` within the bounds of a text, except UNWRAPPED."""
    return width if width >= UNWRAPPED else max(least, min(width, most))


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
                f"{name} has more than {format_size(most)}, the limit", reason=Reason.TOO_LARGE
            )
        target.write(chunk)
    return size


_WIDTH: Final = 24
_REDRAW_SECONDS: Final = 0.1
_ERASE: Final = "\r\x1b[K"


class Progress:
    """A line with bytes, share and rate: `with Progress(...) as progress: progress.advance(n)`.

    `total` in bytes, None if it is not known.
    """

    def __init__(self, label: str, *, total: int | None, stream: TextIO, quiet: bool) -> None:
        self._label = label
        self._total = total
        self._stream = stream
        self._shown = not quiet and stream.isatty()
        self._done = 0
        self._begun = time.monotonic()
        self._drawn = 0.0

    def __enter__(self) -> Self:
        self._draw()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown:
            self._stream.write(_ERASE)
            self._stream.flush()

    def advance(self, count: int) -> None:
        """Add `count` bytes."""
        self._done += count
        if time.monotonic() - self._drawn >= _REDRAW_SECONDS:
            self._draw()

    def _draw(self) -> None:
        if not self._shown:
            return
        self._drawn = time.monotonic()
        rate = self._done / max(self._drawn - self._begun, 0.001)
        width = width_of(self._stream) - 1  # some terminals begin a new line after the last column
        parts = [self._label, *self._amount(), f"{format_size(int(rate))}/s"]
        while len(parts) > 2 and len(" ".join(parts)) > width:
            del parts[1 if parts[1].startswith("[") else -1]
        self._stream.write(_ERASE + " ".join(parts)[:width])
        self._stream.flush()

    def _amount(self) -> list[str]:
        """The parts, those that a narrow terminal may omit first: the bar, then share and bytes."""
        if not self._total:
            return [format_size(self._done)]
        share = min(self._done / self._total, 1.0)  # retries count bytes again
        bar = "#" * round(share * _WIDTH)
        total = f"{format_size(self._done)} of {format_size(self._total)}"
        return [f"[{bar:<{_WIDTH}}]", f"{share:4.0%}", total]


class LiveBlock:
    """`show` replaces the previous text, on a terminal of at least this size and unless `is_plain`."""

    def __init__(self, stream: TextIO, *, width: int, height: int, is_plain: bool = False) -> None:
        self._stream = stream
        self._shown = ""
        columns, rows = self.size
        fits = columns >= width and rows >= height
        self.is_live = fits and not is_plain and stream.isatty()

    @property
    def size(self) -> tuple[int, int]:
        """Columns of the stream, and its rows except the cursor's."""
        return width_of(self._stream), height_of(self._stream) - 1

    def above(self, text: str) -> None:
        """Print a message that stays: above the block, or on standard error without a terminal."""
        if not self.is_live:
            print(text, file=sys.stderr, flush=True)
            return
        shown = self._erased()
        self._stream.write(f"{text}\n{shown}\n" if shown else f"{text}\n")
        self._stream.flush()

    def show(self, text: str) -> None:
        """Show `text`, which must fit the terminal in width and height. The same text is not written again."""
        if text == self._shown:
            return
        if self.is_live:
            self._erased()
        self._shown = text
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def _erased(self) -> str:
        """Move to where the block began, and erase it. Returns its text."""
        if self._shown:
            self._stream.write(_UP.format(self._shown.count("\n") + 1) + _ERASE_DOWN)
        return self._shown


def manifest_files(path: Path) -> list[Path]:
    """The file, or the YAML and JSON manifests of a folder in the order of their names, as kubectl reads them. Raises UsageError."""
    try:
        if path == STDIN or not path.is_dir():
            return [path]
        found = sorted(each for each in path.iterdir() if each.suffix in _SUFFIXES)
    except OSError as error:
        raise UsageError(f"-f {path}: {error.strerror}") from error
    if not found:
        raise UsageError(f"-f {path}: the folder has no *.yaml, *.yml or *.json files")
    if len(found) > _MAX_FILES:
        raise UsageError(f"-f {path}: more than {_MAX_FILES} files")
    return found


def manifest_content(path: Path, *, most: int) -> bytes:
    """The bytes of the file, or of standard input; one more than `most` bytes if it is larger. Raises UsageError."""
    if path == STDIN:
        return standard_input("-f -").read(most + 1)
    try:
        with path.open("rb") as file:  # opened once: it may be a pipe
            return file.read(most + 1)
    except OSError as error:
        raise UsageError(f"-f {path}: {error.strerror}") from error
