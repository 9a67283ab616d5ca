"""Work over all Pods of a mesh, in steps, so that it does not hold the event loop (ADR 22).

Not a thread: the work is Python, and would hold the interpreter there. Invariant: between two steps everything may change, so a
step keeps nothing that has to hold in the next one.
"""

import asyncio
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")


async def in_turns(steps: Generator[None, None, T]) -> T:
    """What the generator returns; each `yield` gives way to the others. Raises what it raises."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await asyncio.sleep(0)
