"""Threads of our own."""

import asyncio
import os
import threading
from pathlib import Path, PosixPath
from typing import Any

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


async def test_a_created_file_is_closed_at_the_end_of_the_block(
    pools: Pools, tmp_path: Path
) -> None:
    with pools:
        async with pools.disk.create(tmp_path / "file") as file:
            await file.write(b"content")
            descriptor = file.fileno()
        assert not _is_open(descriptor)
    assert (tmp_path / "file").read_bytes() == b"content"


async def test_a_file_that_is_opened_after_a_cancellation_is_closed(
    pools: Pools, tmp_path: Path
) -> None:
    path = _Announced(tmp_path / "fifo")
    os.mkfifo(path)  # a thread that opens it waits for a reader
    with pools:
        task = asyncio.create_task(_create(pools, path))
        await asyncio.to_thread(path.opening.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with path.open("rb") as reader:
            assert await asyncio.to_thread(reader.read) == b"", "end of file: no writer has it open"


class _Announced(PosixPath):
    opening = threading.Event()

    def open(self, *args: Any, **options: Any) -> Any:
        self.opening.set()
        return super().open(*args, **options)


async def test_a_file_that_waits_for_a_thread_is_not_opened_after_a_cancellation(
    pools: Pools, tmp_path: Path
) -> None:
    with pools:
        release = threading.Event()
        busy = [pools.disk.submit(release.wait) for _ in range(pools.disk.threads)]
        task = asyncio.create_task(_create(pools, tmp_path / "file"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        assert all(job.result() for job in busy)
        await pools.disk.run(lambda: None)
    assert not (tmp_path / "file").exists()


async def _create(pools: Pools, path: Path) -> None:
    async with pools.disk.create(path):
        raise AssertionError("it was cancelled before")
