"""How long the loop was held while something else ran: a heartbeat on the loop itself.

Not a profiler. A machine with other work to do holds everybody up now and then, and never the same twice; what our code does
it does every time. So the verdict is over several tries, and the best counts.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

BEAT = 0.001
"""Seconds between two beats."""


async def stall_of(work: Callable[[], Awaitable[object]]) -> tuple[float, int]:
    """The longest time without a beat while `work` ran, seconds beyond `BEAT`, and the number of beats."""
    longest, beats = 0.0, 0

    async def beat() -> None:
        nonlocal longest, beats
        last = time.perf_counter()
        while True:
            await asyncio.sleep(BEAT)
            now = time.perf_counter()
            longest = max(longest, now - last - BEAT)
            beats += 1
            last = now

    heart = asyncio.create_task(beat(), name="heartbeat")
    await asyncio.sleep(BEAT)
    try:
        await work()
        await asyncio.sleep(2 * BEAT)  # a stall at the very end is seen by the next beat
    finally:
        heart.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await heart
    return longest, beats


async def least_stall(
    work: Callable[[], Awaitable[object]], *, below: float, tries: int = 8
) -> float:
    """The least of the longest stalls of up to `tries` runs; ends early once one is below."""
    best = float("inf")
    for _ in range(tries):
        stall, _ = await stall_of(work)
        best = min(best, stall)
        if best < below:
            break
    return best


async def busiest_turn(work: Callable[[], Awaitable[object]], *, tries: int = 3) -> float:
    """Seconds of processor time of the longest turn of the loop while `work` ran: of its longest turns, the least.

    For work on the loop itself. What other programs or threads do meanwhile does not count, so it holds on a busy machine.
    """
    return min([await _turns_of(work) for _ in range(tries)])


async def _turns_of(work: Callable[[], Awaitable[object]]) -> float:
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest = max(longest, now - last)
            last = now

    heart = asyncio.create_task(beat(), name="heartbeat")
    await asyncio.sleep(0)
    try:
        await work()
        await asyncio.sleep(0)
    finally:
        heart.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await heart
    return longest
