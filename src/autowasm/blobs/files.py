"""File operations of the store: Blob, blocking functions for the disk pool, staging folders, and the errors of the disk.

A Blob is an open file whose bytes have been verified against its digest. It is not a path: the verified file is served, regardless of
the current content of the directory. The index of the store is in `store.py`; nothing in staging is ever served.
Invariants: a Blob's descriptor is open as long as a reference to the Blob exists, and is closed afterwards, so it is never the number
of another file; a name in `blobs/` appears only by rename of a file whose bytes were hashed and fsynced; every descriptor that is
opened here is passed on or closed; the result of a job goes to the caller or, if the caller was cancelled, to `abandoned`; a full
disk and a broken disk have different errors, because operators react differently; a staging folder is removed when its work ends, at
the latest by `tidy` or at the next start. Errors of content are `autowasm.errors.ContentRejected`.
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
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Final, NamedTuple, Self, TypeVar

from aiofiles import threadpool
from aiofiles.threadpool.binary import AsyncBufferedIOBase

from autowasm import atomicfile
from autowasm.digest import HashedFile, Sha256Hex, Signature, sha256_hex
from autowasm.errors import ContentRejected, StorageError
from autowasm.limits import MIB, StoreLimits
from autowasm.net.pools import Closer, Pool
from autowasm.reasons import Reason


class SyncedFile(NamedTuple):
    """A staged file that is synced to disk. Its digest is valid while the signature is the same."""

    sha256: Sha256Hex
    signature: Signature


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Blob:
    """A module's bytes, ready to send: `size` bytes from the start of descriptor `fd`."""

    sha256: Sha256Hex
    fd: int
    signature: Signature

    @property
    def size(self) -> int:
        """Bytes."""
        return self.signature.size

    def is_unchanged(self) -> bool:
        """Whether the file is still the one that was verified."""
        return Signature.of(self.fd) == self.signature

    def was_written(self) -> bool:
        """Whether the open file was written since it was verified. Its links do not count: it may be evicted while it is sent."""
        found = os.fstat(self.fd)
        known = self.signature
        return (found.st_size, found.st_mtime_ns) != (known.size, known.modified_ns)

    @classmethod
    def adopt(cls, sha256: Sha256Hex, fd: int, signature: Signature, *, closer: Closer) -> Self:
        """Take over `fd`. `closer` closes it: closing a removed file frees its pages, which takes milliseconds for a large file."""
        blob = cls(sha256, fd, signature)
        weakref.finalize(blob, closer.submit, fd)
        return blob


_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_OURS: Final = _FULL | {errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ESTALE}


def storage_failure(error: OSError, directory: Path, doing: str) -> StorageError:
    """The StorageError for `error`, which occurred while `doing` ("committing a blob") in `directory`."""
    if error.errno in _FULL:
        return StorageError(
            f"no space left in the cache directory {directory} while {doing}: free space on that volume, "
            "or use a larger one with --cache-dir",
            reason=Reason.STORAGE_FULL,
        )
    cause = error.strerror or str(error)
    if error.filename is not None and Path(error.filename) != directory:
        cause = f"{error.filename}: {cause}"
    return StorageError(
        f"the cache directory {directory} failed while {doing}: {cause}; check the volume and its permissions",
        reason=Reason.STORAGE_UNAVAILABLE,
    )


def is_storage_failure(error: OSError) -> bool:
    """Whether `error` is one of the disk or of descriptors, and not, for example, of a broken connection."""
    return error.errno in _OURS and not isinstance(error, ConnectionError)


@contextlib.contextmanager
def storage_errors(
    directory: Path, doing: str, *, among: Callable[[OSError], bool] = lambda _: True
) -> Iterator[None]:
    """Convert OSErrors of the block to StorageErrors, if `among` accepts them."""
    try:
        yield
    except OSError as error:
        if among(error):
            raise storage_failure(error, directory, doing) from error
        raise


T = TypeVar("T")


async def finish(pool: Pool, job: Callable[[], T], *, abandoned: Callable[[T], object]) -> T:
    """Like `pool.run`, but if the caller is cancelled while `job` runs, the result goes to `abandoned`, on the loop."""
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


@contextlib.asynccontextmanager
async def create(pool: Pool, path: Path) -> AsyncIterator[AsyncBufferedIOBase]:
    """The file `path`, empty and open for writing in `pool`; it is closed at exit. Raises OSError.

    `aiofiles.open` (25.1) would leave it open if it is cancelled while a thread opens it, and close it in asyncio's default
    executor.
    """
    opening = functools.partial(path.open, "wb")
    file = await finish(pool, opening, abandoned=BufferedWriter.close)
    try:
        yield threadpool.wrap(file, executor=pool.executor)
    finally:
        await pool.run_shielded(file.close)


_CHUNK: Final = MIB
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""NONBLOCK: if the name is a pipe by now, opening it must not block the thread forever."""


class DamagedBlob(Exception):
    """A stored file whose bytes do not have the digest in its name. The argument describes the actual content."""


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
    staging.mkdir(parents=True, exist_ok=True)  # it may have been removed from outside
    return Path(tempfile.mkdtemp(dir=staging))


def remove_tree(directory: Path) -> None:
    """Remove `directory` and its content. Files that cannot be removed are left to the next start."""
    shutil.rmtree(directory, ignore_errors=True)


def open_verified(
    path: Path, sha256: Sha256Hex, *, known: Signature | None
) -> tuple[int, Signature]:
    """Open `path` for sending. If its signature is `known`, read it into the page cache, otherwise hash it.

    Its pages are in memory afterwards in both cases. Raises DamagedBlob, FileNotFoundError and other OSErrors.
    """
    try:
        fd = os.open(path, _OPEN_FLAGS)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedBlob("is a symbolic link") from error
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
    # The signature is taken before hashing, so a change during hashing is detected afterwards.
    return fd, signature


def _require(fd: int, sha256: Sha256Hex) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise DamagedBlob("not a regular file")
    digest = _hash(fd)
    if digest != sha256:
        raise DamagedBlob(f"sha256:{digest}")


def verify(path: Path, sha256: Sha256Hex) -> Signature:
    """The check of `open_verified` alone."""
    fd, signature = open_verified(path, sha256, known=None)
    os.close(fd)
    return signature


def settle(
    staged: Path, expected: Sha256Hex | None, *, hashed: HashedFile | None = None
) -> SyncedFile:
    """Sync the bytes of `staged` to disk and hash them. `expected`: the digest that they must have, if there is one.

    `hashed`: the hash that was computed while the file was written. If the file is unchanged since, it is not read again.
    """
    fd = os.open(staged, _OPEN_FLAGS)
    try:
        return _settle(fd, expected, hashed=hashed)
    finally:
        os.close(fd)


def commit(staged: Path, target: Path, *, settled: SyncedFile | None) -> Signature:
    """Rename `staged` to `target`, durably, if its bytes have the digest `target.name`.

    `settled`: the result of `settle` for the same file. If the file is unchanged since, only the rename is left to do. Raises
    ContentRejected (`DigestMismatch`) and OSErrors; `target` is then unchanged.
    """
    fd = os.open(staged, _OPEN_FLAGS)
    try:
        if settled is None or settled != (target.name, Signature.of(fd)):
            _settle(fd, sha256_hex(target.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        atomicfile.rename(staged, target)
        return Signature.of(fd)
    finally:
        os.close(fd)


def _settle(fd: int, expected: Sha256Hex | None, *, hashed: HashedFile | None = None) -> SyncedFile:
    signature = Signature.of(fd)  # before hashing: a change during hashing is detected afterwards
    is_known = hashed is not None and hashed.signature == signature
    digest = hashed.sha256 if hashed is not None and is_known else _hash(fd)
    if expected is not None and digest != expected:
        raise ContentRejected(
            f"the bytes to store have sha256:{digest}, not sha256:{expected}",
            reason=Reason.DIGEST_MISMATCH,
        )
    os.fsync(fd)
    return SyncedFile(digest, signature)


def quarantine(path: Path, damaged: Path, *, kept: int) -> None:
    """Move `path` to `damaged` and keep only the `kept` newest files there."""
    damaged.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        target = path.replace(damaged / path.name)
        os.utime(target, follow_symlinks=False)  # its age counts from now
    _remove(sorted(damaged.iterdir(), key=_modified, reverse=True)[kept:])


def remove(path: Path) -> None:
    """Remove `path` if it is there."""
    path.unlink(missing_ok=True)


def remove_older(directory: Path, seconds: float, *, keep: frozenset[Path] = frozenset()) -> None:
    """Remove files in `directory`, except `keep`, that were not modified for that long by the time of day. They must be disposable."""
    limit = time.time() - seconds
    with contextlib.suppress(FileNotFoundError):  # another cleanup may have removed it
        _remove(
            path
            for path in directory.iterdir()
            if path not in keep and path.lstat().st_mtime <= limit
        )


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
    """Space to prepare one blob: `path` does not exist yet, is on the store's file system, and its folder is private."""

    path: Path


class Staging:
    """The work folders in `directory`, and the damaged files in `damaged`. All methods raise OSError."""

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
        with contextlib.suppress(RuntimeError):  # the pool is closed: the next start removes it
            self._disk.submit(remove_tree, folder)

    async def remove(self, folder: Path) -> None:
        """Remove a folder whose work has ended."""
        self._busy.discard(folder)
        await self._disk.run_shielded(remove_tree, folder)

    async def quarantine(self, path: Path) -> None:
        """Move a damaged file to the folder where operators can inspect it."""
        kept = self._limits.damaged_kept
        await self._disk.run(quarantine, path, self.damaged, kept=kept)

    async def tidy(self, *, pressed: bool) -> None:
        """Remove old folders without a running job, and old damaged files; if `pressed`, all damaged files."""
        age, keep = self._limits.staging_age, frozenset(self._busy)
        await self._disk.run(remove_older, self.directory, age, keep=keep)
        age = _ANY_AGE if pressed else self._limits.damaged_age
        await self._disk.run(remove_older, self.damaged, age)
