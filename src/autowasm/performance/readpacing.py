"""ReadPacer: delays the reads of a watch until several events may have gathered (ADR 25).

An event that arrives alone costs 25 times the processor time of one that arrives with others: the loop wakes, decrypts, parses,
and sets timers for one line. Invariants: no event is delayed by more than `pause` seconds; an occasional event is not delayed;
after a read that left bytes in the socket, the next one follows at once.
"""

import asyncio
from typing import Final

_LITTLE: Final = 64 * 1024
"""Bytes. A shorter read has emptied the socket."""
_AT_ONCE: Final = 5
"""Reads without a pause in between: an occasional event is read at once."""


class ReadPacer:
    """For one connection. `pause` in seconds, 0: none. `transport` None: the connection is closed."""

    def __init__(self, transport: asyncio.Transport | None, *, pause: float) -> None:
        self._transport = transport
        self._pause = pause
        self._took_all = False
        self._due = float("-inf")
        """GCRA's theoretical arrival time: the end of the pauses of all reads so far, in the loop's time."""

    async def wait(self) -> None:
        """Return when the next read is due. Incoming bytes stay in the socket meanwhile, and the loop wakes up once at most."""
        if not self._took_all or not self._pause:
            return
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now) + self._pause
        if self._due - now <= _AT_ONCE * self._pause:
            return
        self._hold(True)
        try:
            await asyncio.sleep(self._pause)
        finally:
            self._hold(False)

    def took(self, count: int) -> None:
        """Record that a read returned `count` bytes."""
        self._took_all = count < _LITTLE

    def _hold(self, on: bool) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        # While nothing is read, asyncio's TLS keeps filling a buffer of its own and wakes up each time. The buffer is as small
        # as possible during the pause only: a limit below the size of a TLS record has no other use.
        set_limits = getattr(transport, "set_read_buffer_limits", None)
        if set_limits is not None:
            set_limits(*((1, 0) if on else ()))
        if on:
            transport.pause_reading()
        else:
            transport.resume_reading()
