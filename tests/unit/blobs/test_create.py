"""`create`: a file that is written on the loop is closed, whenever its task is cancelled."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import Any

import pytest

from autowasm.blobs.files import create
from autowasm.net.pools import Pools


@pytest.fixture
def pools() -> Iterator[Pools]:
    with Pools(transfers=1) as pools:
        yield pools


async def test_a_created_file_is_closed_at_the_end_of_the_block(
    pools: Pools, tmp_path: Path
) -> None:
    async with create(pools.disk, tmp_path / "file") as file:
        await file.write(b"content")
        descriptor = file.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert (tmp_path / "file").read_bytes() == b"content"


async def test_a_file_that_is_opened_after_a_cancellation_is_closed(
    pools: Pools, tmp_path: Path
) -> None:
    path = _Announced(tmp_path / "fifo")
    os.mkfifo(path)  # a thread that opens it waits for a reader
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
    async with create(pools.disk, path):
        raise AssertionError("it was cancelled before")
