"""Single flight: callers that request the same work at the same time share one run of it.

It is not a cache: the waiting callers get the result, and it is then dropped. Invariants: the work for one key never runs
twice at once; it runs in the first slot that any of its callers is granted, so no caller waits in another tenant's queue;
it is cancelled when its last caller leaves.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Call:
    result: asyncio.Future[Any]
    waiters: int = 0
    entrants: set[asyncio.Task[None]] = field(default_factory=set)
    """Tasks that wait for a slot to run the work in; empty once it runs."""
    runner: asyncio.Task[None] | None = None
    refusal: Exception | None = None
    """Why an entrant got no slot; it counts only if no other entrant is left."""


class SingleFlight:
    """The calls in progress. `tasks` owns the running tasks and must outlive every caller of `join`."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._calls: dict[Hashable, _Call] = {}

    async def join(
        self,
        key: Hashable,
        work: Callable[[], Awaitable[T]],
        *,
        slot: Callable[[], AbstractAsyncContextManager[None]],
    ) -> T:
        """The result of `work` for `key`, run by the first caller that gets a slot. Raises the error of `work`."""
        call = self._calls.get(key)
        if call is None:
            call = _Call(asyncio.get_running_loop().create_future())
            self._calls[key] = call
        call.waiters += 1
        entrant = None
        if call.runner is None:
            entrant = self._tasks.create_task(
                self._enter(key, call, work, slot), name=f"flight slot {key}"
            )
            call.entrants.add(entrant)
        try:
            result: T = await asyncio.shield(call.result)
            return result
        finally:
            self._leave(key, call, entrant)

    async def _enter(
        self,
        key: Hashable,
        call: _Call,
        work: Callable[[], Awaitable[T]],
        slot: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        """Wait for a slot. The first entrant that gets one runs the work; `_begin` cancels the others before they get theirs."""
        me = asyncio.current_task()
        try:
            async with slot():
                self._begin(call, me)
                result = await work()
        except asyncio.CancelledError:
            if call.runner is me:
                self._end(key, call)
            raise
        except Exception as error:  # supervised edge: raised in every waiter
            if call.runner is me:
                self._fail(key, call, error)
            else:
                call.refusal = error
                call.entrants.discard(me)
                self._fail_if_stranded(key, call)
        else:
            call.result.set_result(result)
            self._end(key, call)

    def _leave(self, key: Hashable, call: _Call, entrant: asyncio.Task[None] | None) -> None:
        call.waiters -= 1
        if entrant is not None and entrant is not call.runner:
            entrant.cancel()
            call.entrants.discard(entrant)
        if not call.waiters:
            self._end(key, call)
        else:
            self._fail_if_stranded(key, call)

    @staticmethod
    def _begin(call: _Call, runner: asyncio.Task[None] | None) -> None:
        call.runner = runner
        for entrant in call.entrants:
            if entrant is not runner:
                entrant.cancel()
        call.entrants.clear()

    def _fail_if_stranded(self, key: Hashable, call: _Call) -> None:
        """Fail the flight if it does not run and no entrant is left."""
        if call.runner is None and not call.entrants and call.refusal is not None:
            self._fail(key, call, call.refusal)

    def _fail(self, key: Hashable, call: _Call, error: Exception) -> None:
        if not call.result.done():
            call.result.set_exception(error)
            call.result.exception()  # mark as retrieved: all waiters may have left
        self._end(key, call)

    def _end(self, key: Hashable, call: _Call) -> None:
        if self._calls.get(key) is call:
            del self._calls[key]
        if call.runner is not None and call.runner is not asyncio.current_task():
            call.runner.cancel()
        if not call.result.done():
            call.result.cancel()
