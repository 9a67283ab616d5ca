"""Slots: limits concurrent children to one for each namespace and two in total, fair over namespaces.

Invariants: no limit is ever exceeded; waiting namespaces take turns, so a namespace with a hundred requests delays another's
request by at most one; a caller that waits for a lock holds no slot meanwhile.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import Gauge

from autowasm.limits import PreflightLimits
from autowasm.preflight.verdicts import NoVerdict, NoVerdictReason


class Slots:
    """Grants slots. Use it on one event loop only. `running` and `waiting` are set to the numbers of callers."""

    def __init__(self, limits: PreflightLimits, *, running: Gauge, waiting: Gauge) -> None:
        self._limits = limits
        self._running_gauge = running
        self._waiting_gauge = waiting
        self._running: set[str] = set()
        """The namespaces that have a slot, or wait for a lock in between."""
        self._without: set[str] = set()
        """Namespaces in `_running` that have no slot at the moment."""
        self._back: deque[tuple[str, asyncio.Future[None]]] = deque()
        """Namespaces that have their lock and wait for a slot: they come before all that wait for their first slot."""
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._waiting_count = 0

    @asynccontextmanager
    async def place(self, namespace: str) -> AsyncIterator[None]:
        """Wait for a slot and hold it. Raises NoVerdict if too many wait already."""
        await self._enter(namespace)
        try:
            yield
        finally:
            self._running.discard(namespace)
            self._grant()

    @asynccontextmanager
    async def turn(self, namespace: str, lock: asyncio.Lock) -> AsyncIterator[None]:
        """Within `place`: wait for `lock` without the slot, and hold both."""
        self._without.add(namespace)
        if lock.locked():
            self._grant()
        try:
            async with lock:
                await self._return(namespace)
                yield
        finally:
            self._without.discard(namespace)
            self._show()

    async def _return(self, namespace: str) -> None:
        if self._has_room() and not self._back:
            self._without.discard(namespace)
            self._show()
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._back.append((namespace, granted))
        await granted

    def _has_room(self) -> bool:
        return len(self._running) - len(self._without) < self._limits.total

    async def _enter(self, namespace: str) -> None:
        if self._fits(namespace) and namespace not in self._waiting:
            self._running.add(namespace)
            self._show()
            return
        if self._waiting_count >= self._limits.queued:
            raise NoVerdict(
                NoVerdictReason.TOO_MANY_REQUESTS,
                f"{self._waiting_count} modules wait for their pre-flight",
            )
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(namespace, deque()).append(granted)
        self._waiting_count += 1
        self._show()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._forget(namespace, granted)
            else:  # granted at the same moment
                self._running.discard(namespace)
                self._grant()
            raise

    def _fits(self, namespace: str) -> bool:
        return self._has_room() and namespace not in self._running

    def _forget(self, namespace: str, granted: asyncio.Future[None]) -> None:
        line = self._waiting.get(namespace)
        if line is None or granted not in line:
            return
        line.remove(granted)
        self._waiting_count -= 1
        if not line:
            del self._waiting[namespace]
        self._show()

    def _grant(self) -> None:
        while self._back and self._has_room():
            namespace, returning = self._back.popleft()
            if not returning.done():  # else cancelled
                self._without.discard(namespace)
                returning.set_result(None)
        for namespace in list(self._waiting):
            if not self._fits(namespace):
                continue
            line = self._waiting.pop(namespace)
            while line:
                granted = line.popleft()
                self._waiting_count -= 1
                if not granted.done():  # else cancelled; its caller has not run since
                    self._running.add(namespace)
                    granted.set_result(None)
                    break
            if line:
                self._waiting[namespace] = line  # now last
        self._show()

    def _show(self) -> None:
        self._running_gauge.set(len(self._running) - len(self._without))
        self._waiting_gauge.set(self._waiting_count + len(self._without))
