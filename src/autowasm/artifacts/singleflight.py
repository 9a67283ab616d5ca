"""Single flight: callers who want the same thing at the same time share one run of the work.

Not a cache: a result is handed to those who waited and then forgotten. Invariants: the work for one key never runs twice
at once; it runs in the first place that any of its waiters is granted, so nobody waits in somebody else's queue; it is
cancelled when its last waiter leaves.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Flight:
    result: asyncio.Future[Any]
    waiters: int = 0
    entrants: set[asyncio.Task[None]] = field(default_factory=set)
    """Those who wait for a place to run the work in; empty once it runs."""
    runner: asyncio.Task[None] | None = None
    refusal: Exception | None = None
    """Why an entrant got no place; matters only if no other is left."""


class Flights:
    """The flights under way. `tasks` owns what runs and must outlive every caller of `join`."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._flights: dict[Hashable, _Flight] = {}

    async def join(
        self,
        key: Hashable,
        work: Callable[[], Awaitable[T]],
        *,
        place: Callable[[], AbstractAsyncContextManager[None]],
    ) -> T:
        """The result of `work` for `key`, run by us or by whoever is first to get a place. Raises what it raises."""
        flight = self._flights.get(key)
        if flight is None:
            flight = _Flight(asyncio.get_running_loop().create_future())
            self._flights[key] = flight
        flight.waiters += 1
        entrant = None
        if flight.runner is None:
            entrant = self._tasks.create_task(
                self._enter(key, flight, work, place), name=f"flight place {key}"
            )
            flight.entrants.add(entrant)
        try:
            result: T = await asyncio.shield(flight.result)
            return result
        finally:
            self._leave(key, flight, entrant)

    async def _enter(
        self,
        key: Hashable,
        flight: _Flight,
        work: Callable[[], Awaitable[T]],
        place: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        """Wait for a place; the first to get one runs the work, and `_begin` cancels the others before they get theirs."""
        me = asyncio.current_task()
        try:
            async with place():
                self._begin(flight, me)
                result = await work()
        except asyncio.CancelledError:
            if flight.runner is me:
                self._end(key, flight)
            raise
        except Exception as error:  # supervised edge: every waiter gets it raised
            if flight.runner is me:
                self._fail(key, flight, error)
            else:
                flight.refusal = error
                flight.entrants.discard(me)
                self._fail_if_stranded(key, flight)
        else:
            flight.result.set_result(result)
            self._end(key, flight)

    def _leave(self, key: Hashable, flight: _Flight, entrant: asyncio.Task[None] | None) -> None:
        flight.waiters -= 1
        if entrant is not None and entrant is not flight.runner:
            entrant.cancel()
            flight.entrants.discard(entrant)
        if not flight.waiters:
            self._end(key, flight)
        else:
            self._fail_if_stranded(key, flight)

    @staticmethod
    def _begin(flight: _Flight, runner: asyncio.Task[None] | None) -> None:
        flight.runner = runner
        for entrant in flight.entrants:
            if entrant is not runner:
                entrant.cancel()
        flight.entrants.clear()

    def _fail_if_stranded(self, key: Hashable, flight: _Flight) -> None:
        """Nobody runs it and nobody is left who could."""
        if flight.runner is None and not flight.entrants and flight.refusal is not None:
            self._fail(key, flight, flight.refusal)

    def _fail(self, key: Hashable, flight: _Flight, error: Exception) -> None:
        if not flight.result.done():
            flight.result.set_exception(error)
            flight.result.exception()  # a flight whose waiters have all left is nobody's error
        self._end(key, flight)

    def _end(self, key: Hashable, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.runner is not None and flight.runner is not asyncio.current_task():
            flight.runner.cancel()
        if not flight.result.done():
            flight.result.cancel()
