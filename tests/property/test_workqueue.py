"""The work queue against a model that is a few sets: any order of calls keeps client-go's promises."""

import asyncio

import looptime
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from autowasm.flowcontrol import Backoff
from autowasm.kube.workqueue import WorkQueue

KEYS = st.sampled_from("abcd")
BACKOFF = Backoff(base=1.0, maximum=8.0, jitter=0.0)


class VirtualLoop(looptime.LoopTimeEventLoop, asyncio.SelectorEventLoop):  # type: ignore[misc]
    """A loop with a clock that jumps."""


class WorkQueueMachine(RuleBasedStateMachine):
    """`must`: keys that have to be handed out again; `busy`: with a worker; `due`: delayed until."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.loop.setup_looptime(noop_cycles=0)
        self.now = 0.0
        self.queue: WorkQueue[str] = WorkQueue(backoff=BACKOFF)
        self.order: list[str] = []
        self.must: set[str] = set()
        self.busy: set[str] = set()
        self.due: dict[str, float] = {}
        self.failures: dict[str, int] = {}

    def teardown(self) -> None:
        self.call(self.queue.shut_down, drain=False)
        self.loop.close()

    def call(self, function: object, *args: object, **kwargs: object) -> object:
        async def run() -> object:
            assert callable(function)
            return function(*args, **kwargs)

        return self.loop.run_until_complete(run())

    def model_add(self, key: str) -> None:
        if key not in self.must:
            self.must.add(key)
            if key not in self.busy:
                self.order.append(key)

    def model_add_after(self, key: str, delay: float) -> None:
        if delay <= 0:
            self.model_add(key)
        else:
            self.due[key] = min(self.due.get(key, float("inf")), self.now + delay)

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.call(self.queue.add, key)
        self.model_add(key)

    @rule(key=KEYS, delay=st.integers(0, 10))
    def add_after(self, key: str, delay: int) -> None:
        self.call(self.queue.add_after, key, delay + 0.5 if delay else 0)
        self.model_add_after(key, delay + 0.5 if delay else 0)

    @rule(key=KEYS)
    def add_rate_limited(self, key: str) -> None:
        self.failures[key] = self.failures.get(key, 0) + 1
        expected = min(2.0 ** (self.failures[key] - 1), 8.0)
        assert self.call(self.queue.add_rate_limited, key) == expected
        self.model_add_after(key, expected)

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        self.call(self.queue.forget, key)
        self.failures.pop(key, None)

    @rule(seconds=st.integers(1, 9))
    def time_passes(self, seconds: int) -> None:
        # A quarter off the half seconds of delays, so that rounding decides nothing.
        self.loop.run_until_complete(asyncio.sleep(seconds + 0.001))
        self.now += seconds + 0.001
        for key, _ in sorted(self.due.items(), key=lambda item: item[1]):
            if self.due[key] <= self.now:
                del self.due[key]
                self.model_add(key)

    @precondition(lambda self: self.order)
    @rule()
    def get(self) -> None:
        key = self.loop.run_until_complete(self.queue.get())
        # Keys due at the same moment may come in either order.
        assert key in self.order
        assert key not in self.busy
        self.order.remove(key)
        self.must.remove(key)
        self.busy.add(key)

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.busy)))
        self.call(self.queue.done, key)
        self.busy.remove(key)
        if key in self.must:
            self.order.append(key)

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert len(self.queue) == len(self.order)
        assert self.queue.delayed == len(self.due)
        for key in "abcd":
            assert self.queue.num_requeues(key) == self.failures.get(key, 0)


class FairWorkQueueMachine(WorkQueueMachine):
    """The same promises with groups of keys, which are served round robin."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WorkQueue(backoff=BACKOFF, fairness=lambda key: key in "ab")


TestFairWorkQueue = FairWorkQueueMachine.TestCase
TestFairWorkQueue.settings = settings(
    max_examples=settings().max_examples * 3 // 5, stateful_step_count=40, deadline=None
)
TestWorkQueue = WorkQueueMachine.TestCase
TestWorkQueue.settings = settings(stateful_step_count=40, deadline=None)
