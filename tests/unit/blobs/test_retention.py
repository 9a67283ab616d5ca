"""Which blobs stay: a real store, clocks that a test moves."""

import asyncio
import json
import os
from pathlib import Path

from autowasm.digest import Sha256Hex
from tests.fakes.clocks import FakeClocks
from tests.fakes.keeping import GRACE, Keeping, keeping

A, B, C = b"a" * 100, b"b" * 100, b"c" * 100
YEARS = 20 * 365 * 24 * 3600.0


async def test_goes_a_grace_period_after_nobody_names_it(tmp_path: Path) -> None:
    async with keeping(tmp_path, budget=1_000) as keep:
        a, b, c = [await keep.put(data) for data in (A, B, C)]
        keep.publish("x/1", a, kept=(b,))
        keep.publish("x/2", c)
        await pass_time(keep, 3 * GRACE)
        assert keep.store.digests() == {a, b, c}
        keep.publish("x/1", a)
        keep.pins.remove("x/2")
        await pass_time(keep, 0.9 * GRACE)
        assert keep.store.digests() == {a, b, c}
        await pass_time(keep, 0.2 * GRACE)
        assert keep.store.digests() == {a}
        assert keep.value("autowasm_blobs_evicted_total", reason="grace") == 2
        assert keep.value("autowasm_blobs_pinned") == 1
        assert keep.value("autowasm_blob_pinned_bytes") == len(A)


async def pass_time(keep: Keeping, seconds: float) -> None:
    await keep.retention.sweep()
    keep.clocks.advance(seconds)
    await keep.retention.sweep()


async def test_being_served_is_a_use(tmp_path: Path) -> None:
    async with keeping(tmp_path, budget=1_000, clocks=FakeClocks(process=0.0)) as keep:
        a, b = [await keep.put(data) for data in (A, B)]
        # The store's own clock is the real one: make both show about the same.
        keep.clocks.process = asyncio.get_running_loop().time()
        await keep.retention.sweep()
        keep.clocks.process -= 0.9 * GRACE  # as if the blobs had been stored that long ago
        for sha256 in (a, b):
            keep.retention._last_use._used[sha256] = keep.retention._last_use.ages.now()
            keep.retention._last_use._named.clear()
        keep.clocks.process += 0.9 * GRACE
        assert await keep.store.open(a) is not None
        keep.clocks.process += 0.2 * GRACE
        await keep.retention.sweep()
        assert keep.store.digests() == {a}


async def test_nothing_goes_before_every_owner_was_heard(tmp_path: Path) -> None:
    clocks = FakeClocks()
    async with keeping(tmp_path, budget=1_000, clocks=clocks) as keep:
        a, b = [await keep.put(data) for data in (A, B)]
        keep.let_go()
        await keep.retention.sweep()
    clocks.advance(2 * GRACE)
    async with keeping(tmp_path, budget=50, clocks=clocks, synced=False) as keep:
        await keep.retention.sweep()
        assert keep.store.digests() == {a, b}
        keep.retention.synced(["x/1"])
        await keep.retention.sweep()
        assert keep.store.digests() == {a, b}
        keep.publish("x/1", a)
        await keep.retention.sweep()
        assert keep.store.digests() == {a}


async def test_a_restart_counts_on_and_a_clock_that_jumps_does_not(tmp_path: Path) -> None:
    clocks = FakeClocks()
    async with keeping(tmp_path, budget=1_000, clocks=clocks) as keep:
        a = await keep.put(A)
        keep.let_go()
        await pass_time(keep, 0.5 * GRACE)
    for jump in (YEARS, -2 * YEARS):
        clocks.wall += jump
        async with keeping(tmp_path, budget=1_000, clocks=clocks) as keep:
            await pass_time(keep, 0.1 * GRACE)
            assert keep.store.digests() == {a}
    clocks.advance(0.4 * GRACE)  # while it is not running, on the same boot
    async with keeping(tmp_path, budget=1_000, clocks=clocks) as keep:
        await keep.retention.sweep()
        assert not keep.store.digests()


async def test_over_budget_after_a_restart_the_longest_unused_go(tmp_path: Path) -> None:
    clocks = FakeClocks()
    async with keeping(tmp_path, budget=1_000, clocks=clocks) as keep:
        digests: list[Sha256Hex] = []
        for number in range(5):
            digests.append(await keep.put(b"%d" % number * 100))
            keep.let_go()
            await keep.retention.sweep()
    async with keeping(tmp_path, budget=300, clocks=clocks) as keep:
        keep.publish("x/1", digests[0])
        await keep.retention.sweep()
        assert keep.store.digests() == {digests[0], digests[3], digests[4]}
        assert keep.value("autowasm_blobs_evicted_total", reason="budget") == 2


async def test_more_published_than_the_budget_all_stay_and_all_else_goes(tmp_path: Path) -> None:
    clocks = FakeClocks()
    async with keeping(tmp_path, budget=1_000, clocks=clocks) as keep:
        a, b, _ = [await keep.put(data) for data in (A, B, C)]
        keep.let_go()
    async with keeping(tmp_path, budget=150, clocks=clocks) as keep:
        keep.publish("x/1", a, b)
        await keep.retention.sweep()
        assert keep.store.digests() == {a, b}


async def test_a_blob_published_at_the_last_moment_stays(tmp_path: Path) -> None:
    async with keeping(tmp_path, budget=1_000) as keep:
        a = await keep.put(A)
        keep.let_go()
        await keep.retention.sweep()
        keep.clocks.advance(2 * GRACE)
        async with keep.store._turns.of(a):  # somebody reads it: the removal waits for its turn
            sweep = asyncio.create_task(keep.retention.sweep())
            for _ in range(20):
                await asyncio.sleep(0)
            keep.publish("x/1", a)
        await sweep
        assert await keep.store.open(a) is not None


async def test_writes_last_uses_rarely_and_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "last-use.json"
    async with keeping(tmp_path, budget=1_000) as keep:
        a = await keep.put(A)
        keep.publish("x/1", a)
        await keep.retention.sweep()
        first = await asyncio.to_thread(file.stat)
        keep.clocks.advance(30)
        await keep.retention.sweep()
        assert (await asyncio.to_thread(file.stat)).st_ino == first.st_ino
        keep.clocks.advance(1_000)
        await keep.retention.sweep()
        assert (await asyncio.to_thread(file.stat)).st_mtime_ns != first.st_mtime_ns
        keep.pins.remove("x/1")
    document = json.loads(await asyncio.to_thread(file.read_text))
    assert document["used"][a] is not None


async def test_last_uses_that_cannot_be_written_harm_nothing(tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "last-use.json.new").mkdir)
    async with keeping(tmp_path, budget=1_000) as keep:
        a = await keep.put(A)
        await keep.retention.sweep()
        assert await keep.store.open(a) is not None


async def test_tidies_up_what_nobody_works_on(tmp_path: Path) -> None:
    async with keeping(tmp_path, budget=1_000) as keep:
        (tmp_path / "staging" / "left").mkdir()
        (tmp_path / "staging" / "left" / "module").write_bytes(A)
        (tmp_path / "staging" / "fresh").mkdir()
        (tmp_path / "damaged" / "old").write_bytes(A)
        (tmp_path / "damaged" / "new").write_bytes(A)
        async with keep.store.stage() as stage:
            for path in ("staging/left", "damaged/old", stage.path.parent):
                os.utime(tmp_path / path, (0, 0))
            await keep.retention.sweep()
            assert {path.name for path in (tmp_path / "staging").iterdir()} == {
                "fresh",
                stage.path.parent.name,
            }
            assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["new"]
            stage.path.write_bytes(B)
            await keep.store.commit(stage, (await keep.put(B)))


async def test_run_goes_on_when_the_disk_fails(tmp_path: Path) -> None:
    async with keeping(tmp_path, budget=1_000, sweep_every=0.0) as keep:
        looks = 0

        def space(directory: Path) -> object:
            nonlocal looks
            looks += 1
            raise OSError(5, "Input/output error")

        keep.retention._room._space = space  # type: ignore[assignment]
        task = asyncio.create_task(keep.retention.run())
        async with asyncio.timeout(5):
            while looks < 2:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
