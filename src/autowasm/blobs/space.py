"""Free space of the volume that a directory is on.

Not the budget: others write to the volume too. Invariant: only what we may use counts as free, not what root keeps back.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from autowasm.limits import StoreLimits


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a volume."""

    free: int
    total: int

    def reserve(self, limits: StoreLimits) -> int:
        """Bytes that no fetch may take."""
        return min(limits.free_reserve, int(self.total * limits.free_reserve_share))


def space_of(directory: Path) -> Space:
    """Blocks for a statvfs or two. Raises OSError.

    A directory that somebody removed under us is asked for by its parent: whatever is stored next makes it anew.
    """
    try:
        found = os.statvfs(directory)
    except FileNotFoundError:
        found = os.statvfs(next(parent for parent in directory.parents if parent.exists()))
    return Space(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)
