"""A copy from another replica first, and what costs more only if that does not come soon.

Not the copying (`peers.py`). Invariant: the other replicas, whatever they do, delay what is tried beside them by `ALONE`
seconds at most, and their failure is never what is reported.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

ALONE: Final = 2.0
"""Seconds that the other replicas have for themselves: 32 MiB within a cluster take less, and Envoy waits for 10."""


async def copied_or(
    copy: Coroutine[Any, Any, bool], otherwise: Callable[[], Coroutine[Any, Any, T]]
) -> T | None:
    """None if `copy` says True, else the result of `otherwise`, begun when the copy fails or after `ALONE` seconds.

    Raises what `otherwise` raises, once the copy has failed too.
    """
    copying = asyncio.create_task(copy, name="copy from a replica")
    tasks: list[asyncio.Task[Any]] = [copying]
    try:
        await asyncio.wait([copying], timeout=ALONE)
        if copying.done() and copying.result():
            return None
        other = asyncio.create_task(otherwise(), name="beside the copy")
        tasks.append(other)
        await asyncio.wait(tasks if not copying.done() else [other], return_when="FIRST_COMPLETED")
        if other.done() and other.exception() is None:
            return other.result()
        if await copying:
            return None
        return await other
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
