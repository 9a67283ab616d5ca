"""PodStatus: keeps `status.pods` up to date within a budget of writes (design section 4).

Pods come and go all the time; nobody looks every second. Not part of a reconcile: a change of Pods decides nothing.
Invariants: at most `RATE` writes a second in all and one in `EACH` seconds for an object; a count that is right is not
written.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog

from autowasm.api.status import Pods
from autowasm.controller.interfaces import Publisher
from autowasm.kube.errors import ApiError
from autowasm.kube.leadership import NotLeading
from autowasm.kube.resources import ObjectKey
from autowasm.kube.workqueue import WorkQueue

_log = structlog.get_logger(__name__)

RATE = 5.0
"""Writes a second."""
EACH = 60.0
"""Seconds between two writes for one object."""
SETTLE = 1.0
"""Seconds: the Pods of one rollout step come within a second and are one write."""


class PodStatus:
    """`touch` may be called from handlers; `run` it in a TaskGroup."""

    def __init__(
        self,
        *,
        counts: Callable[[ObjectKey], Pods | None],
        document: Callable[[ObjectKey], Mapping[str, Any] | None],
        publisher: Publisher,
    ) -> None:
        self._counts = counts
        self._document = document
        self._publisher = publisher
        self._queue: WorkQueue[ObjectKey] = WorkQueue()
        self._written: dict[ObjectKey, float] = {}

    def touch(self, key: ObjectKey) -> None:
        """The Pods that this object matches may be others now."""
        now = asyncio.get_running_loop().time()
        allowed = self._written.get(key, now - EACH) + EACH
        self._queue.add_after(key, max(SETTLE, allowed - now))

    def forget(self, key: ObjectKey) -> None:
        """The object is gone."""
        self._written.pop(key, None)

    async def run(self) -> None:
        """Write what has changed, for ever."""
        while True:
            key = await self._queue.get()
            try:
                wrote = await self._write(key)
                self._queue.forget(key)
            except (ApiError, NotLeading) as error:
                wrote = True
                retry_after = error.retry_after if isinstance(error, ApiError) else None
                self._queue.add_rate_limited(key, at_least=retry_after or 0.0)
                _log.debug("pod counts not written", key=str(key), error=str(error))
            finally:
                self._queue.done(key)
            if wrote:
                await asyncio.sleep(1.0 / RATE)

    async def _write(self, key: ObjectKey) -> bool:
        document = self._document(key)
        if document is None:
            return False
        status = document.get("status")
        counts = self._counts(key)
        if counts is None:
            return False
        pods = msgspec.to_builtins(counts)
        if not status or status.get("pods") == pods:
            return False  # without a status the reconciler writes the first one, counts included
        self._written[key] = asyncio.get_running_loop().time()
        return await self._publisher.write_status(key, document, {**status, "pods": pods})
