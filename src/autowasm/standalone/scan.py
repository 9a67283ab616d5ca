"""One look at the files of the config directory. Blocks: for the disk pool.

Not the decision what a change means (`directory.py`). Invariant (ADR 7): a file that cannot be read or understood
now keeps what it defined last; only a file that is not there is missing from a scan; a directory that cannot be read
whole is an OSError, never a directory with fewer files.
"""

import errno
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autowasm.limits import Limits
from autowasm.standalone import documents
from autowasm.standalone.documents import Parsed

_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
FILES_MOST = 10_000
"""More is a directory that was not meant."""
_FRESH_NS = 1_000_000_000
"""File systems tell times in steps of up to a second: a file changed so lately may change again without showing it."""

_Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file as it was seen last."""

    stamp: _Stamp | None
    """What tells that it did not change; None: look again."""
    parsed: Parsed
    """What it defined when it could last be read."""
    problems: tuple[str, ...] = ()
    """What is wrong with it now."""
    ever_read: bool = True
    broken: bool = False
    """Whether it cannot be read or understood now."""


def scan(
    directory: Path, known: Mapping[Path, ConfigFile], *, limits: Limits
) -> dict[Path, ConfigFile]:
    """All files in order of their names; those that did not change since `known` are not read again. Raises OSError."""
    return {path: _read(path, known.get(path), limits) for path in _paths(directory)}


def identity(directory: Path) -> tuple[int, int]:
    """Tells a directory from another one of the same name. Raises OSError."""
    status = directory.stat()
    return status.st_dev, status.st_ino


def _paths(directory: Path) -> list[Path]:
    """Names that begin with a dot are half-written, or a ConfigMap's machinery."""
    paths = sorted(
        path
        for path in directory.iterdir()
        if path.suffix in _SUFFIXES and not path.name.startswith(".") and _may_be_file(path)
    )
    if len(paths) > FILES_MOST:
        # Reading the first so many would take the objects of the rest for deleted.
        raise OSError(errno.EFBIG, f"it holds more than {FILES_MOST} config files")
    return paths


def _may_be_file(path: Path) -> bool:
    """What cannot be looked at now is not taken for missing: `_read` says what is wrong with it."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _read(path: Path, known: ConfigFile | None, limits: Limits) -> ConfigFile:
    stamp: _Stamp | None = None
    try:
        status = path.stat()
        stamp = (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        if known is not None and known.stamp == stamp:
            return known
        if time.time_ns() - status.st_mtime_ns < _FRESH_NS:
            stamp = None
        with path.open("rb") as file:
            content = file.read(documents.file_bytes(limits) + 1)
        parsed = documents.parse(content, limits=limits)
    except OSError as error:
        stamp, parsed = None, Parsed(problems=[error.strerror or str(error)], broken=True)
    problems = tuple(parsed.problems)
    if not parsed.broken:
        return ConfigFile(stamp, parsed, problems)
    if known is None:
        return ConfigFile(stamp, Parsed(), problems, ever_read=False, broken=True)
    return ConfigFile(stamp, known.parsed, problems, ever_read=known.ever_read, broken=True)
