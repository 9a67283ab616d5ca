"""Leading as a scope: until a moment of this loop's monotonic time, which may be moved on or brought to an end.

Not the election (`leaderelection.py`). Invariants: `is_leading` is false from that moment on, whichever task runs first in a
process that was frozen; the body of a scope is cancelled then, and its caller told by NotLeading.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol

import structlog

_log = structlog.get_logger(__name__)

FAILED_RETRY: Final = 5.0
"""Seconds until work that ended in an unexpected error is begun anew."""


class NotLeading(Exception):
    """Somebody else leads, or nobody. Leave the work to whoever does."""


class Leadership(Protocol):
    """What those who lead ask."""

    @property
    def is_leading(self) -> bool:
        """Whether a write may go out now."""

    def scope(self) -> AbstractAsyncContextManager[None]:
        """Raises NotLeading at its beginning, and out of its cancelled body once leading has ended."""

    async def acquired(self) -> None:
        """Return once leading."""


class AlwaysLeading:
    """The Leadership of whoever is alone."""

    is_leading = True

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[None]:
        """Never ends by itself."""
        yield

    async def acquired(self) -> None:
        """At once."""


async def while_leading(leadership: Leadership, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work whenever leading, cancelled in between; `work` that returns is done until leading begins anew.

    Work that raises is told of and begun anew: others of the process, who serve what is published, are left alone.
    """
    while True:
        await leadership.acquired()
        try:
            async with leadership.scope():
                await work()
                await asyncio.Event().wait()
        except NotLeading:
            pass
        except (
            Exception
        ):  # supervised edge: a bug in what a leader does must not stop what every replica does
            _log.exception("work of the leader failed unexpectedly", retry_in=FAILED_RETRY)
            await asyncio.sleep(FAILED_RETRY)


class Tenure:
    """The Leadership of one candidate. `on_change` hears of each beginning and end; it must not wait nor raise."""

    def __init__(self, on_change: Callable[[bool], None]) -> None:
        self._on_change = on_change
        self._until = float("-inf")
        self._told = False
        self._changed = asyncio.Event()
        """Set, and replaced, at each change."""
        self._scopes: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def until(self) -> float:
        """Leading lasts until then, in the loop's time."""
        return self._until

    @property
    def is_leading(self) -> bool:
        """The clock decides, not a task that has yet to run."""
        return self._told and asyncio.get_running_loop().time() < self._until

    @property
    def has_begun(self) -> bool:
        """Begun and not ended yet: true, too, while the end by the clock has yet to be noticed."""
        return self._told

    async def acquired(self) -> None:
        """Return once leading."""
        while not self.is_leading:
            await self._changed.wait()

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[None]:
        """See `Leadership.scope`."""
        if not self.is_leading:
            raise NotLeading("another replica leads")
        deadline = asyncio.timeout_at(self._until)
        try:
            async with deadline:
                self._scopes.add(deadline)
                self._idle.clear()
                yield
        except TimeoutError as error:
            if deadline.expired():
                raise NotLeading("leading ended") from error
            raise
        finally:
            self._scopes.discard(deadline)
            if not self._scopes:
                self._idle.set()

    async def no_scope_left(self) -> None:
        """Return once every body has ended."""
        await self._idle.wait()

    def extend(self, until: float) -> bool:
        """Lead, or go on leading, until then. False if that is past already."""
        self._move(until)
        if until <= asyncio.get_running_loop().time():
            return False
        if not self._told:
            self._tell(True)
        return True

    def end(self) -> bool:
        """Lead no more. False if that was so before."""
        self._move(float("-inf"))
        if self._told:
            self._tell(False)
            return True
        return False

    def _move(self, until: float) -> None:
        self._until = until
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(max(until, 0.0))

    def _tell(self, leading: bool) -> None:
        self._told = leading
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._on_change(leading)
