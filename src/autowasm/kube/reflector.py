"""client-go's Reflector (`tools/cache/reflector.go`): keeps a store equal to the state of the server.

It lists, then watches from there; it resumes where a watch ended, and lists again only where resuming is impossible.
Handlers are in `informer.py`. Invariants: the store has the server's state at `position`; an incomplete list changes nothing;
stored objects are used again only for a list that continues the history in which they were received.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final, Generic, NoReturn, Protocol, TypeVar

import structlog

from autowasm.flowcontrol import Backoff
from autowasm.kube import errors
from autowasm.kube.codec import Bookmark, Stored, WatchEvent
from autowasm.kube.listwatch import ListerWatcher
from autowasm.kube.resources import ObjectKey
from autowasm.limits import KubeLimits

_log = structlog.get_logger(__name__)

T = TypeVar("T")
Events = AsyncGenerator[WatchEvent[T] | Bookmark, None]

BACKOFF: Final = Backoff(base=0.8, maximum=30.0, jitter=1.0)
"""client-go's values: with them, a recovering API server receives 98 % fewer requests than with a fixed delay of one second."""
BACKOFF_RESET: Final = 120.0
"""Seconds without a failure after which the backoff starts from the beginning."""
SHORT_WATCH: Final = 1.0
FRESH_LIST: Final = 30.0
"""Seconds. A position that expires this soon after a list indicates a problem: wait before the next list. Later it is normal."""

_NOT_OFFERED: Final = (
    errors.BadRequest,
    errors.Invalid,
    errors.Forbidden,
    errors.WatchFrozen,
)
"""Answers to a streaming list from servers that have it disabled, do not know it, or ignore it."""

_RESUMED: Final = (errors.Unreachable, errors.TooManyRequests, errors.Unauthorized)
"""After these the position is still valid, and a list would only add load on the server."""


class Store(Protocol[T]):
    """The target of the reflector (client-go's ReflectorStore)."""

    def stored(self, key: ObjectKey, /) -> T | None:
        """The object under `key`, or None."""

    async def replace(self, objects: Mapping[ObjectKey, T], /) -> None:
        """Replace all objects."""

    def upsert(self, key: ObjectKey, new: T, /) -> None:
        """An object was added or modified."""

    def delete(self, key: ObjectKey, /) -> None:
        """An object was deleted."""


class ReflectorMetrics(Protocol):
    """Metrics of a reflector."""

    def listed(self, reason: str, objects: int) -> None:
        """A list was fetched: `start`, or why a watch could not be resumed."""

    def watch_ended(self, reason: str) -> None:
        """A watch ended: `timeout` (normal), or the name of an error class."""


class NoMetrics:
    """A ReflectorMetrics that does nothing."""

    def listed(self, reason: str, objects: int) -> None:
        """Nothing."""

    def watch_ended(self, reason: str) -> None:
        """Nothing."""


class _Delays:
    """Backoff after consecutive failures."""

    def __init__(self, rng: random.Random | None) -> None:
        self._rng = rng
        self._failures = 0
        self._last = float("-inf")

    def reset(self) -> None:
        self._failures = 0

    def after(self, error: errors.ApiError) -> float:
        now = asyncio.get_running_loop().time()
        self._failures = self._failures + 1 if now - self._last < BACKOFF_RESET else 1
        delay = max(BACKOFF.delay(self._failures, rng=self._rng), error.retry_after or 0.0)
        self._last = now + delay
        return delay


def _is_older(position: str, other: str | None) -> bool:
    """Whether `position` is before `other`, if both are numbers (KEP 5504)."""
    if other is None or not (position.isdecimal() and other.isdecimal()):
        return False
    return int(position) < int(other)


class Reflector(Generic[T]):
    """One resource. `run` never returns and raises no ApiError: it retries."""

    def __init__(
        self,
        name: str,
        *,
        list_watch: ListerWatcher[T],
        store: Store[T],
        limits: KubeLimits,
        metrics: ReflectorMetrics | None = None,
        rng: random.Random | None = None,
        streaming: bool = True,
    ) -> None:
        self._list_watch = list_watch
        self._store = store
        self._limits = limits
        self._metrics = metrics or NoMetrics()
        self._rng = rng or random.Random()  # noqa: S311 spreads load, hides nothing
        self._log = _log.bind(resource=name)
        self._streaming = streaming
        self._stream_next = streaming
        self._position: str | None = None
        """resourceVersion to resume after; None: a list is needed."""
        self._last_position: str | None = None
        """The last known `position`."""
        self._may_reuse = False
        """Whether the next list may use stored objects again."""
        self._reason = "start"
        self._empty_watches = 0
        self._bookmarks = False
        self._failing_since: float | None = None
        self._watch_began = float("-inf")
        self._last_list = float("-inf")
        self._last_event: float | None = None
        self._list_delays = _Delays(rng)
        self._watch_delays = _Delays(rng)

    @property
    def position(self) -> str | None:
        """The resourceVersion up to which the store is current; None while a list is needed."""
        return self._position

    @property
    def last_event_age(self) -> float | None:
        """Seconds since the last data from the server: event, bookmark or list. None: no data yet, or `run` has ended."""
        last = self._last_event
        return None if last is None else asyncio.get_running_loop().time() - last

    async def run(self) -> NoReturn:
        """List and watch until cancelled. A second `run` lists again: a resumed watch does not show when it has caught up."""
        self._require_list("start")
        try:
            while True:
                try:
                    if self._position is None and not self._stream_next:
                        await self._list()
                    await self._watch()
                except errors.ApiError as error:
                    await asyncio.sleep(self._delay_after(error))
        finally:
            self._last_event = None  # no watch is open, so the age would not measure the server

    async def _list(self) -> None:
        objects: dict[ObjectKey, T] = {}
        token = ""
        while True:
            page = await self._list_watch.list_page(continue_token=token, stored=self._reusable())
            objects.update(page.items)
            if not (token := page.continue_token):
                break
        await self._replace(objects, page.resource_version)

    async def _replace(self, objects: dict[ObjectKey, T], resource_version: str) -> None:
        if not resource_version:
            raise errors.UnexpectedAnswer("the list has no resourceVersion")
        if self._may_reuse and _is_older(resource_version, self._last_position):
            # etcd was restored from a backup: the resourceVersion of a stored object may now belong to another object.
            self._may_reuse = False
            raise errors.UnexpectedAnswer(
                f"the list is of resourceVersion {resource_version}, but {self._last_position} was received before"
            )
        await self._store.replace(objects)
        self._position = resource_version
        self._empty_watches = 0
        self._last_event = self._last_list = asyncio.get_running_loop().time()
        self._metrics.listed(self._reason, len(objects))
        self._log.info("listed", reason=self._reason, objects=len(objects))

    async def _watch(self) -> None:
        """One watch, from `position`; without one, a streaming list first. Returns when the server ends it normally."""
        loop = asyncio.get_running_loop()
        initial = self._position is None
        timeout = self._limits.watch_timeout * (1.0 + self._rng.random())
        self._watch_began = loop.time()
        has_events = initial
        async with (
            self._list_watch.watch(
                resource_version=self._position or "",
                initial=initial,
                timeout=timeout,
                silence=self._limits.initial_silence if initial else self._silence(timeout),
                stored=self._reusable() if initial else None,
            ) as stream,
            aclosing(stream.events()) as events,
        ):
            if initial:
                await self._collect(events)
                stream.silence = self._silence(timeout)
            async for event in events:
                has_events = True
                self._last_event = loop.time()
                self._apply(event)
                if isinstance(event, Bookmark):
                    stream.silence = self._silence(timeout)
        self._check_end(has_events=has_events)

    async def _collect(self, events: Events[T]) -> None:
        """A streaming list: objects until the bookmark that ends the list."""
        objects: dict[ObjectKey, T] = {}
        async for event in events:
            self._last_event = asyncio.get_running_loop().time()
            if isinstance(event, Bookmark):
                if event.initial_events_end:
                    await self._replace(objects, event.resource_version)
                    return
            elif event.type == "DELETED":
                objects.pop(event.key, None)
            else:
                objects[event.key] = event.object
        raise errors.VeryShortWatch("the streaming list ended before it was complete")

    def _apply(self, event: WatchEvent[T] | Bookmark) -> None:
        self._watch_delays.reset()
        self._failing_since = None
        self._empty_watches = 0
        if isinstance(event, Bookmark):
            self._bookmarks = True
        elif event.type == "DELETED":
            self._store.delete(event.key)
        else:
            self._store.upsert(event.key, event.object)
        if event.resource_version:
            self._position = event.resource_version

    def _check_end(self, *, has_events: bool) -> None:
        """A watch that ended without an error and without an event may never send one."""
        lasted = asyncio.get_running_loop().time() - self._watch_began
        if not has_events:
            self._empty_watches += 1
            if self._empty_watches >= self._limits.relist_after_empty:
                raise errors.StaleWatch(f"{self._empty_watches} watches returned no events")
            if lasted < SHORT_WATCH:
                raise errors.VeryShortWatch(f"a watch ended after {lasted:.3f} s without events")
        self._failing_since = None
        self._metrics.watch_ended("timeout")

    def _silence(self, timeout: float) -> float:
        """Seconds for which this server may be silent. Only a server that sends bookmarks is known to send data every minute."""
        longest = timeout + self._limits.watch_grace
        return min(self._limits.bookmark_silence, longest) if self._bookmarks else longest

    def _delay_after(self, error: errors.ApiError) -> float:
        """Choose the next step after an error. Returns the seconds to wait before it."""
        if self._position is None:
            return self._after_failed_list(error)
        reason = type(error).__name__
        self._metrics.watch_ended(reason)
        if self._can_resume(error):
            delay = self._watch_delays.after(error)
            self._log.info("watch interrupted", error=str(error), retry_in=round(delay, 3))
            return delay
        self._require_list(reason)
        age = asyncio.get_running_loop().time() - self._last_list
        if isinstance(error, errors.Expired) and age > FRESH_LIST:
            delay = 0.0
        else:
            delay = self._list_delays.after(error)
        self._log.info("new list needed", error=str(error), retry_in=round(delay, 3))
        return delay

    def _reusable(self) -> Stored[T] | None:
        return self._store.stored if self._may_reuse else None

    def _require_list(self, reason: str) -> None:
        if self._position is not None:
            self._last_position = self._position
            # A server that has not reached our position may have been restored from a backup.
            self._may_reuse = reason != errors.TooLargeResourceVersion.__name__
        self._position = None
        self._reason = reason
        self._stream_next = self._streaming
        self._failing_since = None

    def _can_resume(self, error: errors.ApiError) -> bool:
        now = asyncio.get_running_loop().time()
        if (
            self._failing_since is None
            or now - self._watch_began > self._limits.relist_after_errors
        ):
            self._failing_since = now
        if isinstance(error, errors.WatchFrozen):
            self._empty_watches += 1
            return self._empty_watches < self._limits.relist_after_empty
        if isinstance(error, errors.ServerError):
            failing = now - self._failing_since
            too_large = isinstance(error, errors.TooLargeResourceVersion)
            return not too_large and failing < self._limits.relist_after_errors
        return isinstance(error, _RESUMED)

    def _after_failed_list(self, error: errors.ApiError) -> float:
        streamed, self._stream_next = self._stream_next, False
        if streamed and (isinstance(error, _NOT_OFFERED) or type(error) is errors.ApiError):
            # Forbidden may mean that we may list but not watch, and that may change.
            self._streaming = isinstance(error, errors.Forbidden)
            self._log.info("streaming list not available", error=str(error))
            return 0.0
        # A failed streaming list is followed by an ordinary list, and vice versa.
        self._stream_next = self._streaming and not streamed
        delay = self._list_delays.after(error)
        self._log.warning("list failed", error=str(error), retry_in=round(delay, 3))
        return delay
