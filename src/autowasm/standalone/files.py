"""Files that others follow: written whole, by rename, and only if their bytes change.

Not a store. Invariant: a reader sees the old bytes or the new ones, never a part; a file that would not change keeps its
inode and its times, so Envoy is not told of a change that is none.
"""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from autowasm.errors import StorageError


def dump_yaml(document: Mapping[str, Any]) -> bytes:
    """Block style, keys in the order of the document, no aliases: equal documents give equal bytes."""
    return yaml.dump(
        dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000
    ).encode()


# libyaml's, where PyYAML has it (its wheels do): twice as fast.
class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_if_changed(path: Path, content: bytes) -> bool:
    """True if it was written. Blocks; raises StorageError."""
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
    """True if it was there. Blocks; raises StorageError."""
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
