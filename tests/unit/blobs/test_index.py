import asyncio

from autowasm.blobs.store import BlobEntry, BlobIndex
from autowasm.digest import Sha256Hex
from autowasm.telemetry.metrics import Metrics

A = Sha256Hex("a" * 64)


async def test_waiter_that_leaves_in_the_moment_of_an_arrival_harms_no_other() -> None:
    index = BlobIndex(Metrics())
    leaving, staying = (asyncio.create_task(index.wait_for(A)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    index.add(BlobEntry(A, 3))
    async with asyncio.timeout(60):
        await staying
    assert leaving.cancelled()


def test_removing_an_entry_that_was_replaced_keeps_the_other() -> None:
    index = BlobIndex(Metrics())
    old, new = BlobEntry(A, 3), BlobEntry(A, 3)
    index.add(old)
    index.add(new)
    index.remove(old)
    assert index.get(A) is new
    assert index.total == 3
    index.remove(new)
    index.remove(new)
    assert (A in index, index.total) == (False, 0)
