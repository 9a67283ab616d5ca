"""finish(): a blocking job whose result is never lost.

Not a pool (`net/pools.py`). Invariant: what a job made is handed to somebody, even when the one who asked was cancelled.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from autowasm.net.pools import Pool

T = TypeVar("T")


async def finish(pool: Pool, job: Callable[[], T], *, abandoned: Callable[[T], object]) -> T:
    """As `pool.run`, but when we are cancelled while `job` runs on, its result goes to `abandoned`, on the loop."""
    loop = asyncio.get_running_loop()
    future = pool.submit(job)

    def late(done: Future[T]) -> None:
        if not done.cancelled() and done.exception() is None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(abandoned, done.result())

    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        future.add_done_callback(late)
        raise
