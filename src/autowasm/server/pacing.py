"""Who copies next: sends that could go on at once take turns, a few in each turn of the event loop.

`asyncio.sleep(0)` would do for one send; a thousand of them all go on in the same turn, which then lasts for half a second.
Invariants: first come, first served; nobody waits while a turn has room.
"""

import asyncio
from collections import deque


class Pacing:
    """Shared by all sends of a port."""

    def __init__(self, *, copies: int) -> None:
        """`copies`: how many go on in one turn."""
        self._copies = copies
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_called = False

    async def turn(self) -> None:
        """Return in a later turn of the loop that has room."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiting.append(waiter)
        if not self._is_called:
            self._is_called = True
            loop.call_soon(self._release, loop)
        await waiter

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        released = 0
        while self._waiting and released < self._copies:
            waiter = self._waiting.popleft()
            if not waiter.done():  # its send was cancelled
                waiter.set_result(None)
                released += 1
        self._is_called = bool(self._waiting)
        if self._is_called:
            loop.call_soon(self._release, loop)
