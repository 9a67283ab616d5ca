"""Staging: folders for work in progress, and what is left of them.

Not the store: nothing here is ever served. Invariant: a folder is removed when its work ends, and at the latest by `tidy`
or the next start.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from autowasm.blobs import files
from autowasm.blobs.jobs import finish
from autowasm.limits import StoreLimits
from autowasm.net.pools import Pool

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
        job = functools.partial(files.make_workspace, self.directory)
        folder = await finish(self._disk, job, abandoned=self._remove_later)
        self._busy.add(folder)
        return folder

    def _remove_later(self, folder: Path) -> None:
        self._disk.submit(files.remove_tree, folder)

    async def remove(self, folder: Path) -> None:
        """The work in it has ended."""
        self._busy.discard(folder)
        await self._disk.run(files.remove_tree, folder)

    async def set_aside(self, path: Path) -> None:
        """Move a damaged file to where people find it."""
        kept = self._limits.damaged_kept
        await self._disk.run(files.set_aside, path, self.damaged, kept=kept)

    async def tidy(self, *, pressed: bool) -> None:
        """Remove old folders that nobody works in, and old damaged files; `pressed`: all damaged files."""
        age, keep = self._limits.staging_age, frozenset(self._busy)
        await self._disk.run(files.remove_older, self.directory, age, keep=keep)
        age = _ANY_AGE if pressed else self._limits.damaged_age
        await self._disk.run(files.remove_older, self.damaged, age)
