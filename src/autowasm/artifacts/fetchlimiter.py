"""FetchLimiter and CircuitBreakers, which decide when a fetch may begin (ADR 11).

FetchLimiter limits the concurrent fetches of a namespace, of a host and in total, fairly across namespaces. A fetch that joins another's flight
needs no slot. Invariants: no limit is ever exceeded; a waiting namespace gets the next fitting slot after at most one grant to
each other namespace, so one tenant's hundred hanging fetches delay no other tenant. A fetch that has held its slot for
`long_after` seconds no longer counts for its host, so two tenants cannot block a host for a third (ADR 0021); it still counts
for its namespace and in total. Some of the slots are reserved for namespaces that hold none, regardless of the hosts on which other fetches hang.

CircuitBreakers pause the requests to a source after repeated failures. The work queue retries each AutoWasm. Invariant: keys
are (host, repository, credential), so one tenant's bad secret or dead registry never stops another tenant's fetch.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar, cast

from cachetools import FIFOCache

from autowasm.artifacts.source import SourceKey
from autowasm.errors import AutoWasmError, SourceDenied, SourceUnavailable
from autowasm.limits import FetchLimits
from autowasm.reasons import Reason
from autowasm.telemetry.metrics import Metrics

T = TypeVar("T")
_MAX_KEPT = 10_000
"""Keys remembered; beyond it the oldest are dropped. Source keys come from specs, so tenants control their number."""


@dataclass(slots=True, eq=False)
class _Waiter:
    namespace: str
    host: str
    granted: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    timer: asyncio.TimerHandle | None = None
    """Fires when the fetch no longer counts for its host."""
    is_long: bool = False


class FetchLimiter:
    """Grants slots. Use it on one event loop only."""

    def __init__(self, limits: FetchLimits, *, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        # Namespace ▶ host ▶ waiters, the next in turn first. No waiter in it fits now, otherwise it would be granted.
        self._waiting: OrderedDict[str, OrderedDict[str, OrderedDict[_Waiter, None]]] = (
            OrderedDict()
        )
        self._waiting_count = 0
        self._running = 0
        self._by_namespace: Counter[str] = Counter()
        self._by_host: Counter[str] = Counter()
        self._by_both: Counter[tuple[str, str]] = Counter()
        self._overdue: OrderedDict[_Waiter, None] = OrderedDict()
        """Waiters that should no longer count for their host, while the limit of long fetches is reached."""
        self._long = 0
        self._max_long = min(limits.long, limits.total // 2)
        self._reserved = min(limits.reserved, limits.total // 4)

    @asynccontextmanager
    async def slot(self, namespace: str, host: str) -> AsyncIterator[None]:
        """Wait for a slot and hold it. Raises SourceUnavailable (`TooManyFetches`) if too many wait already."""
        waiter = _Waiter(namespace, host)
        if self._fits(namespace, host):
            self._admit(waiter)
        else:
            self._line_up(waiter)
        try:
            await waiter.granted
            yield
        finally:
            self._leave(waiter)

    def _fits(self, namespace: str, host: str) -> bool:
        limits = self._limits
        total = limits.total - (self._reserved if self._by_namespace[namespace] else 0)
        return (
            self._running < total
            and self._by_namespace[namespace] < limits.per_namespace
            and self._by_host[host] < limits.per_host
            and self._by_both[namespace, host] < limits.per_namespace_host
        )

    def _admit(self, waiter: _Waiter) -> None:
        self._count_running(waiter, 1)
        _add(self._by_host, waiter.host, 1)
        loop = asyncio.get_running_loop()
        waiter.timer = loop.call_later(self._limits.long_after, self._outlast, waiter)
        waiter.granted.set_result(None)

    def _outlast(self, waiter: _Waiter) -> None:
        """Free the slot at the host; the fetch continues."""
        self._overdue[waiter] = None
        self._make_long()
        self._grant()

    def _make_long(self) -> None:
        while self._overdue and self._long < self._max_long:
            waiter, _ = self._overdue.popitem(last=False)
            waiter.is_long = True
            self._long += 1
            _add(self._by_host, waiter.host, -1)

    def _line_up(self, waiter: _Waiter) -> None:
        if self._waiting_count >= self._limits.queued:
            raise SourceUnavailable(
                f"the fetch queue is full ({self._waiting_count} waiting); retried later",
                reason=Reason.TOO_MANY_FETCHES,
            )
        hosts = self._waiting.setdefault(waiter.namespace, OrderedDict())
        hosts.setdefault(waiter.host, OrderedDict())[waiter] = None
        self._count_waiting(1)

    def _leave(self, waiter: _Waiter) -> None:
        """Release the slot, or the waiter if it was never granted (its caller was cancelled)."""
        if waiter.granted.done() and not waiter.granted.cancelled():
            self._count_running(waiter, -1)
            self._leave_host(waiter)
            self._grant()
        else:
            self._drop(waiter)

    def _leave_host(self, waiter: _Waiter) -> None:
        cast(asyncio.TimerHandle, waiter.timer).cancel()  # set by `_admit`
        if not waiter.is_long:
            self._overdue.pop(waiter, None)
            _add(self._by_host, waiter.host, -1)
            return
        self._long -= 1
        self._make_long()

    def _drop(self, waiter: _Waiter) -> None:
        """Remove a waiter from its queue, if it is still there."""
        hosts = self._waiting.get(waiter.namespace, OrderedDict())
        line = hosts.get(waiter.host, OrderedDict())
        if waiter not in line:
            return
        del line[waiter]
        self._count_waiting(-1)
        if not line:
            del hosts[waiter.host]
        if not hosts:
            del self._waiting[waiter.namespace]

    def _grant(self) -> None:
        """Grant slots that fit, one for each namespace in turn, until a whole round grants none."""
        granted = True
        while granted and self._running < self._limits.total:
            granted = False
            for namespace in list(self._waiting):
                if self._running >= self._limits.total:
                    return
                waiter = self._next_that_fits(namespace)
                if waiter is None:
                    continue
                self._drop(waiter)
                if namespace in self._waiting:
                    self._waiting.move_to_end(namespace)
                    if waiter.host in self._waiting[namespace]:
                        self._waiting[namespace].move_to_end(waiter.host)
                self._admit(waiter)
                granted = True

    def _next_that_fits(self, namespace: str) -> _Waiter | None:
        """The namespace's next waiter, taking its hosts in turn."""
        if self._by_namespace[namespace] >= self._limits.per_namespace:
            return None
        for host, line in list(self._waiting[namespace].items()):
            if not self._fits(namespace, host):
                continue
            while line:
                waiter = next(iter(line))
                if not waiter.granted.done():
                    return waiter
                self._drop(waiter)  # cancelled; its caller has not run since
        return None

    def _count_running(self, waiter: _Waiter, step: int) -> None:
        self._running += step
        _add(self._by_namespace, waiter.namespace, step)
        _add(self._by_both, (waiter.namespace, waiter.host), step)
        self._metrics.fetches_running.set(self._running)

    def _count_waiting(self, step: int) -> None:
        self._waiting_count += step
        self._metrics.fetches_waiting.set(self._waiting_count)


def _add(counter: Counter[T], name: T, step: int) -> None:
    """Add, and remove names whose count is zero, because namespaces come and go."""
    counter[name] += step
    if not counter[name]:
        del counter[name]


@dataclass(slots=True)
class _Circuit:
    failures: int = 0
    open_until: float = 0.0
    last: str = ""


class CircuitBreakers:
    """The state of each source key. `clock` is monotonic, in seconds."""

    def __init__(
        self, limits: FetchLimits, *, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._states: FIFOCache[SourceKey, _Circuit] = FIFOCache(_MAX_KEPT)
        metrics.circuit_breakers_open.set_function(
            self._count_open
        )  # breakers close with time alone

    def check(self, key: SourceKey) -> None:
        """Raises SourceUnavailable (`BackingOff`) while the key's breaker is open."""
        state = self._states.get(key)
        left = state.open_until - self._clock() if state else 0.0
        if state is not None and left > 0:
            where = f"{key.host}/{key.repository}".rstrip("/")
            # The message has no remaining time: it is part of a status, which would change with it.
            raise SourceUnavailable(
                f"{where}: requests are paused after failures; last failure: {state.last}",
                reason=Reason.BACKING_OFF,
                retry_after=left,
            )

    def succeeded(self, key: SourceKey) -> None:
        """The source answered: reset its failures."""
        self._states.pop(key, None)

    def failed(self, key: SourceKey, error: AutoWasmError) -> None:
        """Count a failure of the source. A missing image or rejected content is not one."""
        if not isinstance(error, SourceUnavailable | SourceDenied):
            return
        state = self._states.pop(key, None) or _Circuit()
        state.failures += 1
        state.last = str(error)
        wait = getattr(error, "retry_after", None) or 0.0
        if state.failures >= self._limits.breaker_failures:
            wait = max(wait, self._limits.breaker_open)
        state.open_until = self._clock() + min(wait, self._limits.retry_maximum)
        self._states[key] = state

    def _count_open(self) -> float:
        now = self._clock()
        return float(sum(state.open_until > now for state in self._states.values()))
