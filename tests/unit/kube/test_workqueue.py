"""The work queue of client-go: one key, one worker, nothing lost."""

import asyncio
import random

import pytest

from autowasm.flowcontrol import Backoff
from autowasm.kube.workqueue import DEFAULT_BACKOFF, ShutDown, WorkQueue

PLAIN = Backoff(base=1.0, maximum=60.0, jitter=0.0)


class Recorder:
    """QueueMetrics that record calls."""

    def __init__(self) -> None:
        self.depths: list[int] = []
        self.adds = 0
        self.retries = 0
        self.waited: list[float] = []
        self.worked: list[float] = []

    def depth(self, keys: int) -> None:
        self.depths.append(keys)

    def added(self) -> None:
        self.adds += 1

    def taken(self, waited: float) -> None:
        self.waited.append(waited)

    def finished(self, worked: float) -> None:
        self.worked.append(worked)

    def retried(self) -> None:
        self.retries += 1


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_burst_of_adds_is_one_piece_of_work() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(100):
        queue.add("a")
    queue.add("b")
    assert len(queue) == 2
    assert [await queue.get(), await queue.get()] == ["a", "b"]


async def test_a_key_in_work_is_not_given_to_a_second_worker() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert len(queue) == 1
    assert await queue.get() == "a"


async def test_done_without_a_new_add_leaves_the_queue_empty() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.done(await queue.get())
    assert len(queue) == 0
    assert queue.running_times() == []


@pytest.mark.looptime
async def test_a_waiting_worker_gets_a_delayed_key_when_it_is_due() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 30)
    started = now()
    assert await queue.get() == "a"
    assert now() - started == pytest.approx(30, abs=0.01)


@pytest.mark.looptime
@pytest.mark.parametrize("delays", [(30, 5), (5, 30)])
async def test_the_earliest_time_of_a_delayed_key_holds(delays: tuple[int, int]) -> None:
    queue: WorkQueue[str] = WorkQueue()
    for delay in delays:
        queue.add_after("a", delay)
    started = now()
    queue.done(await queue.get())
    assert now() - started == pytest.approx(5, abs=0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 100)


@pytest.mark.looptime
async def test_forgotten_delay_adds_nothing_and_a_later_one_counts() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.forget_delayed("a")
    queue.add_after("a", 5)
    queue.add_after("b", 5)
    queue.forget_delayed("a")
    queue.add_after("a", 30)
    started = now()
    assert await queue.get() == "b"
    assert await queue.get() == "a"
    assert now() - started == pytest.approx(30, abs=0.01)


@pytest.mark.looptime
async def test_forgotten_delays_do_not_pile_up() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for delay in range(1, 10_000):
        queue.add_after("a", delay)
        queue.forget_delayed("a")
    assert queue.delayed == 0
    assert len(queue._delayed._heap) < 200


@pytest.mark.looptime
async def test_replaced_times_do_not_pile_up() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for delay in range(10_000, 0, -1):
        queue.add_after("a", delay)
    assert queue.delayed == 1
    assert len(queue._delayed._heap) < 200


@pytest.mark.looptime
async def test_rate_limited_adds_double_until_forgotten() -> None:
    queue: WorkQueue[str] = WorkQueue(backoff=PLAIN)
    delays = []
    for _ in range(4):
        started = now()
        queue.add_rate_limited("a")
        queue.done(await queue.get())
        delays.append(round(now() - started, 2))
    assert delays == [1, 2, 4, 8]
    assert queue.num_requeues("a") == 4
    queue.forget("a")
    assert queue.num_requeues("a") == 0
    assert queue.add_rate_limited("a") == 1


async def test_jitter_spreads_keys_that_fail_together() -> None:
    queue: WorkQueue[str] = WorkQueue(backoff=Backoff(1.0, 60.0, 0.1), rng=random.Random(1))
    delays = {queue.add_rate_limited(f"key {n}") for n in range(10)}
    assert len(delays) == 10
    assert all(1.0 <= delay <= 1.1 for delay in delays)
    queue.shut_down()


async def test_a_server_that_asks_for_more_time_gets_it() -> None:
    queue: WorkQueue[str] = WorkQueue(backoff=PLAIN)
    assert queue.add_rate_limited("a", at_least=20) == 20
    queue.shut_down()


async def test_a_worker_cancelled_as_it_is_woken_loses_no_key() -> None:
    queue: WorkQueue[str] = WorkQueue()
    first = asyncio.create_task(queue.get())
    second = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")  # wakes the first
    first.cancel()
    assert await asyncio.wait_for(second, 1) == "a"


async def test_drained_shut_down_hands_out_queued_keys_and_ignores_adds() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add_after("later", 0.001)
    queue.shut_down(drain=True)
    queue.add("b")
    queue.add_after("c", 0)
    queue.add_rate_limited("d")
    assert await queue.get() == "a"
    with pytest.raises(ShutDown):
        await queue.get()
    assert queue.delayed == 0


async def test_dropping_shut_down_ends_workers_at_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add("b")
    taken = await queue.get()
    queue.add(taken)
    queue.shut_down(drain=False)
    with pytest.raises(ShutDown):
        await queue.get()
    queue.done(taken)
    assert len(queue) == 0
    assert queue.running_times() == []


async def test_shut_down_wakes_every_waiting_worker() -> None:
    queue: WorkQueue[str] = WorkQueue()
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.shut_down()
    ended = await asyncio.gather(*workers, return_exceptions=True)
    assert all(isinstance(end, ShutDown) for end in ended)


@pytest.mark.looptime
async def test_it_measures_itself() -> None:
    metrics = Recorder()
    queue: WorkQueue[str] = WorkQueue(backoff=PLAIN, metrics=metrics)
    await asyncio.sleep(1)
    queue.add("a")
    queue.add("a")
    await asyncio.sleep(3)
    key = await queue.get()
    await asyncio.sleep(2)
    assert queue.running_times() == [pytest.approx(2, abs=0.01)]
    queue.done(key)
    queue.add_rate_limited("a")
    assert (metrics.adds, metrics.retries, metrics.depths) == (1, 1, [1, 0])
    assert metrics.waited == [pytest.approx(3, abs=0.01)]
    assert metrics.worked == [pytest.approx(2, abs=0.01)]
    queue.shut_down()


async def test_a_thousand_keys_of_one_group_delay_another_group_by_one() -> None:
    queue: WorkQueue[tuple[str, int]] = WorkQueue(fairness=lambda key: key[0])
    for number in range(1000):
        queue.add(("bad", number))
    queue.add(("good", 0))
    queue.add(("good", 1))
    taken = [await queue.get() for _ in range(5)]
    assert taken == [("bad", 0), ("good", 0), ("bad", 1), ("good", 1), ("bad", 2)]


async def test_dropping_shut_down_empties_the_queue() -> None:
    metrics = Recorder()
    queue: WorkQueue[str] = WorkQueue(metrics=metrics)
    queue.add("a")
    queue.add("b")
    queue.shut_down(drain=False)
    assert len(queue) == 0
    assert metrics.depths == [1, 2, 0]


async def test_shut_down_drains_unless_asked_to_drop() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.shut_down()
    assert await queue.get() == "a"


async def test_nothing_is_kept_of_a_worker_that_was_cancelled() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(3):
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert not queue._ready._getters


@pytest.mark.looptime
async def test_a_delay_of_zero_is_none() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 0)
    queue.add_after("b", -1)
    assert (len(queue), queue.delayed) == (2, 0)


class Unordered:
    """A key that can be compared for equality, but not ordered."""


@pytest.mark.looptime
async def test_keys_that_are_due_together_come_in_the_order_in_which_they_were_added() -> None:
    queue: WorkQueue[Unordered] = WorkQueue()
    keys = [Unordered() for _ in range(10)]
    for key in keys:
        queue.add_after(key, 5)
    assert [await queue.get() for _ in keys] == keys


@pytest.mark.looptime
async def test_asking_again_for_the_same_time_adds_nothing() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(50):
        queue.add_after("a", 5)
    assert len(queue._delayed._heap) == 1


@pytest.mark.looptime
@pytest.mark.parametrize("keys", [1, 10])
async def test_replaced_times_are_swept_out_when_they_are_most_of_the_heap(keys: int) -> None:
    queue: WorkQueue[int] = WorkQueue()
    sizes = set()
    for delay in range(300, 0, -1):
        for key in range(keys):
            queue.add_after(key, delay)
            sizes.add(len(queue._delayed._heap))
    assert max(sizes) == 2 * keys + 64


@pytest.mark.looptime
async def test_sweeping_out_keeps_each_key_and_its_earliest_time() -> None:
    queue: WorkQueue[int] = WorkQueue()
    rng = random.Random(7)
    earliest: dict[int, int] = {}
    times = list(range(1, 4000))
    rng.shuffle(times)
    for time in times:
        key = rng.randrange(100)
        queue.add_after(key, time)
        earliest[key] = min(earliest.get(key, time), time)
    assert len(queue._delayed._heap) <= 2 * 100 + 64
    started = now()
    for key in sorted(earliest, key=earliest.__getitem__):
        assert await queue.get() == key
        assert round(now() - started, 3) == earliest[key]
    assert queue.delayed == 0


@pytest.mark.looptime
async def test_one_timer_is_armed_for_the_earliest_time_and_none_after_shut_down() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 10)
    armed = queue._delayed._timer
    assert armed is not None
    queue.add_after("b", 20)
    assert queue._delayed._timer is armed
    queue.add_after("c", 5)
    assert armed.cancelled()
    earlier = queue._delayed._timer
    assert earlier is not None
    assert earlier is not armed
    queue.shut_down()
    assert earlier.cancelled()
    assert queue._delayed._timer is None
    assert queue._delayed._heap == []


async def test_a_timer_that_fires_a_tick_early_hands_its_key_out_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """asyncio runs timers that are due within the resolution of the clock."""
    queue: WorkQueue[str] = WorkQueue()
    loop = asyncio.get_running_loop()
    queue.add_after("a", 10)
    timer = queue._delayed._timer
    assert timer is not None
    monkeypatch.setattr(loop, "time", lambda: timer.when() - 1e-9)
    timer._run()
    assert len(queue) == 1
    queue.add_after("late", 10)
    queue.add_after("later", 20)
    timer = queue._delayed._timer
    assert timer is not None
    monkeypatch.setattr(loop, "time", lambda: timer.when() + 60)
    timer._run()
    assert len(queue) == 3
    queue.shut_down(drain=False)


async def test_a_delay_is_that_of_the_backoff_where_no_more_is_asked_for() -> None:
    queue: WorkQueue[str] = WorkQueue(backoff=Backoff(0.25, 60.0, 0.0))
    assert queue.add_rate_limited("a") == 0.25
    assert queue.add_rate_limited("a", backoff=Backoff(3.0, 60.0, 0.0)) == 6.0
    assert queue.add_rate_limited("a", at_least=0.5) == 1.0
    assert queue.num_requeues("a") == 3
    queue.shut_down()
    assert queue.add_rate_limited("a") == 2.0
    assert queue.num_requeues("a") == 3


async def test_by_default_delays_begin_at_a_second_and_end_at_five_minutes_and_a_tenth() -> None:
    class Last(random.Random):
        def random(self) -> float:
            return 1.0

    queue: WorkQueue[str] = WorkQueue(rng=Last())
    delays = [queue.add_rate_limited("a") for _ in range(12)]
    assert delays[:3] == pytest.approx([1.1, 2.2, 4.4])
    assert delays[-1] == pytest.approx(330)
    assert (DEFAULT_BACKOFF.base, DEFAULT_BACKOFF.maximum) == (1.0, 300.0)
    queue.shut_down()


async def test_done_for_a_key_that_no_worker_has_changes_nothing() -> None:
    metrics = Recorder()
    queue: WorkQueue[str] = WorkQueue(metrics=metrics)
    queue.add("a")
    queue.done("a")
    queue.done("b")
    assert metrics.worked == []
    assert await queue.get() == "a"
