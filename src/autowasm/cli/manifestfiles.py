"""The files of `-f`: a file, standard input, or the YAML and JSON files of a folder."""

from pathlib import Path
from typing import Final

from autowasm.cli.stdio import STDIN, standard_input
from autowasm.errors import UsageError

_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
_MAX_FILES: Final = 1_000


def files(path: Path) -> list[Path]:
    """The file, or the YAML and JSON files of a folder in the order of their names, as kubectl reads one. Raises UsageError."""
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


def content(path: Path, *, most: int) -> bytes:
    """The bytes of the file, or of standard input; one more than `most` bytes if it is larger. Raises UsageError."""
    if path == STDIN:
        return standard_input("-f -").read(most + 1)
    try:
        with path.open("rb") as file:  # opened once: it may be a pipe
            return file.read(most + 1)
    except OSError as error:
        raise UsageError(f"-f {path}: {error.strerror}") from error
