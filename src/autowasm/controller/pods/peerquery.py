"""PeerQuery: queries the download logs of all replicas, for the resender and the download tracker.

Invariants: `query` always asks the replicas, because the resender acts on it; cached answers are bounded in number and age.
"""

import asyncio
from typing import Final, Protocol

from cachetools import FIFOCache

_KEPT: Final = 32
"""Queries with cached answers; an answer may have several megabytes."""


class PeerAnswers(Protocol):
    """All replicas (`server/downloadlog.py`)."""

    async def query(self, path: str) -> list[bytes]:
        """`/seen` or `/seen/<sha256>` of each replica."""

    def count(self) -> int:
        """Number of replicas that should answer."""


class PeerQuery:
    """One per process: the resender and the load report share it."""

    def __init__(self, replicas: PeerAnswers) -> None:
        self._replicas = replicas
        self._kept: FIFOCache[str, tuple[float, list[bytes], bool]] = FIFOCache(_KEPT)

    async def query(self, path: str) -> list[bytes]:
        """The current answers."""
        return (await self._fresh(path))[1]

    async def recent(self, path: str, *, within: float) -> tuple[float, list[bytes], bool]:
        """Time of the query (the loop's time), answers, and whether all replicas answered; at most `within` seconds old."""
        kept = self._kept.get(path)
        if kept is not None and asyncio.get_running_loop().time() - kept[0] <= within:
            return kept
        return await self._fresh(path)

    async def _fresh(self, path: str) -> tuple[float, list[bytes], bool]:
        begun = asyncio.get_running_loop().time()
        wanted = self._replicas.count()
        documents = await self._replicas.query(path)
        kept = (begun, documents, len(documents) >= wanted)
        self._kept[path] = kept
        return kept
