"""CodeCache: compiled modules on disk, by the module's digest and the engine that compiled them.

wasmtime executes loaded code without a check, so a file is used only if its bytes have the hash in its name. The hash detects
damage, not tampering: a process that can write to this directory controls wasmer's blobs, too. Modules cannot write to it: code
comes from children that compile and never run a module (`child.py`, ADR 36), and is hashed after such a child has ended.
Invariants: the files take at most the budget; the least recently used file is removed first; a name appears by renaming a
complete file. Files are not synced to disk: a file that a machine crash damages is detected, and its module compiled again.
"""

import asyncio
import contextlib
import functools
import hashlib
import os
import platform
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from autowasm.blobs.files import Blob, DamagedBlob, finish, is_storage_failure, open_verified
from autowasm.digest import Sha256Hex, Signature, sha256_hex
from autowasm.net.pools import Pools
from autowasm.sandbox import engine
from autowasm.telemetry.metrics import Metrics

ENGINE_VERSION: Final = f"wasmtime-{metadata.version('wasmtime')}-{engine.SETTINGS}"
"""Compiled modules with another value cannot be loaded. Part of the key of a cache, together with the type of the processor. Not in
`engine.py`: that would be a sixth of the time that the fork server takes to start."""

_SUFFIX: Final = ".cwasm"
_STAGED: Final = ".staged-"
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW

_log = structlog.get_logger(__name__)


def engine_tag() -> str:
    """A part of file names that identifies the machines and versions that can load code of this process."""
    name = f"{ENGINE_VERSION} {platform.machine()}"
    return hashlib.sha256(name.encode()).hexdigest()[:16]


class StagedCode(NamedTuple):
    """A new empty file, open for writing as `fd`. The caller closes `fd`, and passes it to `commit` or `discard`."""

    path: Path
    fd: int


@dataclass(slots=True, eq=False)
class _Entry:
    code: Sha256Hex
    size: int
    signature: Signature | None = None


class CodeCache:
    """The files in `directory`, which nothing else uses. `budget` in bytes. All methods raise OSError for a failure of the disk."""

    def __init__(self, directory: Path, *, budget: int, pools: Pools, metrics: Metrics) -> None:
        self._directory = directory
        self._budget = budget
        self._pools = pools
        self._metrics = metrics
        self._tag = engine_tag()
        self._entries: OrderedDict[Sha256Hex, _Entry] | None = None
        self._scanning = asyncio.Lock()
        self._total = 0

    async def get(self, sha256: Sha256Hex) -> Blob | None:
        """The verified code of the module `sha256`, or None. The file stays readable after it is evicted."""
        entries = await self._loaded()
        entry = entries.get(sha256)
        if entry is None:
            return None
        entries.move_to_end(sha256)
        path = self._path(sha256, entry.code)
        job = functools.partial(open_verified, path, entry.code, known=entry.signature)
        try:
            fd, signature = await finish(self._pools.disk, job, abandoned=self._close_later)
        except (DamagedBlob, OSError) as error:
            if isinstance(error, OSError) and is_storage_failure(error):
                raise
            _log.warning("compiled code is damaged", sha256=sha256, error=str(error))
            self._metrics.preflight_code_damaged.inc()
            await self.remove(sha256)
            return None
        entry.signature = signature
        return Blob.adopt(entry.code, fd, signature, closer=self._pools.closer)

    async def stage(self) -> StagedCode:
        """A new file for a child that compiles."""
        await self._loaded()
        job = functools.partial(_make_staged, self._directory)
        return await finish(self._pools.disk, job, abandoned=self._remove_later)

    async def commit(self, sha256: Sha256Hex, staged: StagedCode) -> Blob:
        """Keep the written file as the code of the module `sha256`. Code larger than the budget is returned, but not kept."""
        entries = await self._loaded()
        job = functools.partial(_open_hashed, staged.path)
        fd, code, signature = await finish(self._pools.disk, job, abandoned=self._close_later)
        blob = Blob.adopt(code, fd, signature, closer=self._pools.closer)
        if signature.size > self._budget:
            await self.discard(staged)
            return blob
        victims = self._make_room(entries, sha256, signature.size)
        entry = entries[sha256] = _Entry(code, signature.size)
        self._count(signature.size)
        moved = functools.partial(_move, staged.path, self._path(sha256, code), victims)
        try:
            await self._pools.disk.run(moved)
        except OSError:
            if entries.get(sha256) is entry:
                del entries[sha256]
                self._count(-entry.size)
            raise
        return blob

    async def discard(self, staged: StagedCode) -> None:
        """Remove a file that was not committed."""
        await self._pools.disk.run_shielded(_unlink, [staged.path])

    async def remove(self, sha256: Sha256Hex) -> None:
        """Forget the code of the module `sha256`."""
        entries = await self._loaded()
        entry = entries.pop(sha256, None)
        if entry is not None:
            self._count(-entry.size)
            await self._pools.disk.run_shielded(_unlink, [self._path(sha256, entry.code)])

    def _make_room(
        self, entries: OrderedDict[Sha256Hex, _Entry], sha256: Sha256Hex, size: int
    ) -> list[Path]:
        """Drop the old entry of `sha256`, and other entries until `size` fits. Returns their files."""
        victims = []
        old = entries.pop(sha256, None)
        if old is not None:
            self._count(-old.size)
            victims.append(self._path(sha256, old.code))
        while entries and self._total + size > self._budget:
            evicted, entry = entries.popitem(last=False)
            self._count(-entry.size)
            victims.append(self._path(evicted, entry.code))
        return victims

    def _close_later(self, opened: tuple[int, *tuple[object, ...]]) -> None:
        self._pools.closer.submit(opened[0])

    def _remove_later(self, staged: StagedCode) -> None:
        with contextlib.suppress(RuntimeError):  # the pool is closed: the next start removes it
            self._pools.disk.submit(_remove_staged, staged)

    def _count(self, change: int) -> None:
        self._total += change
        self._metrics.preflight_code_bytes.set(self._total)

    def _path(self, sha256: Sha256Hex, code: Sha256Hex) -> Path:
        return self._directory / f"{sha256}-{code}-{self._tag}{_SUFFIX}"

    async def _loaded(self) -> OrderedDict[Sha256Hex, _Entry]:
        """The entries; reads the directory the first time."""
        async with self._scanning:
            if self._entries is None:
                scan = functools.partial(_scan, self._directory, self._tag)
                found = await self._pools.disk.run(scan)
                self._entries = OrderedDict(found)
                self._count(sum(entry.size for entry in self._entries.values()))
                await self._shrink(self._entries)
            return self._entries

    async def _shrink(self, entries: OrderedDict[Sha256Hex, _Entry]) -> None:
        """Enforce the budget, which may be smaller than before the restart."""
        victims = []
        while entries and self._total > self._budget:
            evicted, entry = entries.popitem(last=False)
            self._count(-entry.size)
            victims.append(self._path(evicted, entry.code))
        await self._pools.disk.run_shielded(_unlink, victims)


def _scan(directory: Path, tag: str) -> list[tuple[Sha256Hex, _Entry]]:
    """The entries of this engine, oldest first. Everything else in `directory` is removed."""
    directory.mkdir(parents=True, exist_ok=True)
    found: list[tuple[int, Sha256Hex, _Entry]] = []
    for path in directory.iterdir():
        named = _parse(path.name, tag)
        if named is None:
            _unlink([path])
        else:
            sha256, code = named
            stat = path.lstat()
            found.append((stat.st_mtime_ns, sha256, _Entry(code, stat.st_size)))
    return [(sha256, entry) for _, sha256, entry in sorted(found, key=lambda item: item[:2])]


def _parse(name: str, tag: str) -> tuple[Sha256Hex, Sha256Hex] | None:
    """Digest of the module and hash of the code. None for a file that is not of this engine."""
    stem, dot, suffix = name.partition(".")
    try:
        sha256, code, engine = stem.split("-")
        return (
            (sha256_hex(sha256), sha256_hex(code))
            if (engine, dot + suffix) == (tag, _SUFFIX)
            else None
        )
    except ValueError:
        return None


def _make_staged(directory: Path) -> StagedCode:
    directory.mkdir(parents=True, exist_ok=True)  # another process may have removed it
    fd, name = tempfile.mkstemp(prefix=_STAGED, dir=directory)
    return StagedCode(Path(name), fd)


def _remove_staged(staged: StagedCode) -> None:
    os.close(staged.fd)
    _unlink([staged.path])


def _open_hashed(path: Path) -> tuple[int, Sha256Hex, Signature]:
    fd = os.open(path, _READ)
    try:
        with os.fdopen(os.dup(fd), "rb") as file:
            code = Sha256Hex(hashlib.file_digest(file, "sha256").hexdigest())
        return fd, code, Signature.of(fd)
    except BaseException:
        os.close(fd)
        raise


def _move(staged: Path, target: Path, victims: Sequence[Path]) -> None:
    _unlink(victims)
    staged.rename(target)


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            path.unlink()
