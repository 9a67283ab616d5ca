"""The work queue of client-go (`util/workqueue`): deduplicating, delaying, rate limited, fair over groups.

The queue holds keys, not events; a worker reads the state behind a key. Invariants: a key is never with two workers at once; an
`add` while a worker has the key is never lost; a burst of adds becomes one reconcile. The three layers of client-go are three
classes: `_Ready` (queue.go), `_Delayed` (delaying_queue.go) and `WorkQueue`, which adds the rate limiter (rate_limiting_queue.go)
and is the one to use. `FairQueue` orders the waiting keys.
"""

import asyncio
import heapq
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Final, Generic, Protocol, TypeVar

from autowasm.flowcontrol import Backoff

K = TypeVar("K", bound=Hashable)


class FairQueue(Generic[K]):
    """Waiting keys: first in, first out within a group, and round robin over the groups.

    `group` returns the group of a key, for example its namespace; None: a plain FIFO. Invariants: keys of one group leave in the
    order of their arrival; a key at the head of its group leaves after at most one key of each other group, so a group with a
    thousand keys delays another group's key by only one.
    """

    def __init__(self, group: Callable[[K], Hashable] | None = None) -> None:
        self._group = group
        self._groups: OrderedDict[Hashable, deque[K]] = OrderedDict()  # the next group first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, key: K) -> None:
        """Append the key to its group."""
        group = self._group(key) if self._group is not None else None
        self._groups.setdefault(group, deque()).append(key)
        self._count += 1

    def pop(self) -> K:
        """The next key. Raises IndexError if there is none."""
        if not self._groups:
            raise IndexError("the queue is empty")
        group, keys = next(iter(self._groups.items()))
        key = keys.popleft()
        self._count -= 1
        if keys:
            self._groups.move_to_end(group)
        else:
            # A group that returns starts at the end, so adding one key at a time gains nothing.
            del self._groups[group]
        return key

    def clear(self) -> None:
        """Remove all keys."""
        self._groups.clear()
        self._count = 0


DEFAULT_BACKOFF: Final = Backoff(base=1.0, maximum=300.0, jitter=0.1)
"""For work that calls other services. client-go's 5 ms × 2^n is tuned for write conflicts."""


class ShutDown(Exception):
    """The queue is shut down and empty: the worker ends."""


class QueueMetrics(Protocol):
    """Metrics of a queue; names as in client-go's `workqueue/metrics.go`. Seconds."""

    def depth(self, keys: int) -> None:
        """Number of keys that wait for a worker."""

    def added(self) -> None:
        """A key was queued (adds that collapsed into one count once)."""

    def taken(self, waited: float) -> None:
        """A worker took a key after this many seconds in the queue."""

    def finished(self, worked: float) -> None:
        """A worker is done with a key."""

    def retried(self) -> None:
        """A key was added with backoff."""


class NoMetrics:
    """A QueueMetrics that does nothing."""

    def depth(self, keys: int) -> None:
        """Nothing."""

    def added(self) -> None:
        """Nothing."""

    def taken(self, waited: float) -> None:
        """Nothing."""

    def finished(self, worked: float) -> None:
        """Nothing."""

    def retried(self) -> None:
        """Nothing."""


class _Ready(Generic[K]):
    """A FairQueue with the sets `dirty` (must be processed) and `processing` (a worker has it). `dirty` keeps queue times."""

    def __init__(self, metrics: QueueMetrics, fairness: Callable[[K], Hashable] | None) -> None:
        self._metrics = metrics
        self._line: FairQueue[K] = FairQueue(fairness)
        self._dirty: dict[K, float] = {}
        self._processing: dict[K, float] = {}
        self._getters: deque[asyncio.Future[None]] = deque()
        self.shutting_down = False

    def __len__(self) -> int:
        return len(self._line)

    def add(self, key: K) -> None:
        if self.shutting_down or key in self._dirty:
            return
        self._metrics.added()
        self._dirty[key] = asyncio.get_running_loop().time()
        if key not in self._processing:
            self._push(key)

    async def get(self) -> K:
        loop = asyncio.get_running_loop()
        while not self._line:
            if self.shutting_down:
                raise ShutDown
            getter = loop.create_future()
            self._getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                if getter in self._getters:
                    self._getters.remove(getter)
                elif self._line:  # woken and cancelled at once: another worker gets the key
                    self._wake_one()
                raise
        key = self._line.pop()
        now = loop.time()
        self._metrics.depth(len(self._line))
        self._metrics.taken(now - self._dirty.pop(key))
        self._processing[key] = now
        return key

    def done(self, key: K) -> None:
        started = self._processing.pop(key, None)
        if started is None:
            return
        self._metrics.finished(asyncio.get_running_loop().time() - started)
        if key in self._dirty:
            self._push(key)

    def running_times(self) -> list[float]:
        now = asyncio.get_running_loop().time()
        return [now - started for started in self._processing.values()]

    def shut_down(self, *, drain: bool) -> None:
        self.shutting_down = True
        if not drain:
            self._line.clear()
            self._dirty.clear()
            self._metrics.depth(0)
        while self._getters:
            self._wake_one()

    def _push(self, key: K) -> None:
        self._line.push(key)
        self._metrics.depth(len(self._line))
        self._wake_one()

    def _wake_one(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return


class _Delayed(Generic[K]):
    """Keys that become due later: a heap with one timer. A key that is already there keeps its earliest time."""

    def __init__(self, due: Callable[[K], None]) -> None:
        self._due = due
        self._times: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._times)

    def add(self, key: K, delay: float) -> None:
        when = asyncio.get_running_loop().time() + delay
        if self._times.get(key, float("inf")) <= when:
            return
        self._times[key] = when
        heapq.heappush(self._heap, (when, next(self._sequence), key))
        if (
            len(self._heap) > 2 * len(self._times) + 64
        ):  # entries that were replaced by an earlier time
            self._heap = [entry for entry in self._heap if self._times.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)
        self._arm()

    def remove(self, key: K) -> None:
        self._times.pop(key, None)  # its entry of the heap is skipped

    def clear(self) -> None:
        self._times.clear()
        self._heap.clear()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            if self._heap and self._timer.when() == self._heap[0][0]:
                return
            self._timer.cancel()
            self._timer = None
        if self._heap:
            loop = asyncio.get_running_loop()
            due = self._heap[0][0]
            self._timer = loop.call_at(due, self._fire, due)

    def _fire(self, armed_for: float) -> None:
        # A loop may fire a timer a clock tick early; the entry for which it was armed is due by definition.
        now = max(asyncio.get_running_loop().time(), armed_for)
        while self._heap and self._heap[0][0] <= now:
            when, _, key = heapq.heappop(self._heap)
            if self._times.get(key) == when:
                del self._times[key]
                self._due(key)
        self._arm()


class WorkQueue(Generic[K]):
    """Keys to reconcile. Use it from one event loop; the `add` methods never wait and never fail."""

    def __init__(
        self,
        *,
        backoff: Backoff = DEFAULT_BACKOFF,
        metrics: QueueMetrics | None = None,
        rng: random.Random | None = None,
        fairness: Callable[[K], Hashable] | None = None,
    ) -> None:
        """Keys with the same `fairness` form one group (kube-apiserver's fair queuing); None: one FIFO."""
        self._metrics = metrics or NoMetrics()
        self._backoff = backoff
        self._rng = rng
        self._ready: _Ready[K] = _Ready(self._metrics, fairness)
        self._delayed: _Delayed[K] = _Delayed(self._ready.add)
        self._failures: dict[K, int] = {}

    def __len__(self) -> int:
        """Keys that wait for a worker now."""
        return len(self._ready)

    @property
    def delayed(self) -> int:
        """Keys that become due later."""
        return len(self._delayed)

    @property
    def shutting_down(self) -> bool:
        """Whether adds are ignored."""
        return self._ready.shutting_down

    def add(self, key: K) -> None:
        """Queue the key. Several adds before a worker takes it become one."""
        self._ready.add(key)

    def add_after(self, key: K, delay: float) -> None:
        """Add the key in `delay` seconds. Of several delayed adds, the earliest time holds."""
        if self.shutting_down:
            return
        if delay <= 0:
            self._ready.add(key)
        else:
            self._delayed.add(key, delay)

    def add_rate_limited(
        self, key: K, *, at_least: float = 0.0, backoff: Backoff | None = None
    ) -> float:
        """Add the key after a delay that doubles with each call until `forget`. Returns the delay, seconds.

        `at_least` is a server's `Retry-After`; `backoff` replaces the queue's own for this call.
        """
        failures = self._failures.get(key, 0) + 1
        delay = max((backoff or self._backoff).delay(failures, rng=self._rng), at_least)
        if not self.shutting_down:
            self._failures[key] = failures
            self._metrics.retried()
            self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """The key succeeded: reset its backoff. Does not cancel a delayed add."""
        self._failures.pop(key, None)

    def forget_delayed(self, key: K) -> None:
        """Drop the delayed add of the key, if it is not due yet. client-go has no such call; see `Controller`."""
        self._delayed.remove(key)

    def num_requeues(self, key: K) -> int:
        """Rate-limited adds since the last `forget`."""
        return self._failures.get(key, 0)

    async def get(self) -> K:
        """The next key; call `done` with it in every case. Raises ShutDown."""
        return await self._ready.get()

    def done(self, key: K) -> None:
        """The worker has finished the key. If it was added meanwhile, it is queued again."""
        self._ready.done(key)

    def running_times(self) -> list[float]:
        """Seconds that each key has been with its worker (longest running, unfinished work)."""
        return self._ready.running_times()

    def shut_down(self, *, drain: bool = True) -> None:
        """Ignore adds from now on. With `drain`, queued keys are still handed out; delayed keys are dropped."""
        self._delayed.clear()
        self._ready.shut_down(drain=drain)
