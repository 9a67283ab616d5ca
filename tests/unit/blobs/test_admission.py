"""Whether there is room: budget, shares, and a volume that fills up."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from autowasm.digest import Sha256Hex
from autowasm.errors import StorageError
from tests.fakes.blobstorage import BlobStorage, FakeVolume, blob_storage
from tests.fakes.modulesource import sha256_of

A, B, C, D = (name * 100 for name in (b"a", b"b", b"c", b"d"))


async def test_the_longest_unused_makes_room_and_only_as_much_as_is_needed(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=300) as storage:
        digests = []
        for data in (A, B, C):
            digests.append(await storage.put(data))
            storage.let_go()
            await storage.retention.sweep()
        storage.publish("x/1", digests[0])
        d = await storage.put(D)
        assert storage.store.digests() == {digests[0], digests[2], d}
        assert storage.store.total == 300
        assert storage.value("autowasm_blobs_evicted_total", reason="budget") == 1


async def test_budget_full_of_published_blobs_refuses_a_new_one_and_evicts_none(
    tmp_path: Path,
) -> None:
    async with blob_storage(tmp_path, budget=250) as storage:
        a, b = [await storage.put(data) for data in (A, B)]
        storage.publish("x/1", a)
        storage.publish("y/1", b)
        with pytest.raises(StorageError, match="--disk-budget") as caught:
            await storage.put(C)
        assert caught.value.reason == "StorageFull"
        assert storage.store.digests() == {a, b}
        assert storage.value("autowasm_storage_full") == 1
        assert storage.value("autowasm_storage_refusals_total", reason="StorageFull") == 1
        storage.pins.remove("x/1")
        storage.let_go()
        await storage.retention.sweep()
        assert storage.value("autowasm_storage_full") == 0
        c = await storage.put(C)
        assert storage.store.digests() == {b, c}


async def test_a_module_of_unknown_size_is_refused_when_it_is_known(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=150) as storage:
        a = await storage.put(A)
        storage.publish("x/1", a)
        async with storage.store.admission.reserve_space(None), storage.store.stage() as stage:
            stage.path.write_bytes(B)
            with pytest.raises(StorageError, match="100 B"):
                await storage.store.commit(stage, sha256_of(B))
        assert storage.store.digests() == {a}
        async with storage.store.stage() as stage:  # a stored module needs no room
            stage.path.write_bytes(A)
            await storage.store.commit(stage, a)


async def test_nothing_is_evicted_for_space_before_all_pins_are_known(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=150, synced=False) as storage:
        a = await storage.put(A)
        storage.let_go()
        with pytest.raises(StorageError, match="still needed"):
            await storage.put(B)
        storage.retention.synced([])
        assert await storage.put(B) in storage.store
        assert a not in storage.store


async def test_many_at_once_never_exceed_the_budget(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=350) as storage:
        results = await asyncio.gather(
            *(storage.put(b"%d" % number * 100) for number in range(10)), return_exceptions=True
        )
        assert storage.store.total == 300
        assert sum(isinstance(result, StorageError) for result in results) == 7


async def test_a_namespace_may_not_pin_more_than_its_share(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=1_000, share=250) as storage:
        a, b, c = [await storage.put(data) for data in (A, B, C)]
        storage.publish("x/1", a)
        storage.retention.admit("x/3", "x", a)
        storage.retention.admit("x/2", "x", b)
        storage.publish("x/2", b)
        with pytest.raises(StorageError, match=r"namespace x .*--namespace-disk-budget") as caught:
            storage.retention.admit("x/3", "x", c)
        assert caught.value.reason == "NamespaceShareExceeded"
        assert (
            storage.value("autowasm_storage_refusals_total", reason="NamespaceShareExceeded") == 1
        )
        assert storage.value("autowasm_storage_full") == 0
        storage.retention.admit("y/1", "y", c)  # others unharmed
        storage.retention.admit(
            "x/3", "x", b
        )  # a module that the namespace has already is never refused
        storage.publish("x/1")
        storage.retention.admit("x/3", "x", c)


async def test_module_that_is_being_replaced_does_not_count_toward_the_quota(
    tmp_path: Path,
) -> None:
    async with blob_storage(tmp_path, budget=1_000, share=250) as storage:
        a, b, c = [await storage.put(data) for data in (A, B, C)]
        storage.publish("x/1", a)
        storage.publish("x/2", b)
        async with storage.store.admission.reserve("x", owner="x/1", size=100) as reservation:
            reservation.hold(c, 100)  # a new version, at the limit
        storage.publish("x/1", a, c)  # while it is being published
        storage.publish("x/1", c)
        storage.publish("x/2", c, b)
        with pytest.raises(StorageError):
            storage.retention.admit("x/1", "x", a)  # c stays for x/2


async def test_claims_of_one_namespace_count_together_and_end(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=1_000, share=250) as storage:
        admission = storage.store.admission
        a = await storage.put(A)
        async with admission.reserve("x", size=100), admission.reserve("x", size=100):
            with pytest.raises(StorageError, match="its quota of 250 B"):
                async with admission.reserve("x", size=100):
                    pass
            async with admission.reserve("y", size=100):
                pass
            async with admission.reserve("x") as unknown:
                with pytest.raises(StorageError):
                    unknown.hold(a, 100)
        async with admission.reserve("x", size=200):
            pass


async def test_new_module_waits_until_the_pins_of_its_namespace_are_known(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=1_000, share=150, synced=False) as storage:
        a, b = [await storage.put(data) for data in (A, B)]

        async def reserve(sha256: Sha256Hex) -> None:
            async with storage.store.admission.reserve("x", sha256=sha256, size=100):
                pass

        storage.retention.synced(["x/1", "y/1"])
        news = asyncio.create_task(reserve(b))
        storage.publish("x/1", a)
        async with asyncio.timeout(5):
            await reserve(a)  # a published module does not wait
        assert not news.done()
        storage.publish("y/1")
        with pytest.raises(StorageError, match="namespace x"):
            await news


async def test_missing_pins_of_one_owner_delay_new_modules_only_until_the_timeout(
    tmp_path: Path,
) -> None:
    async with blob_storage(tmp_path, budget=1_000, synced=False, pins_timeout=0.01) as storage:
        storage.retention.synced(["x/1"])
        async with asyncio.timeout(5), storage.store.admission.reserve("x", size=100):
            pass


async def test_blob_held_for_an_envoyfilter_is_not_evicted_for_a_while(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=150) as storage:
        a = await storage.put(A)
        with pytest.raises(StorageError):
            await storage.put(B)
        assert a in storage.store
        storage.let_go()
        await storage.put(B)
        assert a not in storage.store


async def test_module_no_longer_published_is_not_held(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=250) as storage:
        for number in range(10):  # successive versions of one user
            current = await storage.put(b"%d" % number * 100)
            storage.publish("x/1", current)
        assert current in storage.store


async def test_full_volume_evicts_unneeded_blobs_and_then_refuses_new_ones(
    tmp_path: Path,
) -> None:
    volume = FakeVolume(free=10_000, total=10_000)
    async with blob_storage(tmp_path, budget=10_000, volume=volume) as storage:
        a, b = [await storage.put(data) for data in (A, B)]
        (tmp_path / "damaged" / "old").write_bytes(A)
        storage.let_go()
        storage.publish("x/1", a)
        volume.free = 150
        with pytest.raises(StorageError, match=str(tmp_path)) as caught:
            await storage.put(C)
        assert caught.value.reason == "StorageFull"
        assert storage.store.digests() == {a}  # b went, and it was not enough
        assert not list((tmp_path / "damaged").iterdir())
        assert storage.value("autowasm_blobs_evicted_total", reason="disk") == 1
        assert storage.value("autowasm_storage_free_bytes") == 150
        volume.free = 300
        await storage.put(C)
        assert b not in storage.store
        assert storage.value("autowasm_storage_full") == 0


async def test_two_large_fetches_do_not_share_one_gap(tmp_path: Path) -> None:
    volume = FakeVolume(free=1_000, total=10_000)
    async with (
        blob_storage(tmp_path, budget=10_000, volume=volume) as storage,
        storage.store.admission.reserve_space(600),
    ):
        with pytest.raises(StorageError):
            async with storage.store.admission.reserve_space(600):
                pass
        async with storage.store.admission.reserve_space(200):
            pass


async def test_small_volume_admits_one_module_of_unknown_size_at_a_time(tmp_path: Path) -> None:
    volume = FakeVolume(free=1_500, total=10_000)
    async with blob_storage(tmp_path, budget=10_000, volume=volume) as storage:
        async with storage.store.admission.reserve_space(None):
            with pytest.raises(StorageError, match=r"2\.9 KiB"):
                async with storage.store.admission.reserve_space(None):
                    pass
        volume.free = 90
        with pytest.raises(StorageError):
            async with storage.store.admission.reserve_space(None):
                pass


async def test_enospc_evicts_every_unpinned_blob(tmp_path: Path) -> None:
    async with blob_storage(tmp_path, budget=10_000) as storage:
        a, b = [await storage.put(data) for data in (A, B)]
        storage.publish("x/1", a)
        storage.let_go()
        with pytest.raises(StorageError, match="no space left"):
            await full(storage)
        assert storage.store.digests() == {a}
        assert b not in storage.store
        assert storage.value("autowasm_storage_full") == 1
        await storage.retention.sweep()
        assert storage.value("autowasm_storage_full") == 0


async def full(storage: BlobStorage) -> None:
    async with storage.store.admission.reserve_space(50), storage.store.stage():
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
