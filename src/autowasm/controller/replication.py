"""Replication between replicas: Prefetcher copies published modules, ReplicaWaiter delays publication (ADR 14).

`fetchjobs.py` fetches the module that a spec names; `artifacts/peers.py` chooses the replica that sends a module. Invariants: the
prefetch asks no source: a digest in an EnvoyFilter may be forged, and only a spec's own source is fetched with its Secret (ADR 7, ADR
15); no publication waits longer than `FIRST_TIMEOUT` + `SECOND_TIMEOUT` seconds, so a replica that is gone does not block a rollout,
and a replica without the module copies it at the first request.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import structlog

from autowasm.api import envoyfilter as envoyfilters
from autowasm.blobs.store import BlobStore
from autowasm.controller.interfaces import Publisher, Replicas
from autowasm.digest import Sha256Hex
from autowasm.flowcontrol import Backoff
from autowasm.kube.resources import ObjectKey
from autowasm.limits import FetchLimits

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Prefetch:
    task: asyncio.Task[None] | None = None
    failures: int = 0
    due: float = 0.0


class Prefetcher:
    """Copies the modules of EnvoyFilters in place from other replicas, before a sidecar requests them.

    The source of a published module may be gone or replaced, so a replica with an empty disk could not fetch it. If every new
    replica of a rolling update started this way, the last copy would be lost with the last old replica. `copy` copies a digest
    into the store and returns whether it did. Calls `on_change` with the key when a copy ends.
    """

    def __init__(
        self,
        *,
        publisher: Publisher,
        store: BlobStore,
        copy: Callable[[Sha256Hex], Awaitable[bool]],
        limits: FetchLimits,
        tasks: asyncio.TaskGroup,
        on_change: Callable[[ObjectKey], None],
    ) -> None:
        self._publisher = publisher
        self._store = store
        self._copy = copy
        self._backoff = Backoff(limits.retry_base, limits.retry_maximum)
        self._tasks = tasks
        self._on_change = on_change
        self._copies: dict[ObjectKey, dict[Sha256Hex, _Prefetch]] = {}

    def ensure(self, key: ObjectKey) -> float | None:
        """Copy missing modules in the background, and retry while they are published.

        Returns the seconds until the next try; None: there is no next try, or the end of a copy queues the key.
        """
        missing, before = self._missing(key), self._copies.pop(key, {})
        for sha256, copy in before.items():
            if sha256 not in missing and copy.task is not None:
                copy.task.cancel()
        if not missing:
            return None
        copies = self._copies[key] = {
            sha256: before.get(sha256) or _Prefetch() for sha256 in missing
        }
        due = (self._ensure(key, sha256, copy) for sha256, copy in copies.items())
        return min((seconds for seconds in due if seconds is not None), default=None)

    def is_settled(self, key: ObjectKey) -> bool:
        """True if each published module is stored, or a copy of it has failed before."""
        copies = self._copies.get(key, {})
        return all(
            sha256 in copies and copies[sha256].failures > 0 for sha256 in self._missing(key)
        )

    def _missing(self, key: ObjectKey) -> tuple[Sha256Hex, ...]:
        live = self._publisher.published(key)
        digests = envoyfilters.digests_of(live) if live is not None else ()
        return tuple(sha256 for sha256 in digests if sha256 not in self._store)

    def _ensure(self, key: ObjectKey, sha256: Sha256Hex, copy: _Prefetch) -> float | None:
        """Seconds until the next try; None: the end of the copy queues the key."""
        if copy.task is not None:
            return None
        left = copy.due - asyncio.get_running_loop().time()
        if copy.failures and left > 0:
            return left
        copy.task = self._tasks.create_task(
            self._run(key, sha256, copy), name=f"copy {sha256} for {key}"
        )
        return None

    async def _run(self, key: ObjectKey, sha256: Sha256Hex, copy: _Prefetch) -> None:
        try:
            copied = await self._copy(sha256)
        except Exception:  # supervised edge: a bug fails one copy, not the process
            _log.exception("copy failed unexpectedly", key=str(key), digest=sha256)
            copied = False
        if not copied:
            copy.failures += 1
            copy.due = asyncio.get_running_loop().time() + self._backoff.delay(copy.failures)
        copy.task = None
        self._on_change(key)


FIRST_TIMEOUT: Final = 0.5
"""Seconds for the first query: after a failover, and for a module that objects share, the replicas usually have it already."""
SECOND_TIMEOUT: Final = 5.0
"""Seconds for the query after the record was written to the status."""


class ReplicationState(Enum):
    """The next step."""

    WAIT = "wait"
    """`on_change` reports the end of the wait."""
    ANNOUNCE = "announce"
    """Write the record to the status for the other replicas, then call `announced`."""
    DONE = "done"


@dataclass(slots=True, eq=False)
class _Wait:
    sha256: Sha256Hex
    state: ReplicationState = ReplicationState.WAIT
    announced: bool = False
    task: asyncio.Task[None] | None = None


class ReplicaWaiter:
    """Waits, outside the reconcile path, until the other replicas have a module that will be published.

    They copy it when they read the record in the status. Calls `on_change` with the key when its state has changed.
    """

    def __init__(
        self,
        replicas: Replicas,
        *,
        tasks: asyncio.TaskGroup,
        on_change: Callable[[ObjectKey], None],
    ) -> None:
        self._replicas = replicas
        self._tasks = tasks
        self._on_change = on_change
        self._waits: dict[ObjectKey, _Wait] = {}

    def state(self, key: ObjectKey, sha256: Sha256Hex) -> ReplicationState:
        """Whether the module of this object may be published."""
        if not self._replicas.known():
            return ReplicationState.DONE
        wait = self._waits.get(key)
        if wait is None or wait.sha256 != sha256:
            self.forget(key)
            wait = self._waits[key] = _Wait(sha256)
            self._begin(key, wait, FIRST_TIMEOUT)
        return wait.state

    def announced(self, key: ObjectKey) -> None:
        """The record is in the status: the other replicas can read it."""
        wait = self._waits.get(key)
        if wait is not None and not wait.announced:
            wait.announced = True
            wait.state = ReplicationState.WAIT
            self._begin(key, wait, SECOND_TIMEOUT)

    def forget(self, key: ObjectKey) -> None:
        """The module was published or is no longer wanted, or another replica leads now."""
        wait = self._waits.pop(key, None)
        if wait is not None and wait.task is not None:
            wait.task.cancel()

    def _begin(self, key: ObjectKey, wait: _Wait, timeout: float) -> None:
        wait.task = self._tasks.create_task(
            self._query(key, wait, timeout), name=f"replication {key}"
        )

    async def _query(self, key: ObjectKey, wait: _Wait, timeout: float) -> None:
        try:
            everywhere = await self._replicas.wait_all_have(wait.sha256, timeout)
        except Exception:  # supervised edge: a bug ends one wait, not the process
            _log.exception("replication failed unexpectedly", key=str(key), digest=wait.sha256)
            everywhere = False
        wait.state = (
            ReplicationState.DONE if everywhere or wait.announced else ReplicationState.ANNOUNCE
        )
        wait.task = None
        self._on_change(key)
