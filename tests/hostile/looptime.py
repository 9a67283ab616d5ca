"""Measures how long code holds the event loop, in processor time: an iteration of the loop, and a hold of the interpreter lock by a thread.

Not wall time: the work of other programs does not count. Their load still slows the processor, so each figure is scaled by the
time of a fixed piece of work at that moment: a loaded machine gives the same figures. Invariant: an iteration is the work of
the loop between two waits (`autowasm.telemetry.eventloop`); a hold is the work of a thread between two moments at which it
would hand the interpreter lock to a loop that requests it.
"""

import asyncio
import gc
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType, ModuleType
from typing import Any
from unittest import mock

_TICK = 0.001
"""Seconds of processor time between two signals; the kernel rounds it up to its own tick, 1 to 10 ms."""


_TRIES = 10
"""Our code does the same work each time: the excess over the minimum has other causes."""
_TRIES_BELOW = 50
"""With a limit, the first run below it is the last: on a loaded machine many successive runs exceed it."""

_WORK_SECONDS = 0.0012
"""Processor seconds of `_work` on the idle core for which the limits were chosen: the unit of the results."""


async def longest_iteration(
    work: Callable[[], Awaitable[object]], *, below: float = 0.0, scaled: bool = True
) -> float:
    """Processor seconds, scaled, of the longest iteration of the running loop while `work` runs.

    The minimum of ten runs, or of up to fifty with `below`: the first run below that is enough. Without `scaled`, for a lower bound:
    a slow machine makes an iteration longer, never shorter.
    """
    least = float("inf")
    _forget_other_tests()
    for _ in range(_TRIES_BELOW if below else _TRIES):
        least = min(least, await _iteration(work) * (_scale() if scaled else 1.0))
        if least < below:
            break
    return least


def longest_hold(
    function: Callable[[], object],
    *,
    below: float = 0.0,
    scaled: bool = True,
    released: Sequence[tuple[ModuleType, str]] = (),
) -> float:
    """Processor seconds, scaled, of the longest hold of the interpreter lock while `function` runs on a thread.

    CPython (3.9 to 3.14) hands over the lock at the same places of a program at which it runs signal handlers: at calls of
    Python functions and at the ends of loops (ceval.c, `eval_breaker`). Signal handlers run on the main thread only, so
    `function` runs there, without a loop, under a timer of processor time. A call into C that releases the lock also
    counts as a hold, except for the functions in `released`: names in modules. The number of runs and `scaled` are those of
    `longest_iteration`.
    """
    least = float("inf")
    _forget_other_tests()
    for _ in range(_TRIES_BELOW if below else _TRIES):
        with _signals(released) as held:
            function()
        least = min(least, held() * (_scale() if scaled else 1.0))
        if least < below:
            break
    return least


def _forget_other_tests() -> None:
    """Exclude objects that other tests left in this process from garbage collection, whose time counts."""
    gc.collect()
    gc.freeze()


def _scale() -> float:
    """The speed of this machine now; at most 1, so that the limits are not stricter on a faster machine."""
    took = []
    with _unmeasured():
        for _ in range(3):
            began = time.thread_time()
            _work()
            took.append(time.thread_time() - began)
    return min(1.0, _WORK_SECONDS / min(took))


def _work() -> int:
    table = {f"key-{number}": [number] for number in range(3000)}
    return sum(len(key) + value[0] for key, value in table.items())


async def _iteration(work: Callable[[], Awaitable[object]]) -> float:
    selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    select, longest, began = selector.select, 0.0, time.thread_time()

    def timed(timeout: float | None = None) -> object:
        nonlocal longest, began
        longest = max(longest, time.thread_time() - began)
        try:
            return select(timeout)
        finally:
            began = time.thread_time()

    selector.select = timed
    try:
        with _unmeasured():
            await asyncio.sleep(0)  # the work has iterations of its own
            await work()
            await asyncio.sleep(0)
    finally:
        del selector.select
    return longest


@contextmanager
def _unmeasured() -> Iterator[None]:
    """Disable the tracer of `make coverage`, which takes processor time at every line. Other tests execute the same lines."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


@contextmanager
def _signals(released: Sequence[tuple[ModuleType, str]]) -> Iterator[Callable[[], float]]:
    """Yields a function that returns, after the context, the length of the longest hold."""
    assert threading.current_thread() is threading.main_thread()
    longest, last, counts = 0.0, 0.0, True

    def mark(_number: int = 0, _frame: FrameType | None = None) -> None:
        nonlocal longest, last
        now = time.thread_time()
        if counts:
            longest = max(longest, now - last)
        last = now

    def uncounted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal counts
            mark()
            counts = False
            try:
                return function(*arguments)
            finally:
                mark()
                counts = True

        return call

    with ExitStack() as stack:
        stack.enter_context(_unmeasured())
        for module, name in released:
            function = getattr(module, name)
            stack.enter_context(mock.patch.object(module, name, uncounted(function)))
        stack.callback(signal.signal, signal.SIGPROF, signal.signal(signal.SIGPROF, mark))
        stack.callback(signal.setitimer, signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_PROF, _TICK, _TICK)
        last = time.thread_time()
        yield lambda: longest
        mark()
