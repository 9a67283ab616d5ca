"""StopSignals: SIGTERM and SIGINT as something to wait for.

Not what is done about them (`process.py`).
"""

import asyncio
import contextlib
import signal
from collections.abc import Iterator


class StopSignals:
    """The first signal asks to stop, the second to hurry."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._again = asyncio.Event()

    def signalled(self) -> None:
        """One more came."""
        (self._again if self._asked.is_set() else self._asked).set()

    async def wait(self) -> None:
        """Return once asked to stop."""
        await self._asked.wait()

    async def delay(self, seconds: float) -> None:
        """Return after so long, or at once when told to hurry."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._again.wait()


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Catch both signals while inside."""
    loop = asyncio.get_running_loop()
    stop = StopSignals()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.signalled)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
