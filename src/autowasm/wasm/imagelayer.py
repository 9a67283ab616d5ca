"""One layer of a container image: the modules in it, and what it hides of the layers below.

Not an unpacker: no file system is ever built, only names are compared. Invariant: a module that is not in the image's file
system, because a later layer deleted or replaced it or a folder above it, is never found.

Source: OCI image specification `layer.md`, "Whiteouts", "Opaque Whiteout", "Changeset over existing files".
"""

import posixpath
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm.archive import ArchiveMember, is_candidate, opened_archive
from autowasm.wasm.tar import TarEntry

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_RESERVED: Final = ".wh..wh."
"""Names for the storage driver's own use; of these only the opaque whiteout means something."""
_PLUGIN: Final = "plugin.wasm"


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """What one layer holds. Paths are relative to the root, without `.` and `..`; of most only the hash is kept."""

    modules: tuple[ArchiveMember, ...]
    """Files named `*.wasm`, in order; of several with one path the last."""
    removed: frozenset[int]
    """Hashes of paths that are gone from the layers below, with all that was under them: deleted, or replaced by a file."""
    emptied: frozenset[int]
    """Hashes of folders whose content in the layers below is gone; the root is the empty text."""
    folders: frozenset[int]
    """Hashes of folders with a module's name: such a module in the layers below is gone, what is in a folder is not."""
    first_plugin: ArchiveMember | None
    """The first entry with the base name `plugin.wasm`, of whatever kind: what a reader that stops there takes."""


class Hidden:
    """What the layers searched so far, from the last one on, hide of those below. Memory: one number for a name."""

    def __init__(self, *, limits: Limits) -> None:
        self._most = limits.image_entries
        self._removed: set[int] = set()
        self._emptied: set[int] = set()
        self._folders: set[int] = set()
        self.deleted: list[str] = []
        """Some modules that were passed over, for a message."""

    def add(self, layer: ImageLayer) -> None:
        """`layer` has been searched. Raises ContentRejected (`ArchiveTooLarge`)."""
        self._removed |= layer.removed
        self._emptied |= layer.emptied
        self._folders |= layer.folders
        if len(self._removed) + len(self._emptied) + len(self._folders) > self._most:
            raise ContentRejected(
                f"the image has more than {self._most} files in the layers above its module: put "
                "the module into the last layer",
                reason="ArchiveTooLarge",
            )

    def visible(self, layer: ImageLayer) -> list[ArchiveMember]:
        """The modules of `layer`, which lies below all that were added, that are still there."""
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
    modules: dict[str, ArchiveMember] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)
    emptied: set[int] = field(default_factory=set)
    folders: set[int] = field(default_factory=set)
    first_plugin: ArchiveMember | None = None

    def take(self, entry: TarEntry, ordinal: int) -> None:
        """One entry, in the order of the archive."""
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
        member = ArchiveMember(entry.name, ordinal, entry.size if entry.is_file else 0)
        self.modules.pop(path, None)  # what comes later in the archive replaces it
        if base == _PLUGIN and self.first_plugin is None:
            self.first_plugin = member
        if not entry.is_folder:
            self.removed.add(hash(path))
        elif is_candidate(path):
            self.folders.add(hash(path))
        if entry.is_file and is_candidate(path):
            self.modules[path] = member


def read_layer(source: Path, *, packing: str, limits: Limits) -> ImageLayer:
    """Read one layer's names. Blocks (pool `parsing`).

    Raises ContentRejected (`ArchiveInvalid`, `ArchiveTooLarge`) and StorageError.
    """
    found = _Found()
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
    """Where unpacking would put an entry, relative to the root; empty for the root itself."""
    return posixpath.normpath("/" + name.lstrip("/"))[1:]
