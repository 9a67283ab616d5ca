"""OnDemandBlobs: requests for a blob that is not stored yet wait for its fetch.

`BlobSource` fetches the blobs. Invariants: a digest that the source knows is never reported absent, only late; one fill for a
digest runs at a time, however many requests wait; a fill outlives its requests until `close`.

Envoy requests a module at most (retries + 1) times and then gives up permanently, so an early refusal costs more than a late
response (Envoy's remote fetch).
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import structlog

from autowasm.blobs.files import Blob
from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.errors import AutoWasmError, SourceUnavailable, StorageError
from autowasm.flowcontrol import Backoff
from autowasm.limits import ServeLimits
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


class TaskOwner:
    """Owns tasks that outlive the request that started them.

    Unlike in a TaskGroup, a failed task ends no other task, and any task may call `close`, not only the creator of the owner.
    Invariant: after `close` none of its tasks runs.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run `work`. It should handle its own errors; others are logged."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task failed", task=task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def first_of(*waits: Coroutine[Any, Any, object], deadline: float) -> bool:
    """Wait until one of `waits` returns; the others are cancelled. False if `deadline` (loop time) passed first."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(wait, name="wait") for wait in waits]
    try:
        done, _ = await asyncio.wait(
            tasks, timeout=max(deadline - loop.time(), 0), return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    return bool(done)


Supplier = Literal["peer", "origin"]


class BlobSource(Protocol):
    """The part of the published modules that the server uses (`artifacts/published.py`)."""

    def is_known(self, sha256: Sha256Hex) -> bool:
        """Whether the digest is in an EnvoyFilter, or about to be, so that an Envoy may fetch it."""

    async def wait_known(self, sha256: Sha256Hex) -> None:
        """Return once the digest is known."""

    async def fill(self, sha256: Sha256Hex) -> Supplier:
        """Bring the blob of a known digest into the store; returns the supplier. Raises AutoWasmError."""


@dataclass(frozen=True, slots=True)
class BlobAbsent:
    """No blob, and the response to the client: 404, or 503 with the seconds after which to retry."""

    status: int
    sentence: str
    retry_after: int = 1


@dataclass(slots=True, eq=False)
class _Fill:
    waiters: int = 0
    failure: str | None = None  # the error's reason
    helped: int = 0  # requests that got their blob before the fill ended
    ended: bool = False
    supplier: Supplier | None = None


class OnDemandBlobs:
    """Finds blobs for requests."""

    def __init__(
        self, store: BlobStore, source: BlobSource, *, limits: ServeLimits, metrics: Metrics
    ) -> None:
        self._store = store
        self._source = source
        self._limits = limits
        self._metrics = metrics
        self._hits = metrics.cache.labels("disk")
        self._fills: dict[Sha256Hex, _Fill] = {}
        self._tasks = TaskOwner()
        self._closing = asyncio.Event()
        self._unknown = 0
        self._backoff = Backoff(limits.held_retry, limits.max_held_retry)

    async def close(self) -> None:
        """Release the waiting requests, and end the fills."""
        self._closing.set()
        await self._tasks.close()

    def release(self) -> None:
        """Answer the waiting requests with 503."""
        self._closing.set()

    def ready(self, sha256: Sha256Hex) -> Blob | None:
        """The blob, if no wait is needed."""
        blob = self._store.ready(sha256)
        if blob is not None:
            self._hits.inc()
        return blob

    async def find(self, sha256: Sha256Hex, *, patience: float | None) -> Blob | BlobAbsent:
        """The blob, after a wait if necessary. `patience`: seconds for which the client waits, by its own header."""
        found = await self._find(sha256, patience)
        if isinstance(found, BlobAbsent):
            self._metrics.cache.labels("unknown" if found.status == 404 else "failed").inc()
        return found

    async def stored(self, sha256: Sha256Hex) -> Blob | BlobAbsent:
        """The blob if it is stored. For peers: no wait, because the peer's own clients may be waiting for it."""
        try:
            return await self._store.open(sha256) or BlobAbsent(
                404, "This replica does not have the module."
            )
        except StorageError as error:
            return _disk_failed(sha256, error)

    async def _find(self, sha256: Sha256Hex, patience: float | None) -> Blob | BlobAbsent:
        try:
            blob = await self._store.open(sha256)
            if blob is not None:
                self._hits.inc()
                return blob
            with self._metrics.held.track_inprogress():
                return await self._hold(sha256, self._deadline(patience))
        except StorageError as error:
            return _disk_failed(sha256, error)

    def _deadline(self, patience: float | None) -> float:
        limits = self._limits
        if patience is None:
            seconds = limits.held_known
        else:
            most = min(patience, limits.max_held_known)
            seconds = max(most - limits.held_margin, most / 2)
        return asyncio.get_running_loop().time() + seconds

    async def _hold(self, sha256: Sha256Hex, deadline: float) -> Blob | BlobAbsent:
        if not self._source.is_known(sha256):
            absent = await self._hold_unknown(sha256, deadline)
            if absent is not None:
                return absent
        found = await self._store.open(sha256)
        if found is None:
            return await self._hold_known(sha256, deadline)
        self._metrics.cache.labels("held").inc()
        return found

    async def _hold_unknown(self, sha256: Sha256Hex, deadline: float) -> BlobAbsent | None:
        """None once the digest is known or stored: Envoy and this replica may receive an EnvoyFilter in any order."""
        if self._unknown >= self._limits.held_unknown_count:
            return self._not_found(sha256)
        deadline = min(deadline, asyncio.get_running_loop().time() + self._limits.held_unknown)
        self._unknown += 1
        try:
            await first_of(
                self._source.wait_known(sha256),
                self._store.wait_for(sha256),
                self._closing.wait(),
                deadline=deadline,
            )
        finally:
            self._unknown -= 1
        if sha256 in self._store or self._source.is_known(sha256):
            return None
        return self._not_found(sha256)

    async def _hold_known(self, sha256: Sha256Hex, deadline: float) -> Blob | BlobAbsent:
        fill = self._filling(sha256)
        fill.waiters += 1
        try:
            while not self._closing.is_set() and await first_of(
                self._store.wait_for(sha256), self._closing.wait(), deadline=deadline
            ):
                blob = await self._store.open(sha256)
                if blob is not None:
                    self._count(fill)
                    return blob
        finally:
            fill.waiters -= 1
        return self._late(sha256, fill)

    def _count(self, fill: _Fill, requests: int = 1) -> None:
        """Count the request once the fill has ended: the blob is stored a moment before its supplier is known."""
        if fill.ended:
            self._metrics.cache.labels(fill.supplier or "held").inc(requests)
        else:
            fill.helped += requests

    def _filling(self, sha256: Sha256Hex) -> _Fill:
        fill = self._fills.get(sha256)
        if fill is None:
            fill = self._fills[sha256] = _Fill()
            self._tasks.start(self._fill(sha256, fill), name=f"fill sha256:{sha256}")
        return fill

    async def _fill(self, sha256: Sha256Hex, fill: _Fill) -> None:
        """Fill until the blob is stored or no request waits. The pause at the end protects the source from an immediate next fill."""
        try:
            failures = 0
            while sha256 not in self._store:
                delay = await self._try_fill(sha256, fill, failures)
                failures += 1
                if sha256 not in self._store:
                    await asyncio.sleep(delay)
                if not fill.waiters:
                    return
        finally:
            del self._fills[sha256]
            fill.ended = True
            self._count(fill, fill.helped)

    async def _try_fill(self, sha256: Sha256Hex, fill: _Fill, failures: int) -> float:
        """One attempt; returns the seconds until the next."""
        try:
            fill.supplier = await self._source.fill(sha256)
        except (SourceUnavailable, StorageError) as error:
            fill.failure = error.reason
            _log.warning(
                "on-demand fetch failed", digest=sha256, reason=error.reason, error=str(error)
            )
            return self._backoff.delay(failures + 1)
        except AutoWasmError as error:
            fill.failure = error.reason
            _log.warning(
                "on-demand fetch failed", digest=sha256, reason=error.reason, error=str(error)
            )
            return self._limits.held_refused_retry
        except Exception as error:
            fill.failure = AutoWasmError.default_reason
            _log.exception("on-demand fetch failed", digest=sha256, exc_info=error)
            return self._limits.held_refused_retry
        fill.failure = None
        return self._limits.held_retry

    @staticmethod
    def _not_found(sha256: Sha256Hex) -> BlobAbsent:
        return BlobAbsent(
            404,
            f"No module sha256:{sha256} is published here: check the digest, and that its AutoWasm is Synced.",
        )

    def _late(self, sha256: Sha256Hex, fill: _Fill) -> BlobAbsent:
        if self._closing.is_set():
            return BlobAbsent(503, "This replica is stopping; retry to reach another one.")
        why = f" The last fetch failed: {fill.failure}." if fill.failure else ""
        return BlobAbsent(
            503,
            f"Module sha256:{sha256} is published but not stored on this replica yet.{why} Retry.",
        )


def _disk_failed(sha256: Sha256Hex, error: StorageError) -> BlobAbsent:
    _log.error("blob not readable", digest=sha256, error=str(error))
    return BlobAbsent(503, f"Disk error on this replica ({error.reason}).", retry_after=5)
