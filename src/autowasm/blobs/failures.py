"""What an error of the operating system means for the store, in words for a person.

Not a place for errors of content (`autowasm.errors.ContentRejected`). Invariant: "full" and "broken" stay apart, because
people do different things about them.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from autowasm.errors import StorageError

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_OURS: Final = _FULL | {errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ESTALE}


def storage_failure(error: OSError, directory: Path, doing: str) -> StorageError:
    """The StorageError for `error`, which came up while `doing` ("committing a blob") in `directory`."""
    if error.errno in _FULL:
        return StorageError(
            f"no space left in the cache directory {directory} while {doing}: make room on that volume, "
            "or give the program a larger one with --cache-dir",
            reason="StorageFull",
        )
    cause = error.strerror or str(error)
    if error.filename is not None and Path(error.filename) != directory:
        cause = f"{error.filename}: {cause}"
    return StorageError(
        f"the cache directory {directory} failed while {doing}: {cause}; check the volume and its permissions",
        reason="StorageUnavailable",
    )


def is_storage_failure(error: OSError) -> bool:
    """Whether `error` tells of the disk (or of descriptors) and not, say, of a connection that broke."""
    return error.errno in _OURS and not isinstance(error, ConnectionError)


@contextlib.contextmanager
def storage_errors(
    directory: Path, doing: str, *, among: Callable[[OSError], bool] = lambda _: True
) -> Iterator[None]:
    """Make the OSErrors of the block StorageErrors, those that are `among` what tells of the disk."""
    try:
        yield
    except OSError as error:
        if among(error):
            raise storage_failure(error, directory, doing) from error
        raise
