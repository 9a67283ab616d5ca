"""Tasks that outlive the request that started them, and waiting for the first of several things.

Not a TaskGroup: a task that fails here ends nothing but itself, and `close` may be called by another task than the one
that made the owner. Invariant: after `close` none of its tasks runs.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

_log = structlog.get_logger(__name__)


class TaskOwner:
    """Starts tasks, keeps them, and cancels what is left."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run `work`. What it raises is logged: it should handle its own errors."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task failed", task=task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancel all and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def first_of(*waits: Coroutine[Any, Any, object], deadline: float) -> bool:
    """Wait until one of `waits` returns; the others are cancelled. False if `deadline` (loop time) came before."""
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
