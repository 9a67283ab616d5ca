"""Compiled modules on disk: verified before use, within the budget, whole or not there."""

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from autowasm.digest import Sha256Hex
from autowasm.net.pools import Pools
from autowasm.preflight import cache as caches
from autowasm.preflight.cache import ENGINE_VERSION, CodeCache
from autowasm.telemetry.metrics import Metrics
from tests.fakes.forkserver import until


def name(number: int) -> Sha256Hex:
    return Sha256Hex(f"{number:064x}")


@pytest.fixture
def pools() -> Iterator[Pools]:
    with Pools() as pools:
        yield pools


class Caches:
    """Caches over one directory, as after restarts."""

    def __init__(self, directory: Path, pools: Pools, metrics: Metrics) -> None:
        self.directory = directory / "code"
        self.metrics = metrics
        self._pools = pools

    def make(self, *, budget: int = 1000) -> CodeCache:
        return CodeCache(self.directory, budget=budget, pools=self._pools, metrics=self.metrics)

    def files(self) -> list[Path]:
        return sorted(self.directory.iterdir())


@pytest.fixture
def disk(tmp_path: Path, pools: Pools, metrics: Metrics) -> Caches:
    return Caches(tmp_path, pools, metrics)


async def put(cache: CodeCache, number: int, code: bytes) -> bytes:
    """Store, and return what the given file holds."""
    staged = await cache.stage()
    os.write(staged.fd, code)
    blob = await cache.commit(name(number), staged)
    os.close(staged.fd)
    return os.pread(blob.fd, 10_000, 0)


async def get(cache: CodeCache, number: int) -> bytes | None:
    blob = await cache.get(name(number))
    return None if blob is None else os.pread(blob.fd, 10_000, 0)


async def test_code_is_found_by_its_module_also_after_a_restart(disk: Caches) -> None:
    cache = disk.make()
    assert await get(cache, 1) is None
    assert await put(cache, 1, b"code") == b"code"
    assert await get(cache, 1) == b"code"
    assert await get(cache, 1) == b"code"
    assert await get(cache, 2) is None
    assert await get(disk.make(), 1) == b"code"


async def test_a_file_whose_bytes_changed_is_never_used(disk: Caches) -> None:
    cache = disk.make()
    await put(cache, 1, b"code")
    assert await get(cache, 1) == b"code"
    (file,) = disk.files()
    file.write_bytes(b"evil")
    assert await get(cache, 1) is None
    assert disk.files() == []
    assert disk.metrics.preflight_code_damaged._value.get() == 1
    assert await put(cache, 1, b"code") == b"code"


@pytest.mark.parametrize("content", [b"", b"cod", b"code and more"])
async def test_a_file_that_a_crash_cut_is_never_used(disk: Caches, content: bytes) -> None:
    await put(disk.make(), 1, b"code")
    disk.files()[0].write_bytes(content)
    assert await get(disk.make(), 1) is None


async def test_a_link_in_place_of_a_file_is_never_used(disk: Caches, tmp_path: Path) -> None:
    await put(disk.make(), 1, b"code")
    (file,) = disk.files()
    (tmp_path / "target").write_bytes(b"code")
    file.unlink()
    file.symlink_to(tmp_path / "target")
    assert await get(disk.make(), 1) is None
    assert (tmp_path / "target").exists()


async def test_a_file_that_was_removed_is_compiled_again(disk: Caches) -> None:
    cache = disk.make()
    await put(cache, 1, b"code")
    disk.files()[0].unlink()
    assert await get(cache, 1) is None


async def test_the_least_recently_used_code_leaves_when_the_budget_is_full(disk: Caches) -> None:
    cache = disk.make(budget=100)
    for number in (1, 2, 3):
        await put(cache, number, bytes(30))
    assert await get(cache, 1)
    await put(cache, 4, bytes(30))
    assert [await get(cache, number) is not None for number in (1, 2, 3, 4)] == [
        True,
        False,
        True,
        True,
    ]
    assert sum(file.stat().st_size for file in disk.files()) == 90
    assert disk.metrics.preflight_code_bytes._value.get() == 90


async def test_code_that_was_opened_stays_readable_after_its_eviction(disk: Caches) -> None:
    cache = disk.make(budget=10)
    await put(cache, 1, b"first")
    blob = await cache.get(name(1))
    await put(cache, 2, b"second, 10")
    assert blob is not None
    assert os.pread(blob.fd, 100, 0) == b"first"
    assert len(disk.files()) == 1


async def test_code_larger_than_the_budget_is_used_once_and_evicts_nothing(disk: Caches) -> None:
    cache = disk.make(budget=10)
    await put(cache, 1, b"small")
    assert await put(cache, 2, b"much larger") == b"much larger"
    assert await get(cache, 2) is None
    assert await get(cache, 1) == b"small"
    assert len(disk.files()) == 1


async def test_a_smaller_budget_counts_from_the_start(disk: Caches) -> None:
    cache = disk.make()
    for number in range(5):
        await put(cache, number, bytes(30))
        os.utime(disk.directory / _newest(disk), ns=(number, number))
    assert await get(disk.make(budget=70), 4)
    assert len(disk.files()) == 2


def _newest(disk: Caches) -> Path:
    return max(disk.files(), key=lambda file: file.stat().st_mtime_ns)


async def test_new_code_of_a_module_replaces_the_old(disk: Caches) -> None:
    cache = disk.make()
    await put(cache, 1, b"old")
    await put(cache, 1, b"new")
    assert await get(cache, 1) == b"new"
    assert len(disk.files()) == 1
    assert disk.metrics.preflight_code_bytes._value.get() == 3


def test_the_version_names_the_engine() -> None:
    assert ENGINE_VERSION.startswith("wasmtime-")


async def test_another_engine_version_finds_nothing_and_removes_old_code(
    disk: Caches, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(disk.make(), 1, b"code")
    monkeypatch.setattr(caches, "ENGINE_VERSION", "wasmtime-99")
    assert await get(disk.make(), 1) is None
    assert disk.files() == []


async def test_staged_code_that_was_never_committed_is_removed(disk: Caches) -> None:
    cache = disk.make()
    os.close((await cache.stage()).fd)  # wasmer was killed here
    assert len(disk.files()) == 1
    await get(disk.make(), 1)
    assert disk.files() == []
    cache = disk.make()
    staged = await cache.stage()
    os.close(staged.fd)
    await cache.discard(staged)
    assert disk.files() == []


async def test_removed_code_is_gone(disk: Caches) -> None:
    cache = disk.make()
    await put(cache, 1, b"code")
    await cache.remove(name(1))
    await cache.remove(name(1))
    assert await get(cache, 1) is None
    assert disk.files() == []
    assert disk.metrics.preflight_code_bytes._value.get() == 0


async def test_a_directory_that_was_removed_is_made_again(disk: Caches) -> None:
    cache = disk.make()
    await put(cache, 1, b"code")
    disk.files()[0].unlink()
    disk.directory.rmdir()
    assert await get(cache, 1) is None
    assert await put(cache, 1, b"code") == b"code"
    assert await get(cache, 1) == b"code"


async def test_a_commit_that_fails_leaves_no_entry(disk: Caches) -> None:
    cache = disk.make()
    staged = await cache.stage()
    os.write(staged.fd, b"code")
    os.close(staged.fd)
    target = hashlib.sha256(b"code").hexdigest()
    (disk.directory / f"{name(1)}-{target}-{caches.engine_tag()}.cwasm").mkdir()
    with pytest.raises(IsADirectoryError):
        await cache.commit(name(1), staged)
    assert disk.metrics.preflight_code_bytes._value.get() == 0
    await cache.discard(staged)


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


async def test_a_cancelled_stage_leaves_no_file(disk: Caches) -> None:
    cache = disk.make()
    await get(cache, 1)
    before = open_files()
    for delay in range(6):
        task = asyncio.create_task(cache.stage())
        for _ in range(delay):
            await asyncio.sleep(0)
        task.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
        if not isinstance(result, BaseException):
            os.close(result.fd)
            await cache.discard(result)
    await until(lambda: not disk.files() and not open_files() - before)
