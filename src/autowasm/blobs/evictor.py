"""Evictor: removes what nobody needs, and only that.

Not a decision that something has to go (`room.py`, `retention.py`), nor which goes first (`eviction.py`). Invariant: a blob
that is needed at the moment of its removal stays, whoever chose it.
"""

from collections.abc import Iterable

import structlog

from autowasm.blobs.budget import Budget
from autowasm.blobs.eviction import Candidate
from autowasm.blobs.lastuse import LastUse
from autowasm.blobs.pins import Pins
from autowasm.blobs.store import BlobStore
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


class Evictor:
    """For one store."""

    def __init__(
        self, store: BlobStore, pins: Pins, budget: Budget, *, last_use: LastUse, metrics: Metrics
    ) -> None:
        self._store = store
        self._pins = pins
        self._budget = budget
        self._metrics = metrics
        self.last_use = last_use

    def candidates(self) -> list[Candidate]:
        """All that could be removed now: nothing, until everybody who may need something was heard."""
        if not self._pins.complete:
            return []
        store, needed = self._store, self._budget.needed()
        return [
            Candidate(
                sha256,
                store.size(sha256),
                max(self.last_use.last(sha256), self.last_use.ages.at(store.served_at(sha256))),
                self._pins.is_kept(sha256),
            )
            for sha256 in store.digests()
            if sha256 not in needed
        ]

    async def remove(self, blobs: Iterable[Candidate], reason: str) -> None:
        """Remove what of `blobs` is still not needed. Raises StorageError."""
        for each in blobs:
            if await self._store.discard(each.sha256, unless=self._budget.is_needed):
                self._metrics.blobs_evicted.labels(reason).inc()
                _log.info("blob evicted", digest=each.sha256, size=each.size, reason=reason)
