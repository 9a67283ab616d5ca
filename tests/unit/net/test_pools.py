"""Threads of our own."""

import os
import threading

import pytest

from autowasm.net.pools import Pools


@pytest.fixture
def pools() -> Pools:
    return Pools(transfers=3)


def _ours() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("autowasm-")}


async def test_started_pools_start_no_thread_later(pools: Pools) -> None:
    # A start of a thread waits until it runs: 10 ms on a busy processor, on the event loop.
    before = _ours()
    with pools:
        pools.start()
        started = _ours() - before
        assert len(started) == 3 + 1 + 8 + 4 + 1
        together = threading.Barrier(4)
        busy = [pools.transfer.submit(together.wait) for _ in range(3)]
        together.wait()
        assert len({job.result() for job in busy}) == 3
        assert await pools.parsing.run(threading.current_thread) in started
        assert _ours() - before == started


def test_descriptors_that_wait_are_closed_at_the_end_and_later_ones_at_once(pools: Pools) -> None:
    before = _ours()
    descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]
    with pools:
        started = _ours() - before
        for descriptor in descriptors[:-1]:
            pools.closer.submit(descriptor)
    for thread in started:
        thread.join(30)
    assert not [one for one in descriptors[:-1] if _is_open(one)]
    pools.closer.submit(descriptors[-1])
    assert not _is_open(descriptors[-1])


def test_a_descriptor_that_cannot_be_closed_does_not_end_the_closing(pools: Pools) -> None:
    good, bad = (os.open(os.devnull, os.O_RDONLY) for _ in range(2))
    os.close(bad)
    before = _ours()
    with pools:
        started = _ours() - before
        pools.closer.submit(bad)
        pools.closer.submit(good)
    for thread in started:
        thread.join(30)
    assert not _is_open(good)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
