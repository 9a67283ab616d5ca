"""StandalonePublisher: EnvoyFilters, statuses and the listener file, in `--envoy-dir`.

    envoyfilters/<namespace>.<name>.yaml   what a mesh would get
    status/<namespace>.<name>.yaml         the whole object with its status
    lds.yaml                               the template with the filters inserted; Envoy follows it

A namespace has no dot in it, so a file name belongs to one object. Invariants: the state in memory equals the files; a reader
sees the old or the new bytes of a file, never a part; an unchanged file keeps its inode and its times, so Envoy does not reload
it; `lds.yaml` exists from the start.
"""

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from autowasm import atomicfile
from autowasm.errors import StorageError, UsageError
from autowasm.kube.resources import ObjectKey
from autowasm.manifests import writer
from autowasm.net.pools import Pools
from autowasm.standalone import documents, listeners
from autowasm.standalone.listeners import ListenerTemplate

_log = structlog.get_logger(__name__)
Document = dict[str, Any]
_HALF_WRITTEN = re.compile(r"\..+\.yaml\.[0-9a-f]{8}")
"""Temporary names of `write_if_changed`."""


class StandalonePublisher:
    """Call `check`, then `load` first. Writes for one key never overlap (by the work queue); the listener file has a lock."""

    def __init__(self, envoy_dir: Path, *, template: Path | None, pools: Pools) -> None:
        self._envoyfilter_dir = envoy_dir / "envoyfilters"
        self._status_dir = envoy_dir / "status"
        self._lds = envoy_dir / "lds.yaml"
        self._template_file = template
        self._template: ListenerTemplate | None = None
        self._disk = pools.disk
        self._envoyfilters: dict[ObjectKey, Document] = {}
        self._statuses: dict[ObjectKey, Document] = {}
        self._writing_lds = asyncio.Lock()
        self._changes = 0
        """Number of changes of the EnvoyFilters."""
        self._changes_in_lds = -1
        """How many of them are in the listener file."""

    async def check(self) -> None:
        """Read the template. Raises UsageError."""
        if self._template_file is not None:
            self._template = await self._disk.run(_read_template, self._template_file)

    async def load(self) -> None:
        """Read the files that were written before. Raises StorageError."""
        self._envoyfilters = await self._disk.run(
            _read_folder, self._envoyfilter_dir, listeners.check_envoyfilter
        )
        self._statuses = await self._disk.run(_read_folder, self._status_dir, _check_status)
        await self._write_lds()

    def published(self, key: ObjectKey) -> Document | None:
        """The EnvoyFilter as written."""
        return self._envoyfilters.get(key)

    def left_behind(self, key: ObjectKey) -> Document | None:
        """The EnvoyFilter that `retract` could not remove."""
        return self._envoyfilters.get(key)

    async def find(self, key: ObjectKey, owner: Mapping[str, Any]) -> None:
        """Nothing to find: the state in memory equals the files."""

    def published_keys(self) -> frozenset[ObjectKey]:
        """Keys of all EnvoyFilters and statuses."""
        return frozenset(self._envoyfilters) | frozenset(self._statuses)

    def status(self, key: ObjectKey) -> Document | None:
        """The object with its status, as written."""
        return self._statuses.get(key)

    async def publish(
        self, key: ObjectKey, owner: Mapping[str, Any], envoyfilter: Mapping[str, Any]
    ) -> bool:
        """Write the EnvoyFilter, then the listener file. True if the EnvoyFilter changed."""
        changed = self._envoyfilters.get(key) != envoyfilter
        if changed:
            await self._write(_file(self._envoyfilter_dir, key), envoyfilter)
            self._envoyfilters[key] = dict(envoyfilter)
            self._changes += 1
        await self._write_lds()  # even without a change, because its last write may have failed
        return changed

    async def retract(self, key: ObjectKey) -> None:
        """Remove the EnvoyFilter, first from the listener file, so that no Envoy uses a removed one. After a failure, call this again."""
        if self._envoyfilters.pop(key, None) is not None:
            self._changes += 1
        await self._write_lds()
        await self._disk.run(remove, _file(self._envoyfilter_dir, key))
        await self._disk.run(remove, _file(self._status_dir, key))
        self._statuses.pop(key, None)

    def forget(self, key: ObjectKey) -> None:
        """Nothing to do: there is no other leader."""

    def resigned(self) -> None:
        """Nothing to do: there is no other leader."""

    async def write_status(
        self, key: ObjectKey, document: Mapping[str, Any], status: Mapping[str, Any]
    ) -> bool:
        """Write the whole object with this status. True if that changed the file."""
        whole = {**document, "status": dict(status)}
        if self._statuses.get(key) == whole:
            return False
        await self._write(_file(self._status_dir, key), whole)
        self._statuses[key] = whole
        return True

    async def _write(self, path: Path, document: Mapping[str, Any]) -> None:
        # Both steps run in a pool: rendering takes milliseconds, which would block the loop.
        await self._disk.run(lambda: write_if_changed(path, writer.dump(document).encode()))

    async def _write_lds(self) -> None:
        """Update the listener file. Changes during a write share the next write.

        Each write creates a new listener in Envoy, and costs as much as all filters together.
        """
        template, wanted = self._template, self._changes
        if template is None:
            return
        async with self._writing_lds:
            if self._changes_in_lds >= wanted:
                return
            now, envoyfilters = self._changes, list(self._envoyfilters.values())
            # In a pool, as in `_write`.
            content = await self._disk.run(template.inject, envoyfilters)
            await self._disk.run(write_if_changed, self._lds, content.encode())
            self._changes_in_lds = now


def write_if_changed(path: Path, content: bytes) -> bool:
    """True if the file was written. Blocks; raises StorageError."""
    try:
        if path.is_file() and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        # Each write has its own name: after a cancellation, the pool may still write when the next write begins.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        atomicfile.write(path, content, temporary=temporary)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    return True


def remove(path: Path) -> bool:
    """True if the file existed. Blocks; raises StorageError."""
    try:
        path.unlink()
        atomicfile.sync_directory(path.parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"cannot remove {path}: {error.strerror or error}") from error
    return True


def _file(folder: Path, key: ObjectKey) -> Path:
    return folder / f"{key.namespace}.{key.name}.yaml"


def _read_template(path: Path) -> ListenerTemplate:
    try:
        return ListenerTemplate(path.read_bytes().decode())  # keeps line ends
    except (OSError, ValueError, UsageError) as error:
        problem = (isinstance(error, OSError) and error.strerror) or error
        raise UsageError(f"--listener-template {path}: {problem}") from error


def _read_folder(folder: Path, check: Callable[[Document], None]) -> dict[ObjectKey, Document]:
    """The documents in the folder. An invalid file is renamed to `*.broken` and written again from the known objects."""
    found: dict[ObjectKey, Document] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, folder.parent):
            _clear_half_written(place)
        for path in sorted(folder.glob("*.yaml")):
            try:
                key, document = _read_document(path)
                check(document)
            except ValueError as error:
                _log.error("invalid file renamed to .broken", file=str(path), problem=str(error))
                path.rename(path.with_name(f"{path.name}.broken"))
            else:
                found[key] = document
    except OSError as error:
        # Not renamed: a transient disk failure must not remove published filters.
        raise StorageError(
            f"--envoy-dir: cannot use {error.filename or folder}: {error.strerror or error}"
        ) from error
    return found


def _clear_half_written(folder: Path) -> None:
    """Remove temporary files of a process that was killed during a write."""
    for path in folder.iterdir():
        if _HALF_WRITTEN.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _read_document(path: Path) -> tuple[ObjectKey, Document]:
    """Raises ValueError unless the file holds the object of its name, OSError."""
    document = writer.read_back(path.read_text("utf-8"))
    metadata = document.get("metadata") if isinstance(document, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("metadata is missing")  # noqa: TRY004  # one kind of error for one outcome
    namespace, _, name = path.name.removesuffix(".yaml").partition(".")
    if (metadata.get("namespace", documents.DEFAULT_NAMESPACE), metadata.get("name")) != (
        namespace,
        name,
    ):
        raise ValueError("metadata.namespace and metadata.name do not match the file name")
    result: Document = document
    return ObjectKey(namespace, name), result


def _check_status(document: Document) -> None:
    if not isinstance(document.get("status"), dict):
        raise ValueError("status is missing")  # noqa: TRY004
