"""What an error of the operating system means for the store, in words for a person.

Not a place for errors of content (`autowasm.errors.ContentRejected`). Invariant: "full" and "broken" stay apart, because
people do different things about them.

finish(): a blocking job whose result is never lost.

Not a pool (`net/pools.py`). Invariant: what a job made is handed to somebody, even when the one who asked was cancelled.

What the store does to files: blocking functions, each for one job in the disk pool.

Not a place for state. Invariants: a name in `blobs/` appears only by rename of a file whose bytes were hashed and
fsynced; every descriptor opened here is handed over or closed.

Staging: folders for work in progress, and what is left of them.

Not the store: nothing here is ever served. Invariant: a folder is removed when its work ends, and at the latest by `tidy`
or the next start.
"""

import asyncio
import contextlib
import errno
import functools
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from autowasm.blobs.blob import Signature, SyncedFile
from autowasm.digest import Sha256Hex, sha256_hex
from autowasm.errors import ContentRejected, StorageError
from autowasm.limits import MIB, StoreLimits
from autowasm.net.pools import Pool

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


T = TypeVar("T")


async def finish(pool: Pool, job: Callable[[], T], *, abandoned: Callable[[T], object]) -> T:
    """As `pool.run`, but when we are cancelled while `job` runs on, its result goes to `abandoned`, on the loop."""
    loop = asyncio.get_running_loop()
    future = pool.submit(job)

    def late(done: Future[T]) -> None:
        if not done.cancelled() and done.exception() is None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(abandoned, done.result())

    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        future.add_done_callback(late)
        raise


_CHUNK: Final = MIB
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""NONBLOCK: should the name be a pipe by now, opening it must not hold the thread for ever."""


class DamagedBlob(Exception):
    """A stored file whose bytes do not have the digest that is its name. The argument says what they have instead."""


def scan(directory: Path) -> tuple[dict[Sha256Hex, int], list[str]]:
    """Sizes of the blobs in `directory`, and the names in it that are not blobs."""
    blobs: dict[Sha256Hex, int] = {}
    foreign: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            size = entry.stat(follow_symlinks=False).st_size
            try:
                sha256 = sha256_hex(entry.name)
            except ValueError:
                foreign.append(entry.name)
                continue
            if entry.is_file(follow_symlinks=False):
                blobs[sha256] = size
            else:
                foreign.append(entry.name)
    return blobs, foreign


def clear(directory: Path) -> None:
    """Remove everything in `directory`."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def make_workspace(staging: Path) -> Path:
    """A new private directory in `staging`."""
    staging.mkdir(parents=True, exist_ok=True)  # somebody may have cleaned up under us
    return Path(tempfile.mkdtemp(dir=staging))


def remove_tree(directory: Path) -> None:
    """Remove `directory` and all in it; what cannot be removed is left to the next start."""
    shutil.rmtree(directory, ignore_errors=True)


def open_verified(
    path: Path, sha256: Sha256Hex, *, known: Signature | None
) -> tuple[int, Signature]:
    """Open `path` for sending. Unless its signature is `known`, hash it; if it is, read it into the page cache.

    Either way its pages are in memory afterwards. Raises Damaged, FileNotFoundError and other OSErrors.
    """
    try:
        fd = os.open(path, _OPEN_FLAGS)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedBlob("a symbolic link") from error
        raise
    try:
        signature = Signature.of(fd)
        if signature == known:
            _read_ahead(fd, signature.size)
        else:
            _require(fd, sha256)
    except BaseException:
        os.close(fd)
        raise
    # Taken before hashing: a change during it shows as one afterwards.
    return fd, signature


def _require(fd: int, sha256: Sha256Hex) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise DamagedBlob("no regular file")
    digest = _hash(fd)
    if digest != sha256:
        raise DamagedBlob(f"sha256:{digest}")


def verify(path: Path, sha256: Sha256Hex) -> Signature:
    """As open_verified, for the check alone."""
    fd, signature = open_verified(path, sha256, known=None)
    os.close(fd)
    return signature


def settle(staged: Path, expected: Sha256Hex | None) -> SyncedFile:
    """Bring the bytes of `staged` to the disk, and see which digest they have: the `expected` one, if any.

    Raises ContentRejected (`DigestMismatch`) and OSErrors.
    """
    fd = os.open(staged, _OPEN_FLAGS)
    try:
        return _settle(fd, expected)
    finally:
        os.close(fd)


def commit(staged: Path, target: Path, *, settled: SyncedFile | None) -> Signature:
    """Give `staged` its final name if its bytes have the digest `target.name`, durably.

    `settled`: what `settle` said of the same file; if that is still so, only the name is missing. Raises ContentRejected
    (`DigestMismatch`) and OSErrors; `target` is then what it was.
    """
    fd = os.open(staged, _OPEN_FLAGS)
    try:
        if settled is None or settled != (target.name, Signature.of(fd)):
            _settle(fd, sha256_hex(target.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(target)
        sync_directory(target.parent)
        return Signature.of(fd)
    finally:
        os.close(fd)


def _settle(fd: int, expected: Sha256Hex | None) -> SyncedFile:
    signature = Signature.of(fd)  # taken before hashing: a change during it shows as one afterwards
    digest = _hash(fd)
    if expected is not None and digest != expected:
        raise ContentRejected(
            f"the bytes to store have sha256:{digest}, not sha256:{expected}",
            reason="DigestMismatch",
        )
    os.fsync(fd)
    return SyncedFile(digest, signature)


def set_aside(path: Path, damaged: Path, *, kept: int) -> None:
    """Move `path` into `damaged`, of which only the `kept` newest files stay."""
    damaged.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        target = path.replace(damaged / path.name)
        os.utime(target, follow_symlinks=False)  # its age counts from now
    _remove(sorted(damaged.iterdir(), key=_modified, reverse=True)[kept:])


def remove(path: Path) -> None:
    """Remove `path` if it is there."""
    path.unlink(missing_ok=True)


def remove_older(directory: Path, seconds: float, *, keep: frozenset[Path] = frozenset()) -> None:
    """Remove what was not touched for so long, by the clock on the wall, but for `keep`. Nothing of worth is in `directory`."""
    limit = time.time() - seconds
    with contextlib.suppress(FileNotFoundError):  # somebody else tidies up too
        _remove(
            path
            for path in directory.iterdir()
            if path not in keep and path.lstat().st_mtime <= limit
        )


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _modified(path: Path) -> int:
    return path.lstat().st_mtime_ns


def _hash(fd: int) -> Sha256Hex:
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    offset = 0
    while count := os.preadv(fd, [buffer], offset):
        digest.update(view[:count])
        offset += count
    return Sha256Hex(digest.hexdigest())


def _read_ahead(fd: int, size: int) -> None:
    os.posix_fadvise(fd, 0, size, os.POSIX_FADV_WILLNEED)
    buffer = bytearray(_CHUNK)
    offset = 0
    while count := os.preadv(fd, [buffer], offset):
        offset += count


_ANY_AGE: Final = float("-inf")


@dataclass(frozen=True, slots=True)
class Stage:
    """Room to prepare one blob: `path` does not exist yet and is on the store's file system; its folder is private."""

    path: Path


class Staging:
    """The folders in `directory`, and the damaged files in `damaged`. All methods raise OSError."""

    def __init__(self, directory: Path, damaged: Path, *, disk: Pool, limits: StoreLimits) -> None:
        self.directory = directory
        self.damaged = damaged
        self._disk = disk
        self._limits = limits
        self._busy: set[Path] = set()

    async def make(self) -> Path:
        """A new private folder."""
        job = functools.partial(make_workspace, self.directory)
        folder = await finish(self._disk, job, abandoned=self._remove_later)
        self._busy.add(folder)
        return folder

    def _remove_later(self, folder: Path) -> None:
        self._disk.submit(remove_tree, folder)

    async def remove(self, folder: Path) -> None:
        """The work in it has ended."""
        self._busy.discard(folder)
        await self._disk.run(remove_tree, folder)

    async def set_aside(self, path: Path) -> None:
        """Move a damaged file to where people find it."""
        kept = self._limits.damaged_kept
        await self._disk.run(set_aside, path, self.damaged, kept=kept)

    async def tidy(self, *, pressed: bool) -> None:
        """Remove old folders that nobody works in, and old damaged files; `pressed`: all damaged files."""
        age, keep = self._limits.staging_age, frozenset(self._busy)
        await self._disk.run(remove_older, self.directory, age, keep=keep)
        age = _ANY_AGE if pressed else self._limits.damaged_age
        await self._disk.run(remove_older, self.damaged, age)
