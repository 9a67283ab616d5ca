"""Turns: one at a time changes or checks the file of one digest.

Not a limit on how many files are handled at once. Invariant: a lock lives as long as somebody has or awaits it.
"""

import asyncio
from weakref import WeakValueDictionary

from autowasm.digest import Sha256Hex


class Turns:
    """One lock for each digest that somebody is busy with."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Sha256Hex, asyncio.Lock] = WeakValueDictionary()

    def of(self, sha256: Sha256Hex) -> asyncio.Lock:
        """To be entered at once: kept by nobody, it is forgotten."""
        lock = self._locks.get(sha256)
        if lock is None:
            lock = self._locks[sha256] = asyncio.Lock()
        return lock
