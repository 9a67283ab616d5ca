"""ConfigDirectory: the AutoWasm and Secret documents in a directory, which is watched for changes.

`mode.py` provides them to the reconciler. Invariants (ADR 7): while a file cannot be read or parsed, or the directory is missing,
the last definitions stay; only the removal of a file removes its objects; a directory that cannot be read completely is an
OSError, never a directory with fewer files; a change counts only after a second scan confirms it.
"""

import asyncio
import contextlib
import errno
import os
import stat
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import structlog
import watchfiles

from autowasm.errors import UsageError
from autowasm.kube.resources import ObjectKey
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.standalone import documents
from autowasm.standalone.documents import Parsed, Secret
from autowasm.telemetry.metrics import Metrics

_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
MAX_FILES = 10_000
"""A directory with more files is the wrong directory."""
_FRESH_NS = 1_000_000_000
"""File systems have timestamps in steps of up to a second: a file that was changed this recently may change again unnoticed."""

_Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The last known state of a file."""

    stamp: _Stamp | None
    """Changes when the file changes; None: read it again."""
    parsed: Parsed
    """The definitions of the file when it was last readable."""
    problems: tuple[str, ...] = ()
    """Errors in the file now."""
    ever_read: bool = True
    broken: bool = False
    """Whether the file cannot be read or parsed now."""


def scan(
    directory: Path, known: Mapping[Path, ConfigFile], *, limits: Limits
) -> dict[Path, ConfigFile]:
    """All files in the order of their names; unchanged ones are taken from `known`. Blocks. Raises OSError."""
    return {path: _read(path, known.get(path), limits) for path in _paths(directory)}


def identity(directory: Path) -> tuple[int, int]:
    """The identity of the directory: another directory of the same name has a different one. Blocks. Raises OSError."""
    status = directory.stat()
    return status.st_dev, status.st_ino


def _paths(directory: Path) -> list[Path]:
    """Skips names that begin with a dot: they are incomplete files, or parts of a ConfigMap volume."""
    paths = sorted(
        path
        for path in directory.iterdir()
        if path.suffix in _SUFFIXES and not path.name.startswith(".") and _may_be_file(path)
    )
    if len(paths) > MAX_FILES:
        # Reading only the first files would delete the objects of the others.
        raise OSError(errno.EFBIG, f"more than {MAX_FILES} config files")
    return paths


def _may_be_file(path: Path) -> bool:
    """A file that cannot be accessed now is not missing; `_read` reports the error."""
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


_log = structlog.get_logger(__name__)

_RESCAN_MS = 5_000
"""The interval of scans, for file systems that report no changes (network shares, some containers)."""
_DEBOUNCE_MS = 100
"""Changes within this time cause one scan: editors write several times, `kubectl`-like tools several files."""
_LOST_PAUSE = 1.0
"""Seconds until the next attempt for a directory that is lost or cannot be watched."""
_CONFIRM_AFTER = 0.3
"""Seconds until a change is scanned again. Editors move a file away and write a new one of its name; a rename can hide
a file from a listing; half of a file may be valid YAML (`image: a/b:v1` is half of `a/b:v1.2`)."""
_MAX_SCANS = 10
"""Scans while the content changes between them. After these the content counts as it is; otherwise one busy file would block all others."""


@dataclass(frozen=True, slots=True)
class Defined:
    """One object, and the file that defines it.

    `problem`: why the file cannot be read now, as a sentence; `object` is then the last definition.
    """

    object: Mapping[str, Any]
    file: Path
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class DuplicateObject:
    """An object that is defined more than once: none of the definitions counts."""

    files: tuple[Path, ...]


class ChangeHandler(Protocol):
    """Receives the changes of the directory."""

    def changed(self, key: ObjectKey) -> None:
        """An AutoWasm was added, changed or removed."""

    def secret_changed(self, key: ObjectKey) -> None:
        """A Secret was added, changed or removed."""

    def reread(self) -> None:
        """The files that could not be read since the start changed, or their errors did."""


@dataclass(slots=True)
class _View:
    objects: dict[ObjectKey, Defined | DuplicateObject] = field(default_factory=dict)
    secrets: dict[ObjectKey, Secret] = field(default_factory=dict)
    secrets_twice: dict[ObjectKey, Path] = field(default_factory=dict)
    """The file with the definition that counts, the last one."""


class ConfigDirectory:
    """Call `load` once, then `run`, which never returns."""

    def __init__(
        self, path: Path, *, limits: Limits, pools: Pools, metrics: Metrics | None = None
    ) -> None:
        self._path = path
        self._metrics = metrics
        self._limits = limits
        self._disk = pools.disk
        self._files: dict[Path, ConfigFile] = {}
        self._view = _View()
        self._problem: str | None = None

    async def check(self) -> None:
        """Raises UsageError if the directory does not exist or cannot be read."""
        try:
            await self._disk.run(os.listdir, self._path)
        except OSError as error:
            raise UsageError(
                f"--config {self._path}: cannot be read: {error.strerror or error}"
            ) from error

    async def load(self) -> None:
        """First scan. Raises UsageError if the directory cannot be read: it never counts as empty."""
        try:
            files = await self._scan({})
            if any(file.stamp is None for file in files.values()):  # may still be being written
                files = await self._stable_scan()
        except OSError as error:
            raise UsageError(
                f"--config {self._path}: cannot be read: {error.strerror or error}"
            ) from error
        self._take(files, _combine(files))

    async def run(self, handler: ChangeHandler) -> None:
        """Watch the directory forever, even after it is lost or replaced."""
        while True:
            try:
                watched = await self._disk.run(identity, self._path)
                await self._follow(handler, watched)
            except (OSError, RuntimeError) as error:  # RuntimeError: no inotify
                self._report(error)
                await asyncio.sleep(_LOST_PAUSE)

    async def _follow(self, handler: ChangeHandler, watched: tuple[int, int]) -> None:
        """Watch until another directory has the name. Raises OSError, RuntimeError."""
        changes = watchfiles.awatch(
            self._path,
            step=_DEBOUNCE_MS,
            rust_timeout=_RESCAN_MS,
            yield_on_timeout=True,
            recursive=False,
        )
        async with contextlib.aclosing(changes):
            # The first step starts the watch, so changes during the scan are not missed.
            first_change = asyncio.ensure_future(anext(changes))
            try:
                await asyncio.sleep(0)
                await self._rescan(handler)
                await first_change
            finally:
                first_change.cancel()
                await asyncio.gather(first_change, return_exceptions=True)
            while await self._disk.run(identity, self._path) == watched:
                self._report(None)
                await self._rescan(handler)
                await anext(changes)

    def _report(self, error: Exception | None) -> None:
        """Log the state when it changes."""
        problem = None if error is None else str(error)
        if problem == self._problem:
            return
        self._problem = problem
        if problem is None:
            _log.info("config directory watched again", directory=str(self._path))
        else:
            _log.warning(
                "config directory cannot be watched", directory=str(self._path), error=problem
            )

    def get(self, key: ObjectKey) -> Defined | DuplicateObject | None:
        """The object with this name."""
        return self._view.objects.get(key)

    def keys(self) -> list[ObjectKey]:
        """Keys of all AutoWasms."""
        return list(self._view.objects)

    def secret(self, key: ObjectKey) -> Secret | None:
        """The Secret of this name; if defined more than once, the last one in order of file names."""
        return self._view.secrets.get(key)

    def never_read(self) -> dict[Path, tuple[str, ...]]:
        """Files that could not be read since the start, with their errors; their objects are not known."""
        return {path: file.problems for path, file in self._files.items() if not file.ever_read}

    async def _rescan(self, handler: ChangeHandler) -> None:
        """Scan, and report changes. Raises OSError; the state then stays unchanged."""
        files = await self._stable_scan()
        view = _combine(files)
        old, unread = self._view, self.never_read()
        self._take(files, view)
        for key in sorted(_differences(old.secrets, view.secrets)):
            handler.secret_changed(key)
        for key in sorted(_differences(old.objects, view.objects)):
            handler.changed(key)
        if unread != self.never_read():
            handler.reread()

    async def _stable_scan(self) -> dict[Path, ConfigFile]:
        """A scan that equals the known state, or that a second scan confirms. Raises OSError."""
        files = await self._scan(self._files)
        for _ in range(_MAX_SCANS):
            if _same(files, self._files):
                break
            before = files
            await asyncio.sleep(_CONFIRM_AFTER)
            # Always compared with the accepted state: an incomplete file of the last scan defines nothing.
            files = await self._scan(self._files)
            if _same(files, before):
                break
        return files

    async def _scan(self, known: Mapping[Path, ConfigFile]) -> dict[Path, ConfigFile]:
        return await self._disk.run(scan, self._path, known, limits=self._limits)

    def _take(self, files: dict[Path, ConfigFile], view: _View) -> None:
        for path, file in files.items():
            before = self._files.get(path)
            for problem in file.problems:
                if before is None or problem not in before.problems:
                    _log.warning("problem in config file", file=path.name, problem=problem)
            if before is not None and before.broken and not file.broken:
                _log.info("config file readable again", file=path.name)
        for key in view.secrets_twice.keys() - self._view.secrets_twice:
            counts = view.secrets_twice[key].name
            _log.warning("secret is defined more than once", key=str(key), counts=counts)
        self._files, self._view = files, view
        if self._metrics is not None:
            self._metrics.config_files_unreadable.set(sum(file.broken for file in files.values()))


def _same(one: Mapping[Path, ConfigFile], other: Mapping[Path, ConfigFile]) -> bool:
    """Whether both have the same definitions and the same errors."""
    return one.keys() == other.keys() and all(
        (file.parsed, file.problems) == (other[path].parsed, other[path].problems)
        for path, file in one.items()
    )


def _combine(files: Mapping[Path, ConfigFile]) -> _View:
    found: defaultdict[ObjectKey, list[Defined]] = defaultdict(list)
    view = _View()
    for path, file in files.items():
        problem = "; ".join(file.problems) if file.broken else None
        for key, document in file.parsed.autowasms:
            found[key].append(Defined(document, path, problem))
        for key, secret in file.parsed.secrets:
            if key in view.secrets:
                view.secrets_twice[key] = path
            view.secrets[key] = secret
    for key, definitions in found.items():
        if len(definitions) == 1:
            view.objects[key] = definitions[0]
        else:
            view.objects[key] = DuplicateObject(tuple(each.file for each in definitions))
    return view


def _differences(
    old: Mapping[ObjectKey, object], new: Mapping[ObjectKey, object]
) -> set[ObjectKey]:
    return {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
