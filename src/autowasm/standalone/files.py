"""Files that Envoy follows: written whole, by rename, and only if their bytes change.

Invariant: a reader sees the old bytes or the new ones, never a part; an unchanged file keeps its inode and its times, so Envoy
does not reload it.
"""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autowasm.errors import StorageError
from autowasm.manifests import writer


def dump_yaml(document: Mapping[str, Any]) -> bytes:
    """As `manifests.writer.dump`, in UTF-8."""
    return writer.dump(document).encode()


def write_if_changed(path: Path, content: bytes) -> bool:
    """True if the file was written. Blocks; raises StorageError."""
    try:
        if path.is_file() and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with half.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    return True


def remove(path: Path) -> bool:
    """True if the file existed. Blocks; raises StorageError."""
    try:
        path.unlink()
        _sync_directory(path.parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"cannot remove {path}: {error.strerror or error}") from error
    return True


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
