"""Replaces whole files durably: a temporary file in the same file system, fsync, rename, fsync of the folder.

Invariants: a reader sees the old bytes or the new ones, never a part, also after a crash; a function that returns has made
its change durable; after an error before the rename the target is unchanged. All functions block and raise OSError.

Sources: POSIX `rename`, fsync(2) ("to ensure that the entry in the directory [...] has also reached disk").
"""

import contextlib
import os
from pathlib import Path


def write(path: Path, content: bytes, *, temporary: Path) -> None:
    """Replace `path` with a file that contains `content`. `temporary`: a name in the same folder; an existing file is removed."""
    temporary.unlink(missing_ok=True)  # of a process that was killed during a write
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_and_rename(source: Path, target: Path) -> None:
    """Rename `source` to `target`, in any folder of the same file system. Its bytes may still be in memory only."""
    with source.open("rb") as file:
        os.fsync(file.fileno())
    rename(source, target)


def rename(source: Path, target: Path) -> None:
    """Rename `source`, whose bytes are synced already, to `target`, in any folder of the same file system."""
    source.replace(target)
    sync_directory(target.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
