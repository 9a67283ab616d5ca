"""Thread pools for blocking work (ADR 1).

Invariant: no work of ours runs in asyncio's default executor, which has few threads on a small node, so a slow registry never
delays file operations or name lookups.
"""

import asyncio
import contextlib
import contextvars
import functools
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """A named ThreadPoolExecutor whose jobs keep the caller's context variables (log keys, request id)."""

    def __init__(self, name: str, *, threads: int) -> None:
        self.threads = threads
        self.executor = ThreadPoolExecutor(threads, thread_name_prefix=f"autowasm-{name}")

    def start(self) -> None:
        """Start all threads now, while nothing else runs; otherwise each starts when it is first needed.

        The thread that starts another waits until it runs, which held the loop for 10 ms on a busy processor.
        """
        together = threading.Barrier(self.threads + 1)
        for _ in range(self.threads):  # each job holds a thread, so the next one needs another
            self.executor.submit(together.wait)
        together.wait()

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Submit `function` to the pool, from any thread. The future's `cancel` works only until the function begins."""
        context = contextvars.copy_context()
        return self.executor.submit(context.run, functools.partial(function, *args, **kwargs))

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in the pool. Cancelling the await does not stop a function that has begun."""
        return await asyncio.wrap_future(self.submit(function, *args, **kwargs))

    async def run_shielded(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Like `run`, but `function` runs even if the await is cancelled before it begins: for cleanup.

        An error after the cancellation is lost.
        """
        return await asyncio.shield(asyncio.wrap_future(self.submit(function, *args, **kwargs)))

    def close(self) -> None:
        """Cancel jobs that have not begun, and do not wait for running ones: their owners shut their sockets down."""
        self.executor.shutdown(wait=False, cancel_futures=True)


class Closer:
    """A thread that closes file descriptors for finalizers.

    The garbage collector runs a finalizer within any code, even code that holds a lock of a thread pool: a finalizer that
    submits a job to a pool can deadlock with its own thread. `SimpleQueue.put` is reentrant.
    """

    def __init__(self) -> None:
        self._descriptors: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="autowasm-closer", daemon=True)
        self._closed = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, fd: int) -> None:
        """Close `fd` soon. Safe in finalizers and in any thread; blocks only if the thread has ended."""
        if self._closed:
            os.close(fd)
        else:
            self._descriptors.put(fd)

    def close(self) -> None:
        """Let the thread close the queued descriptors and end; do not wait for it."""
        self._closed = True
        self._descriptors.put(None)

    def _run(self) -> None:
        while (fd := self._descriptors.get()) is not None:
            with contextlib.suppress(OSError):  # the kernel has closed it anyway
                os.close(fd)


class Pools:
    """The pools of one process, a context manager: `transfer`, `parsing`, `names`, `disk`, and `closer`."""

    def __init__(self, *, transfers: int = 32) -> None:
        self.transfer = Pool("transfer", threads=transfers)
        """One thread for each blocking network transfer; as many as fetches may run at once."""
        self.parsing = Pool("parsing", threads=1)
        """Archives and modules: processor-bound, so one at a time leaves a core to the loop."""
        self.names = Pool("names", threads=8)
        """getaddrinfo for hosts that tenants name; an unresponsive name server blocks only these threads."""
        self.disk = Pool("disk", threads=4)
        """fsync, rename, unlink, hashing of stored blobs, reading ahead."""
        self._all = (self.transfer, self.parsing, self.names, self.disk)
        self.closer = Closer()
        """Closes the files of blobs without a reference."""

    def __enter__(self) -> Self:
        self.closer.start()
        return self

    def start(self) -> None:
        """See Pool."""
        for pool in self._all:
            pool.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pool in self._all:
            pool.close()
        self.closer.close()
