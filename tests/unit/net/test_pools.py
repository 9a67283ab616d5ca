"""Threads of our own."""

import threading

import pytest

from autowasm.net.pools import Pools


@pytest.fixture
def pools() -> Pools:
    return Pools(transfers=3)


def _ours() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("autowasm-")}


async def test_started_pools_start_no_thread_later(pools: Pools) -> None:
    # Whoever starts a thread waits until it runs: on a busy processor that is 10 ms, and the loop is who starts it.
    before = _ours()
    with pools:
        pools.start()
        started = _ours() - before
        assert len(started) == 3 + 1 + 8 + 4
        together = threading.Barrier(4)
        busy = [pools.transfer.submit(together.wait) for _ in range(3)]
        together.wait()
        assert len({job.result() for job in busy}) == 3
        assert await pools.parsing.run(threading.current_thread) in started
        assert _ours() - before == started
