"""One layer of a container image: the modules in it, and the paths that it hides in the layers below.

Only names are compared; no file system is unpacked. Invariant: a module that a later layer deleted or replaced, itself or
a folder above it, is never found.

Source: OCI image specification `layer.md`, "Whiteouts", "Opaque Whiteout", "Changeset over existing files".
"""

import posixpath
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.reasons import Reason
from autowasm.wasm.archive import ArchiveMember, is_candidate, opened_archive
from autowasm.wasm.tar import TarEntry

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_RESERVED: Final = ".wh..wh."
"""Prefix of names that storage drivers reserve; only the opaque whiteout has a meaning here."""
_PLUGIN: Final = "plugin.wasm"


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """The contents of one layer. Paths are relative to the root, without `.` and `..`; for most only the hash is kept."""

    modules: tuple[ArchiveMember, ...]
    """Files named `*.wasm`, in order; if a path occurs several times, its last entry."""
    removed: frozenset[int]
    """Hashes of paths that hide the same path in the layers below, and all paths under it: deleted, or replaced by a file."""
    emptied: frozenset[int]
    """Hashes of folders whose contents in the layers below are hidden; the root is the empty string."""
    folders: frozenset[int]
    """Hashes of folders with a module's name: they hide a module of that name in the layers below, not a folder's contents."""
    first_plugin: ArchiveMember | None
    """The first entry with the base name `plugin.wasm`, of any kind: some readers stop there."""


class Hidden:
    """The paths that the layers searched so far, from the last one on, hide in the layers below. Memory: one integer per path."""

    def __init__(self, *, limits: Limits) -> None:
        self._most = limits.image_entries
        self._removed: set[int] = set()
        self._emptied: set[int] = set()
        self._folders: set[int] = set()
        self.deleted: list[str] = []
        """Up to 8 modules that are hidden, for a message."""

    def add(self, layer: ImageLayer) -> None:
        """Record that `layer` was searched. Raises ContentRejected (`ArchiveTooLarge`)."""
        self._removed |= layer.removed
        self._emptied |= layer.emptied
        self._folders |= layer.folders
        if len(self._removed) + len(self._emptied) + len(self._folders) > self._most:
            raise ContentRejected(
                f"the image has more than {self._most} files in the layers above its module: put "
                "the module into the last layer",
                reason=Reason.ARCHIVE_TOO_LARGE,
            )

    def visible(self, layer: ImageLayer) -> list[ArchiveMember]:
        """The modules of `layer` that no added layer hides. `layer` is below all added layers."""
        kept = []
        for module in layer.modules:
            if self._hides(clean_path(module.name)):
                self.deleted.append(module.name)
                del self.deleted[8:]
            else:
                kept.append(module)
        return kept

    def _hides(self, path: str) -> bool:
        if hash(path) in self._removed or hash(path) in self._folders:
            return True
        while path:
            path = path.rpartition("/")[0]
            if hash(path) in self._emptied or (path and hash(path) in self._removed):
                return True
        return False


@dataclass(slots=True)
class _Found:
    most_folders: int
    modules: dict[str, ArchiveMember] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)
    emptied: set[int] = field(default_factory=set)
    folders: set[int] = field(default_factory=set)
    first_plugin: ArchiveMember | None = None

    def take(self, entry: TarEntry, ordinal: int) -> None:
        """Record one entry, in the order of the archive."""
        path = clean_path(entry.name)
        folder, _, base = path.rpartition("/")
        if base == _OPAQUE:
            self.emptied.add(hash(folder))
        elif base.startswith(_RESERVED):
            pass
        elif base.startswith(_WHITEOUT):
            self.removed.add(hash(posixpath.join(folder, base.removeprefix(_WHITEOUT))))
        else:
            self._take_plain(path, base, entry, ordinal)

    def _take_plain(self, path: str, base: str, entry: TarEntry, ordinal: int) -> None:
        member = ArchiveMember(entry.name, ordinal)
        self.modules.pop(path, None)  # a later entry of the archive replaces it
        if base == _PLUGIN and self.first_plugin is None:
            self.first_plugin = member
        self._take_parents(path)
        if not entry.is_folder:
            self.removed.add(hash(path))
        elif is_candidate(path):
            self.folders.add(hash(path))
        if entry.is_file and is_candidate(path):
            self.modules[path] = member

    def _take_parents(self, path: str) -> None:
        """The parents of an entry are folders, also without entries of their own. The innermost known one ends the walk."""
        end = len(path)
        while (end := path.rfind(".wasm/", 0, end)) >= 0:
            parent_end = end + len(".wasm")
            if not is_candidate(path[path.rfind("/", 0, end) + 1 : parent_end]):
                continue
            parent = path[:parent_end]
            if hash(parent) in self.folders:
                return
            self.folders.add(hash(parent))
            if len(self.folders) > self.most_folders:
                raise ContentRejected(
                    f"the layer has more than {self.most_folders} folders with the name of a module: "
                    "pack it without them",
                    reason=Reason.ARCHIVE_TOO_LARGE,
                )


def read_layer(source: Path, *, packing: str, limits: Limits) -> ImageLayer:
    """Read one layer's names. Blocks (pool `parsing`).

    Raises ContentRejected (`ArchiveInvalid`, `ArchiveTooLarge`) and StorageError.
    """
    found = _Found(limits.image_entries)
    with opened_archive(source, packing=packing, limits=limits) as reader:
        ordinal = 0
        while (entry := reader.next()) is not None:
            found.take(entry, ordinal)
            ordinal += 1
    return ImageLayer(
        tuple(found.modules.values()),
        frozenset(found.removed),
        frozenset(found.emptied),
        frozenset(found.folders),
        found.first_plugin,
    )


def clean_path(name: str) -> str:
    """The path at which unpacking would create an entry, relative to the root; empty for the root itself."""
    return posixpath.normpath("/" + name.lstrip("/"))[1:]
