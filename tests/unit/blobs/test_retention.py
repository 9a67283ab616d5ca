"""Which blobs stay: a real store, clocks that a test moves."""

import asyncio
import json
import os
from pathlib import Path

import pytest
import structlog

from autowasm.digest import Sha256Hex
from autowasm.errors import StorageError
from tests.fakes.blobstorage import GRACE, BlobStorage, blob_storage
from tests.fakes.clocks import FakeClocks

A, B, C = b"a" * 100, b"b" * 100, b"c" * 100
YEARS = 20 * 365 * 24 * 3600.0


async def test_blob_is_evicted_a_grace_period_after_its_last_pin(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=1_000) as storage:
        a, b, c = [await storage.put(data) for data in (A, B, C)]
        storage.publish("x/1", a, kept=(b,))
        storage.publish("x/2", c)
        await pass_time(storage, 3 * GRACE)
        assert storage.store.digests() == {a, b, c}
        storage.publish("x/1", a)
        storage.pins.remove("x/2")
        await pass_time(storage, 0.9 * GRACE)
        assert storage.store.digests() == {a, b, c}
        await pass_time(storage, 0.2 * GRACE)
        assert storage.store.digests() == {a}
        assert storage.value("autowasm_blobs_evicted_total", reason="grace") == 2
        assert storage.value("autowasm_blobs_pinned") == 1
        assert storage.value("autowasm_blob_pinned_bytes") == len(A)


async def pass_time(storage: BlobStorage, seconds: float) -> None:
    await storage.retention.sweep()
    storage.clocks.advance(seconds)
    await storage.retention.sweep()


async def test_being_served_is_a_use(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=1_000, clocks=FakeClocks(process=0.0)) as storage:
        a, b = [await storage.put(data) for data in (A, B)]
        # The store's own clock is the real one: make both show about the same.
        storage.clocks.process = asyncio.get_running_loop().time()
        await storage.retention.sweep()
        storage.clocks.process -= 0.9 * GRACE  # as if the blobs had been stored that long ago
        for sha256 in (a, b):
            storage.retention._last_use._used[sha256] = storage.retention._last_use.clock.now()
            storage.retention._last_use._named.clear()
        storage.clocks.process += 0.9 * GRACE
        assert await storage.store.open(a) is not None
        storage.clocks.process += 0.2 * GRACE
        await storage.retention.sweep()
        assert storage.store.digests() == {a}


async def test_nothing_is_evicted_before_the_pins_of_every_owner_are_known(tmp_path: Path) -> None:
    clocks = FakeClocks()
    async with blob_storage(tmp_path, budget=1_000, clocks=clocks) as storage:
        a, b = [await storage.put(data) for data in (A, B)]
        storage.let_go()
        await storage.retention.sweep()
    clocks.advance(2 * GRACE)
    async with blob_storage(tmp_path, budget=50, clocks=clocks, synced=False) as storage:
        await storage.retention.sweep()
        assert storage.store.digests() == {a, b}
        storage.retention.synced(["x/1"])
        await storage.retention.sweep()
        assert storage.store.digests() == {a, b}
        storage.publish("x/1", a)
        await storage.retention.sweep()
        assert storage.store.digests() == {a}


async def test_a_restart_counts_on_and_a_clock_that_jumps_does_not(tmp_path: Path) -> None:
    clocks = FakeClocks()
    async with blob_storage(tmp_path, budget=1_000, clocks=clocks) as storage:
        a = await storage.put(A)
        storage.let_go()
        await pass_time(storage, 0.5 * GRACE)
    for jump in (YEARS, -2 * YEARS):
        clocks.wall += jump
        async with blob_storage(tmp_path, budget=1_000, clocks=clocks) as storage:
            await pass_time(storage, 0.1 * GRACE)
            assert storage.store.digests() == {a}
    clocks.advance(0.4 * GRACE)  # while it is not running, on the same boot
    async with blob_storage(tmp_path, budget=1_000, clocks=clocks) as storage:
        await storage.retention.sweep()
        assert not storage.store.digests()


async def test_restart_over_budget_evicts_the_longest_unused_blobs(tmp_path: Path) -> None:
    clocks = FakeClocks()
    async with blob_storage(tmp_path, budget=1_000, clocks=clocks) as storage:
        digests: list[Sha256Hex] = []
        for number in range(5):
            digests.append(await storage.put(b"%d" % number * 100))
            storage.let_go()
            await storage.retention.sweep()
    async with blob_storage(tmp_path, budget=300, clocks=clocks) as storage:
        storage.publish("x/1", digests[0])
        await storage.retention.sweep()
        assert storage.store.digests() == {digests[0], digests[3], digests[4]}
        assert storage.value("autowasm_blobs_evicted_total", reason="budget") == 2


async def test_published_blobs_stay_over_budget_and_all_others_are_evicted(tmp_path: Path) -> None:
    clocks = FakeClocks()
    async with blob_storage(tmp_path, budget=1_000, clocks=clocks) as storage:
        a, b, _ = [await storage.put(data) for data in (A, B, C)]
        storage.let_go()
    async with blob_storage(tmp_path, budget=150, clocks=clocks) as storage:
        storage.publish("x/1", a, b)
        await storage.retention.sweep()
        assert storage.store.digests() == {a, b}


async def test_a_blob_published_at_the_last_moment_stays(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=1_000) as storage:
        a = await storage.put(A)
        storage.let_go()
        await storage.retention.sweep()
        storage.clocks.advance(2 * GRACE)
        async with storage.store._locks.of(a):  # a reader holds the lock: the removal waits
            sweep = asyncio.create_task(storage.retention.sweep())
            for _ in range(20):
                await asyncio.sleep(0)
            storage.publish("x/1", a)
        await sweep
        assert await storage.store.open(a) is not None


async def test_writes_last_uses_rarely_and_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "last-use.json"
    async with blob_storage(tmp_path, budget=1_000) as storage:
        a = await storage.put(A)
        storage.publish("x/1", a)
        await storage.retention.sweep()
        first = await asyncio.to_thread(file.stat)
        storage.clocks.advance(30)
        await storage.retention.sweep()
        assert (await asyncio.to_thread(file.stat)).st_ino == first.st_ino
        storage.clocks.advance(1_000)
        await storage.retention.sweep()
        assert (await asyncio.to_thread(file.stat)).st_mtime_ns != first.st_mtime_ns
        storage.pins.remove("x/1")
    document = json.loads(await asyncio.to_thread(file.read_text))
    assert document["used"][a] is not None


async def test_failed_write_of_last_uses_loses_no_blob(tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "last-use.json.new").mkdir)
    async with blob_storage(tmp_path, budget=1_000) as storage:
        a = await storage.put(A)
        await storage.retention.sweep()
        assert await storage.store.open(a) is not None


async def test_removes_abandoned_files(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=1_000) as storage:
        (tmp_path / "staging" / "left").mkdir()
        (tmp_path / "staging" / "left" / "module").write_bytes(A)
        (tmp_path / "staging" / "fresh").mkdir()
        (tmp_path / "damaged" / "old").write_bytes(A)
        (tmp_path / "damaged" / "new").write_bytes(A)
        async with storage.store.stage() as stage:
            for path in ("staging/left", "damaged/old", stage.path.parent):
                os.utime(tmp_path / path, (0, 0))
            await storage.retention.sweep()
            assert {path.name for path in (tmp_path / "staging").iterdir()} == {
                "fresh",
                stage.path.parent.name,
            }
            assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["new"]
            stage.path.write_bytes(B)
            await storage.store.commit(stage, (await storage.put(B)))


async def test_retention_continues_after_a_disk_failure(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=1_000, sweep_every=0.0) as storage:
        checks = 0

        def space(directory: Path) -> object:
            nonlocal checks
            checks += 1
            raise OSError(5, "Input/output error")

        storage.retention._disk_admission._space = space  # type: ignore[assignment]
        task = asyncio.create_task(storage.retention.run())
        async with asyncio.timeout(30):
            while checks < 2:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_being_served_is_remembered_over_a_restart(tmp_path: Path) -> None:
    clocks = FakeClocks(process=0.0)
    async with blob_storage(tmp_path, budget=1_000, clocks=clocks) as storage:
        a, b = [await storage.put(data) for data in (A, B)]
        # The store's own clock is the real one: make both show about the same.
        clocks.process = asyncio.get_running_loop().time()
        await storage.retention.sweep()
        clocks.process -= 0.9 * GRACE  # as if the blobs had been stored that long ago
        for sha256 in (a, b):
            storage.retention._last_use._used[sha256] = storage.retention._last_use.clock.now()
            storage.retention._last_use._named.clear()
        clocks.process += 0.9 * GRACE
        assert await storage.store.open(a) is not None
    clocks.advance(0.2 * GRACE)
    async with blob_storage(tmp_path, budget=1_000, clocks=clocks) as storage:
        await storage.retention.sweep()
        assert storage.store.digests() == {a}


async def test_blob_that_is_admitted_stays_until_its_envoyfilter_should_be_there(
    tmp_path: Path,
) -> None:
    async with blob_storage(tmp_path, budget=1_000) as storage:
        a = await storage.put(A)
        storage.let_go()
        await storage.retention.sweep()
        storage.clocks.advance(2 * GRACE)
        storage.retention.admit("x/1", "x", a)
        storage.clocks.advance(59)
        await storage.retention.sweep()
        assert storage.store.digests() == {a}
        assert storage.value("autowasm_blobs_pinned") == 1
        storage.clocks.advance(2)
        await storage.retention.sweep()
        assert storage.store.digests() == {a}, "in use until now"
        assert storage.retention._quota._holds == {}, "nothing is remembered of it"
        storage.clocks.advance(1.1 * GRACE)
        await storage.retention.sweep()
        assert storage.store.digests() == set()


async def test_blob_that_would_exceed_the_share_of_its_namespace_is_not_admitted(
    tmp_path: Path,
) -> None:
    async with blob_storage(tmp_path, budget=1_000, share=150) as storage:
        a, b = [await storage.put(data) for data in (A, B)]
        storage.publish("x/1", a)
        with pytest.raises(StorageError) as caught:
            storage.retention.admit("x/2", "x", b)
        assert caught.value.reason == "NamespaceShareExceeded"
        storage.retention.admit("x/2", "y", b)
        storage.retention.admit("x/1", "x", b)  # in place of the other
        storage.retention.admit("x/1", "x", a)  # has it already


async def test_admit_accepts_unstored_blobs_and_any_before_all_pins_are_known(
    tmp_path: Path,
) -> None:
    async with blob_storage(tmp_path, budget=1_000, share=50) as storage:
        storage.retention.admit("x/1", "x", Sha256Hex("0" * 64))
        a = await storage.put(A)
    async with blob_storage(tmp_path, budget=1_000, share=50, synced=False) as storage:
        storage.retention.admit("x/1", "x", a)
        storage.retention.synced([])
        with pytest.raises(StorageError, match="x"):
            storage.retention.admit("x/1", "x", a)


@pytest.mark.parametrize(("budget", "left"), [(201, 2), (200, 2), (199, 1), (100, 1), (99, 0)])
async def test_blobs_go_only_as_far_as_the_budget_asks(
    tmp_path: Path, budget: int, left: int
) -> None:
    clocks = FakeClocks()
    async with blob_storage(tmp_path, budget=1_000, clocks=clocks) as storage:
        for data in (A, B):
            await storage.put(data)
        storage.let_go()
        assert storage.value("autowasm_blob_budget_bytes") == 1_000
    async with blob_storage(tmp_path, budget=budget, clocks=clocks) as storage:
        await storage.retention.sweep()
        assert len(storage.store.digests()) == left


class Still(FakeClocks):
    """Time passes only where a test moves the clock."""

    def monotonic(self) -> float:
        return self.process


async def test_last_uses_are_written_after_a_minute_if_they_changed_else_after_15(
    tmp_path: Path,
) -> None:
    file = tmp_path / "last-use.json"

    async def is_written(seconds: float) -> bool:
        storage.clocks.advance(seconds)
        await asyncio.to_thread(file.unlink, missing_ok=True)
        await storage.retention.sweep()
        return await asyncio.to_thread(file.exists)

    async with blob_storage(tmp_path, budget=1_000, clocks=Still()) as storage:
        assert await is_written(0), "at the start"
        assert not await is_written(899)
        assert await is_written(1)
        a = await storage.put(A)
        storage.publish("x/1", a)
        assert not await is_written(59)
        assert await is_written(1)
        assert not await is_written(60)
        storage.pins.remove("x/1")
        assert await is_written(0), "more than a minute after the last time"


async def test_last_uses_that_were_not_written_are_written_a_minute_later(tmp_path: Path) -> None:
    in_the_way = tmp_path / "last-use.json.new"
    await asyncio.to_thread(in_the_way.mkdir)
    async with blob_storage(tmp_path, budget=1_000, clocks=Still()) as storage:
        with structlog.testing.capture_logs() as logs:
            await storage.retention.sweep()
        assert logs == [
            {
                "event": "last-use times not written",
                "log_level": "warning",
                "error": "Is a directory",
            }
        ]
        await asyncio.to_thread(in_the_way.rmdir)
        storage.clocks.advance(60)
        await storage.retention.sweep()
        assert await asyncio.to_thread((tmp_path / "last-use.json").exists)


@pytest.mark.parametrize(
    ("grace", "sweep_every", "pause"),
    [(GRACE, 30.0, 30.0), (200.0, 30.0, 10.0), (1.0, 30.0, 0.1), (GRACE, 0.0, 0.1)],
)
async def test_pause_between_sweeps_is_a_small_part_of_the_grace_period(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    grace: float,
    sweep_every: float,
    pause: float,
) -> None:
    pauses: asyncio.Queue[float] = asyncio.Queue()

    async def sleep(seconds: float) -> None:
        pauses.put_nowait(seconds)
        await asyncio.Event().wait()

    async with blob_storage(
        tmp_path, budget=1_000, grace=grace, sweep_every=sweep_every
    ) as storage:
        monkeypatch.setattr(asyncio, "sleep", sleep)
        task = asyncio.create_task(storage.retention.run())
        assert await asyncio.wait_for(pauses.get(), 60) == pytest.approx(pause)
        task.cancel()
        await asyncio.wait([task])
        monkeypatch.undo()


async def test_sweep_that_fails_is_reported_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with blob_storage(tmp_path, budget=1_000, sweep_every=0.0) as storage:
        begun = asyncio.Semaphore(0)

        async def tidy() -> None:
            begun.release()
            raise StorageError("no disk")

        monkeypatch.setattr(storage.store, "tidy", tidy)
        with structlog.testing.capture_logs() as logs:
            task = asyncio.create_task(storage.retention.run())
            async with asyncio.timeout(60):
                for _ in range(2):
                    await begun.acquire()
            task.cancel()
            await asyncio.wait([task])
        assert logs[0] == {
            "event": "sweep of the store failed",
            "log_level": "error",
            "error": "no disk",
        }
