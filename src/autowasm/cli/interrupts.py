"""Ctrl-C and SIGTERM in the commands of `wasmc`.

Invariants: the first signal cancels the work, which removes its temporary files; on a terminal, a message names the operation that the command waits
for; the second signal exits at once. An interrupted command exits with status 130 or 143.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from typing import Any, Final, TypeVar

T = TypeVar("T")

_CLEAR_LINE: Final = "\r\x1b[K"
_waits: Final[list[str]] = []


@contextlib.contextmanager
def waits_for(what: str) -> Iterator[None]:
    """`what` is shown to a user who interrupts the block: `the registry r.example`."""
    _waits.append(what)
    try:
        yield
    finally:
        _waits.remove(what)


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`. Raises its errors, and after a signal KeyboardInterrupt with the exit status as its argument."""
    signals = _Signals()
    try:
        return asyncio.run(signals.follow(work))
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt(signals.status or 128 + signal.SIGINT) from error


class _Signals:
    def __init__(self) -> None:
        self.status = 0
        self._task: asyncio.Task[Any] | None = None

    async def follow(self, work: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._received, number)
        return await work

    def _received(self, number: signal.Signals) -> None:
        if self.status:
            os._exit(128 + number)
        self.status = 128 + number
        if sys.stderr.isatty():
            what = _waits[-1] if _waits else "the command"
            print(
                f"{_CLEAR_LINE}wasmc: stopping: waiting for {what}; Ctrl-C again exits at once",
                file=sys.stderr,
                flush=True,
            )
        if self._task is not None:
            self._task.cancel()
