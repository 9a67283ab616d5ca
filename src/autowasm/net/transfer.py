"""Transfer: one blocking network operation in a thread; the event loop decides when it ends (ADR 1).

The function in the thread makes the requests, through `net/dialer.py`. Invariants: when the deadline passes, the server is
too slow, or the awaiting task is cancelled, the loop shuts down every socket of the operation, so the thread returns whatever
the server does; a duplicate of each descriptor is kept, because wrapping a socket in TLS detaches the original; no
descriptor outlives the operation.

Timeouts in the thread do not suffice: urllib3 applies a read timeout to each `recv`, so a server that sends a byte now and
then holds the thread forever.
"""

import asyncio
import contextlib
import contextvars
import enum
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from autowasm.errors import SourceUnavailable
from autowasm.limits import Limits
from autowasm.net.pools import Pool
from autowasm.reasons import Reason
from autowasm.units import format_size

T = TypeVar("T")

_log = structlog.get_logger(__name__)
_current: contextvars.ContextVar["Transfer"] = contextvars.ContextVar("autowasm_transfer")

_MAX_TICK: Final = 0.25
"""Seconds between two checks of a running transfer: the largest delay of a verdict."""
_MIN_TICK: Final = 0.01
_SAMPLES: Final = 32


class TransferEnded(Exception):
    """Raised in the thread after the loop has ended its transfer. It never leaves the thread."""


class RateWatch:
    """Checks whether a stream was slower than `minimum` bytes/s over the last `window` seconds; never before one window has passed."""

    def __init__(self, *, minimum: int, window: float) -> None:
        self._minimum = minimum
        self._window = window
        self._samples: deque[tuple[float, int]] = deque()

    def is_too_slow(self, now: float, total: int) -> bool:
        """Record that `total` bytes had passed at time `now` (seconds of any clock), and return the verdict."""
        samples = self._samples
        if not samples or now - samples[-1][0] >= self._window / _SAMPLES:
            samples.append((now, total))
        while len(samples) > 1 and now - samples[1][0] >= self._window:
            samples.popleft()
        since, before = samples[0]
        elapsed = now - since
        return elapsed >= self._window and total - before < self._minimum * elapsed


class _Doing(enum.Enum):
    NOTHING = "nothing"
    ANSWER = "answer"
    BODY = "body"


@dataclass(frozen=True, slots=True)
class _Phase:
    doing: _Doing
    until: float = float("inf")
    seconds: float = 0.0


class Transfer:
    """The state of one operation that the thread and the loop share.

    The thread calls `adopt`, `received`, `expect_answer`, `expect_body`, `wait_for`, `pause`; the loop calls `verdict` and `end`.
    """

    def __init__(self, *, what: str, deadline: float, limits: Limits) -> None:
        """`deadline` in seconds from now; `what` names the operation in errors."""
        self.what = what
        self.total = 0
        """Bytes moved so far, in either direction."""
        self._limits = limits
        self._seconds = deadline
        self._deadline = time.monotonic() + deadline
        self._phase = _Phase(_Doing.NOTHING)
        self._watched: _Phase | None = None
        self._watch: RateWatch | None = None
        self._lock = threading.Lock()
        self._sockets: dict[int, socket.socket] = {}
        self._ended: Future[None] = Future()

    # In the thread.

    def adopt(self, sock: socket.socket) -> None:
        """Register `sock`, connected or not, so that the loop can shut it down. Raises TransferEnded."""
        with self._lock:
            if not self._ended.done():
                number = sock.fileno()
                # With fileno= alone the family and type are detected, and the shared blocking flag stays unchanged.
                duplicate = socket.socket(fileno=os.dup(number))
                previous = self._sockets.pop(number, None)
                self._sockets[number] = duplicate
                if previous is not None:
                    previous.close()
        self.check()

    def received(self, count: int) -> None:
        """`count` more bytes have moved. Raises TransferEnded."""
        self.total += count
        self.check()

    def expect_answer(self, seconds: float) -> None:
        """From now on the server has `seconds` until the next phase begins. Raises TransferEnded."""
        self._phase = _Phase(_Doing.ANSWER, until=time.monotonic() + seconds, seconds=seconds)
        self.check()

    def expect_body(self) -> None:
        """From now on bytes must move at the minimum rate. Raises TransferEnded."""
        if self._phase.doing is not _Doing.BODY:
            self._phase = _Phase(_Doing.BODY)
        self.check()

    def expect_nothing(self) -> None:
        """From now on only the deadline of the operation counts. Raises TransferEnded."""
        self._phase = _Phase(_Doing.NOTHING)
        self.check()

    def wait_for(self, future: Future[T], *, timeout: float) -> T:
        """The future's result. Raises TimeoutError after `timeout` seconds, TransferEnded, and the future's exception."""
        waited_for: set[Future[Any]] = {future, self._ended}
        wait(waited_for, timeout=timeout, return_when=FIRST_COMPLETED)
        if not future.done():
            future.cancel()
            self.check()
            raise TimeoutError(f"no result within {timeout:g} s")
        return future.result()

    def pause(self, seconds: float) -> None:
        """Sleep for `seconds`. Raises TransferEnded."""
        wait({self._ended}, timeout=seconds)
        self.check()

    def check(self) -> None:
        """Raises TransferEnded if the loop has ended this transfer."""
        if self._ended.done():
            raise TransferEnded(self.what)

    # On the loop.

    def verdict(self, now: float) -> SourceUnavailable | None:
        """Why the transfer must end at `now` (`time.monotonic`), or None."""
        phase = self._phase
        if now >= self._deadline:
            return SourceUnavailable(
                f"{self.what}: not finished within {self._seconds:.3g} s", reason=Reason.TIMEOUT
            )
        if now >= phase.until:
            return SourceUnavailable(
                f"{self.what}: no answer within {phase.seconds:g} s", reason=Reason.TIMEOUT
            )
        if phase.doing is not _Doing.BODY:
            return None
        if self._watch is None or self._watched is not phase:
            self._watched = phase
            self._watch = RateWatch(
                minimum=self._limits.minimum_rate, window=self._limits.minimum_rate_after
            )
        if self._watch.is_too_slow(now, self.total):
            return too_slow(self.what, limits=self._limits)
        return None

    def end(self) -> None:
        """Shut down every socket, at this and every later call; the thread raises TransferEnded at its next step."""
        with self._lock:
            if not self._ended.done():
                self._ended.set_result(None)
            for sock in self._sockets.values():
                # Not connected yet, or closed by the server: the next call shuts it down again.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the duplicated descriptors, after the thread is done."""
        with self._lock:
            for sock in self._sockets.values():
                sock.close()
            self._sockets.clear()


def too_slow(what: str, *, limits: Limits) -> SourceUnavailable:
    """The error for a stream below the minimum rate."""
    return SourceUnavailable(
        f"{what}: slower than {format_size(limits.minimum_rate)}/s for "
        f"{limits.minimum_rate_after:g} s, so it was aborted",
        reason=Reason.TOO_SLOW,
    )


def current_transfer() -> Transfer:
    """The transfer of this thread. Raises LookupError outside of `run_transfer`."""
    return _current.get()


async def run_transfer(
    pool: Pool,
    function: Callable[[Transfer], T],
    *,
    what: str,
    deadline: float,
    limits: Limits,
    on_bytes: Callable[[int], None] | None = None,
) -> T:
    """Run `function(transfer)` in the pool, at most `deadline` seconds including the wait for a thread.

    `on_bytes` is called on the loop, a few times a second, with the number of bytes moved since the last call. Raises
    SourceUnavailable (`Timeout`, `TooSlow`) and the exceptions of `function`.
    """
    transfer = Transfer(what=what, deadline=deadline, limits=limits)
    work = pool.submit(_run_in_thread, function, transfer)
    work.add_done_callback(lambda _: transfer.close())
    job = asyncio.wrap_future(work)
    tick = max(_MIN_TICK, min(_MAX_TICK, limits.minimum_rate_after / 8, deadline / 8))
    reported = 0
    try:
        while True:
            await asyncio.wait({job}, timeout=tick)
            if on_bytes is not None and transfer.total > reported:
                moved = transfer.total - reported
                reported += moved
                on_bytes(moved)
            if job.done():
                return job.result()
            verdict = transfer.verdict(time.monotonic())
            if verdict is not None:
                raise verdict
    finally:
        if not job.done():
            await _bring_back(transfer, work, job, limits=limits)


def _run_in_thread(function: Callable[[Transfer], T], transfer: Transfer) -> T:
    _current.set(transfer)  # in the copy of the context that Pool.submit made: nothing to reset
    transfer.check()
    return function(transfer)


async def _bring_back(
    transfer: Transfer, work: Future[T], job: asyncio.Future[T], *, limits: Limits
) -> None:
    """End the transfer and wait at most `limits.thread_return` for its thread."""
    job.add_done_callback(_retrieve_exception)
    transfer.end()
    if work.cancel():  # it had no thread yet
        return
    give_up = time.monotonic() + limits.thread_return
    while not job.done() and time.monotonic() < give_up:
        await asyncio.wait({job}, timeout=0.05)
        transfer.end()  # again: a socket that was not yet connected may be connected now
    if not job.done():
        _log.warning("transfer thread did not end", what=transfer.what)


def _retrieve_exception(job: asyncio.Future[Any]) -> None:
    """Retrieve the exception of an ended transfer: asyncio warns of exceptions that are never retrieved."""
    if not job.cancelled():
        job.exception()
