"""client-go's EventRecorder (`tools/record`): writes Events, and increments the count of a similar Event instead of creating a new one.

An Event may be lost; a metric counts this. Invariants: `event` never waits and never fails; one object cannot cause more Events
than `events_burst` at once and one every `events_refill` seconds; a full queue drops the new Event.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, NoReturn, Protocol

import structlog
from cachetools import LRUCache

from autowasm.flowcontrol import TokenBucket
from autowasm.kube import writes
from autowasm.kube.client import KubeClient
from autowasm.kube.errors import ApiError, NotFound
from autowasm.kube.resources import EVENTS, ObjectKey
from autowasm.limits import KubeLimits

_log = structlog.get_logger(__name__)

EventKind = Literal["Normal", "Warning"]

MESSAGE_BYTES: Final = 1024
"""The API server's limit."""
REMEMBERED_FOR: Final = 600.0
"""Seconds in which the same event increments a count (client-go: 10 min)."""
_BUSY_CHECK: Final = 0.2
"""Seconds between two checks for other work."""
SIMILAR: Final = 10
COMBINED: Final = "(combined from similar events): "


@dataclass(frozen=True, slots=True)
class _Fact:
    """The fields that identify an event."""

    reference: tuple[str, str, str, str, str]
    """apiVersion, kind, namespace, name, uid."""
    kind: EventKind
    reason: str
    message: str
    combined: bool = False
    """One of many that differ only in their messages."""

    @property
    def alike(self) -> tuple[object, ...]:
        """Equal for two events that are written as one."""
        return (self.reference, self.kind, self.reason, None if self.combined else self.message)


@dataclass(slots=True)
class _Similar:
    messages: set[str]
    since: float


@dataclass(slots=True)
class _Written:
    key: ObjectKey
    count: int
    last: float


def _utc_now() -> datetime:
    return datetime.now(UTC)


class EventMetrics(Protocol):
    """Metrics of a recorder."""

    def event(self, outcome: str) -> None:
        """`written`; `limited`: too many for one object; `overflow`: the queue is full; `failed`: the server did not accept it."""


class _NoMetrics:
    def event(self, outcome: str) -> None:
        """Nothing."""


class EventRecorder:
    """Writes core/v1 Events as `component`, from the process `instance` (the Pod's name). `run` it in a TaskGroup."""

    def __init__(
        self,
        client: KubeClient,
        *,
        component: str,
        instance: str,
        limits: KubeLimits,
        busy: Callable[[], bool] = lambda: False,
        now: Callable[[], datetime] = _utc_now,
        metrics: EventMetrics | None = None,
    ) -> None:
        """`busy`: whether other work should use the API server first."""
        self._busy = busy
        self._client = client
        self._component = component
        self._instance = instance
        self._limits = limits
        self._now = now
        self._metrics = metrics if metrics is not None else _NoMetrics()
        self._queue: asyncio.Queue[_Fact] = asyncio.Queue(limits.events_queued)
        self._written: LRUCache[tuple[object, ...], _Written] = LRUCache(limits.events_remembered)
        self._similar: LRUCache[tuple[object, ...], _Similar] = LRUCache(limits.events_remembered)
        self._buckets: LRUCache[tuple[str, ...], TokenBucket] = LRUCache(limits.events_remembered)
        self._sequence = 0
        self._hurried = asyncio.Event()
        """Set while queued Events are written without a pause."""
        self._pending = 0
        """Events that are queued or being written."""

    def event(self, about: Mapping[str, Any], kind: EventKind, reason: str, message: str) -> None:
        """Record an Event about the object `about` (apiVersion, kind, metadata). `reason` in CamelCase."""
        metadata = about["metadata"]
        reference = (
            str(about.get("apiVersion", "")),
            str(about.get("kind", "")),
            str(metadata.get("namespace", "")),
            str(metadata["name"]),
            str(metadata.get("uid", "")),
        )
        if not self._allowed(reference):
            self._metrics.event("limited")
            return
        try:
            self._queue.put_nowait(self._combine(_Fact(reference, kind, reason, _cut(message))))
            self._pending += 1
        except asyncio.QueueFull:
            self._metrics.event("overflow")

    async def run(self) -> NoReturn:
        """Write recorded Events until cancelled."""
        limits, clock = self._limits, asyncio.get_running_loop().time
        bucket = TokenBucket(rate=limits.events_rate, burst=limits.events_burst, clock=clock)
        while True:
            fact = await self._queue.get()
            try:
                await self._pace(bucket)
                await self._write(fact)
            except ApiError as error:
                self._metrics.event("failed")
                _log.warning("event not written", reason=fact.reason, error=str(error))
            except Exception:  # supervised edge: a failure on one Event must not stop the others
                self._metrics.event("failed")
                _log.exception("event write failed unexpectedly", reason=fact.reason)
            else:
                self._metrics.event("written")
            finally:
                self._pending -= 1
                self._queue.task_done()
            if not self._pending:
                self._hurried.clear()

    async def _pace(self, bucket: TokenBucket) -> None:
        """Wait for a token while there is other work."""
        loop = asyncio.get_running_loop()
        turn = loop.time() + bucket.reserve()
        while self._busy() and loop.time() < turn and not self._hurried.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(turn, loop.time() + _BUSY_CHECK)):
                    await self._hurried.wait()
        bucket.cancel_waits()

    def hurry(self) -> None:
        """Write queued Events without pauses, even while other work is waiting. Does not wait."""
        if self._pending:
            self._hurried.set()

    async def flush(self, *, timeout: float) -> None:
        """Wait until recorded Events are written, at most `timeout` seconds; requires that `run` is running. For an orderly stop."""
        self.hurry()
        try:
            async with asyncio.timeout(timeout):
                await self._queue.join()
        except TimeoutError:
            _log.warning("events not written before stop", events=self._pending, waited=timeout)

    def _allowed(self, reference: tuple[str, ...]) -> bool:
        """client-go's EventSourceObjectSpamFilter: a token bucket for each object."""
        bucket = self._buckets.get(reference)
        if bucket is None:
            limits, clock = self._limits, asyncio.get_running_loop().time
            bucket = TokenBucket(
                rate=1 / limits.events_refill, burst=limits.events_burst, clock=clock
            )
            self._buckets[reference] = bucket
        return bucket.try_acquire()

    def _combine(self, fact: _Fact) -> _Fact:
        """client-go's EventAggregator: after ten messages that differ only in their text, one Event for all of them."""
        now = asyncio.get_running_loop().time()
        key = (fact.reference, fact.kind, fact.reason)
        similar = self._similar.get(key)
        if similar is None or now - similar.since >= REMEMBERED_FOR:
            similar = _Similar(set(), now)
            self._similar[key] = similar
        if len(similar.messages) < SIMILAR or fact.message in similar.messages:
            similar.messages.add(fact.message)
            return fact
        return replace(fact, message=_cut(COMBINED + fact.message), combined=True)

    async def _write(self, fact: _Fact) -> None:
        now = asyncio.get_running_loop().time()
        written = self._written.get(fact.alike)
        if written is not None and now - written.last < REMEMBERED_FOR:
            patch = {
                "count": written.count + 1,
                "lastTimestamp": self._stamp(),
                "message": fact.message,
            }
            try:
                await writes.merge_patch(self._client, EVENTS, written.key, patch)
            except NotFound:  # Events live for an hour, and an administrator may delete them
                self._written.pop(fact.alike, None)
            else:
                written.count += 1
                written.last = now
                return
        key = await self._create(fact)
        self._written[fact.alike] = _Written(key, 1, now)

    async def _create(self, fact: _Fact) -> ObjectKey:
        api_version, kind, namespace, name, uid = fact.reference
        self._sequence += 1
        unique = f"{int(self._now().timestamp() * 1e6):x}{self._sequence % 4096:03x}"
        key = ObjectKey(namespace or "default", f"{name[:200]}.{unique}")
        stamp = self._stamp()
        body = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"namespace": key.namespace, "name": key.name},
            "involvedObject": {
                "apiVersion": api_version,
                "kind": kind,
                "name": name,
                **({"namespace": namespace} if namespace else {}),
                **({"uid": uid} if uid else {}),
            },
            "type": fact.kind,
            "reason": fact.reason,
            "message": fact.message,
            "count": 1,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "source": {"component": self._component, "host": self._instance},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
        }
        await writes.create(self._client, EVENTS, body)
        return key

    def _stamp(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%SZ")


def _cut(message: str) -> str:
    encoded = message.encode()
    if len(encoded) <= MESSAGE_BYTES:
        return message
    return encoded[: MESSAGE_BYTES - 3].decode(errors="ignore") + "..."
