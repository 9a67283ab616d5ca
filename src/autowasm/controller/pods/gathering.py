"""Gathering: one question to all replicas serves healing and proof of load. Not what is made of the answers.

Invariants: `ask` is always fresh, as healing acts on it; what is kept is bounded and used for a short time only.
"""

import asyncio
from collections import OrderedDict
from typing import Final, Protocol

_KEPT: Final = 32
"""Questions whose answers are kept; an answer may have megabytes."""


class Asked(Protocol):
    """All replicas (`server.sightings.AllReplicas`)."""

    async def ask(self, path: str) -> list[bytes]:
        """`/seen` or `/seen/<sha256>` of each."""

    def count(self) -> int:
        """How many should answer."""


class Gathering:
    """One for the process."""

    def __init__(self, replicas: Asked) -> None:
        self._replicas = replicas
        self._kept: OrderedDict[str, tuple[float, list[bytes], bool]] = OrderedDict()

    async def ask(self, path: str) -> list[bytes]:
        """What they say now."""
        return (await self._fresh(path))[1]

    async def recent(self, path: str, *, within: float) -> tuple[float, list[bytes], bool]:
        """When it was asked (the loop's time), what they said, and whether all answered; at most `within` seconds old."""
        kept = self._kept.get(path)
        if kept is not None and asyncio.get_running_loop().time() - kept[0] <= within:
            return kept
        return await self._fresh(path)

    async def _fresh(self, path: str) -> tuple[float, list[bytes], bool]:
        begun = asyncio.get_running_loop().time()
        wanted = self._replicas.count()
        documents = await self._replicas.ask(path)
        kept = (begun, documents, len(documents) >= wanted)
        self._kept[path] = kept
        self._kept.move_to_end(path)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return kept
