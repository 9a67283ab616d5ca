"""ConfigDirectory: the AutoWasm and Secret documents in a directory, followed as they change.

Not what they mean (`mode.py`). Invariant (design D6): what cannot be read now, a half-written file or a directory that
vanished, keeps what it last defined; only a file that is gone takes its objects along.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import structlog
import watchfiles

from autowasm.errors import UsageError
from autowasm.kube.resources import ObjectKey
from autowasm.net.pools import Pools
from autowasm.settings import Limits
from autowasm.standalone import documents
from autowasm.standalone.documents import Parsed, Secret

_log = structlog.get_logger(__name__)

_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_RESCAN_MS = 5_000
"""A full look this often, for file systems that tell nobody of changes (network shares, some containers)."""
_DEBOUNCE_MS = 100
"""Changes that come together are one look: editors write several times, `kubectl`-like tools several files."""
_LOST_PAUSE = 1.0
"""Seconds until a directory that went away is looked for again."""
_FILES_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Defined:
    """One object, and the file that defines it."""

    object: Mapping[str, Any]
    file: Path


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """An object that is defined more than once: none of the definitions counts."""

    files: tuple[Path, ...]


class Wake(Protocol):
    """Who is told of changes."""

    def changed(self, key: ObjectKey) -> None:
        """An AutoWasm came, changed or went."""

    def secret_changed(self, key: ObjectKey) -> None:
        """A Secret came, changed or went."""

    def reread(self) -> None:
        """A file that could not be read since the start was read now, or is gone: what is defined nowhere is known now."""


_Stamp = tuple[int, int, int, int]
_NO_STAMP: _Stamp = (0, 0, 0, 0)


@dataclass(slots=True)
class _File:
    stamp: _Stamp
    parsed: Parsed
    """As it could last be read."""
    ever_read: bool = True


@dataclass(slots=True)
class _View:
    objects: dict[ObjectKey, Defined | Ambiguous] = field(default_factory=dict)
    secrets: dict[ObjectKey, Secret] = field(default_factory=dict)


class ConfigDirectory:
    """`load` once, then `run` for ever."""

    def __init__(self, path: Path, *, limits: Limits, pools: Pools) -> None:
        self._path = path
        self._limits = limits
        self._disk = pools.disk
        self._files: dict[Path, _File] = {}
        self._view = _View()

    async def load(self) -> None:
        """First scan. Raises UsageError if the directory cannot be read: never taken for an empty one."""
        try:
            self._files = await self._disk.run(self._scan, {})
        except OSError as error:
            raise UsageError(
                f"--config {self._path}: cannot be read: {error.strerror or error}"
            ) from error
        self._view = self._combine()

    async def run(self, wake: Wake) -> None:
        """Follow the directory for ever."""
        while True:
            try:
                async for _ in watchfiles.awatch(
                    self._path, step=_DEBOUNCE_MS, rust_timeout=_RESCAN_MS, yield_on_timeout=True
                ):
                    await self._look(wake)
            except OSError as error:
                _log.warning("config directory lost", directory=str(self._path), error=str(error))
            await asyncio.sleep(_LOST_PAUSE)

    def get(self, key: ObjectKey) -> Defined | Ambiguous | None:
        """The object of this name."""
        return self._view.objects.get(key)

    def keys(self) -> list[ObjectKey]:
        """All AutoWasms."""
        return list(self._view.objects)

    def secret(self, key: ObjectKey) -> Secret | None:
        """The Secret of this name."""
        return self._view.secrets.get(key)

    def never_read(self) -> list[Path]:
        """Files that could not be read since we started: what they define is not known."""
        return sorted(path for path, file in self._files.items() if not file.ever_read)

    async def _look(self, wake: Wake) -> None:
        try:
            files = await self._disk.run(self._scan, self._files)
        except OSError as error:
            _log.warning(
                "config directory cannot be read", directory=str(self._path), error=str(error)
            )
            return
        unread = self.never_read()
        self._files = files
        old, self._view = self._view, self._combine()
        for key in sorted(_differences(old.secrets, self._view.secrets)):
            wake.secret_changed(key)
        for key in sorted(_differences(old.objects, self._view.objects)):
            wake.changed(key)
        if unread != self.never_read():
            wake.reread()

    # What follows runs in the disk pool.

    def _scan(self, known: Mapping[Path, _File]) -> dict[Path, _File]:
        return {path: self._read(path, known.get(path)) for path in self._paths()}

    def _paths(self) -> Iterator[Path]:
        """Files in order of their names. Names that begin with a dot are half-written, or a ConfigMap's machinery."""
        for count, path in enumerate(sorted(self._path.iterdir())):
            if count >= _FILES_MOST:
                _log.warning("too many files", directory=str(self._path), most=_FILES_MOST)
                return
            if path.suffix in _SUFFIXES and not path.name.startswith(".") and path.is_file():
                yield path

    def _read(self, path: Path, known: _File | None) -> _File:
        try:
            status = path.stat()
            stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if known is not None and known.stamp == stamp:
                return known
            with path.open("rb") as file:
                text = file.read(self._limits.spec_bytes * 8 + 1).decode("utf-8")
            parsed = documents.parse(text, limits=self._limits)
        except (OSError, UnicodeDecodeError) as error:
            stamp, parsed = _NO_STAMP, Parsed(problems=[str(error)], broken=True)
        new = known is None or known.stamp != stamp
        for problem in parsed.problems if new else ():
            _log.warning("config file", file=path.name, problem=problem)
        if not parsed.broken:
            return _File(stamp, parsed)
        if known is None:
            return _File(stamp, Parsed(), ever_read=False)
        return _File(stamp, known.parsed, ever_read=known.ever_read)

    def _combine(self) -> _View:
        found: defaultdict[ObjectKey, list[Defined]] = defaultdict(list)
        view = _View()
        for path, file in self._files.items():
            for key, document in file.parsed.autowasms:
                found[key].append(Defined(document, path))
            view.secrets.update(file.parsed.secrets)
        for key, definitions in found.items():
            if len(definitions) == 1:
                view.objects[key] = definitions[0]
            else:
                view.objects[key] = Ambiguous(tuple(each.file for each in definitions))
        return view


def _differences(
    old: Mapping[ObjectKey, object], new: Mapping[ObjectKey, object]
) -> set[ObjectKey]:
    return {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
