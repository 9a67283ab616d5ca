"""One process for each cache directory, by flock on a file in it.

Not a lock between tasks. Invariant: the kernel releases it when the process ends in whatever way, so a crash leaves no
stale lock; the file stays, because removing it would let two processes lock two different files.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from autowasm.errors import StorageError

_WIDTH: Final = 15
"""Characters for the process id: always as many, so that a full disk need not give a new block for them."""


class DirectoryLock:
    """Holds `path` locked from `acquire` to `release`. Blocking calls: run them in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int

    def acquire(self) -> None:
        """Raises StorageError (`CacheDirectoryInUse`) naming the holder's process id."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                raise StorageError(
                    f"the cache directory {self._path.parent} is in use by another process (pid {holder}): "
                    "end that one, or give this one a directory of its own with --cache-dir",
                    reason="CacheDirectoryInUse",
                ) from error
            with contextlib.suppress(OSError):  # a full disk: the number is for people only
                os.pwrite(fd, f"{os.getpid():<{_WIDTH}}\n".encode(), 0)
                os.ftruncate(fd, _WIDTH + 1)
            stack.pop_all()
        self._fd = fd

    def release(self) -> None:
        """Let others have the directory. Once, after `acquire`."""
        os.close(self._fd)
