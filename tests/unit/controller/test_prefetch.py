"""Published modules are copied from the other replicas, independently of the current spec."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import validation
from autowasm.api.record import Record
from autowasm.blobs.store import BlobStore
from autowasm.controller.replication import Prefetcher
from autowasm.digest import Sha256Hex
from autowasm.kube.resources import ObjectKey
from autowasm.limits import FetchLimits
from autowasm.net.pools import Pools
from autowasm.settings import EnvoyFetch
from autowasm.telemetry.metrics import Metrics
from tests.fakes.autowasms import IMAGE, document
from tests.fakes.modulesource import sha256_of
from tests.fakes.publisher import FakeObjects, FakePublisher

MODULE = b"a module"
KEY = ObjectKey("default", "test")


class Others:
    """The other replicas, over the store of ours."""

    def __init__(self, store: BlobStore) -> None:
        self.store = store
        self.have = False
        self.requests = 0
        self.answering = asyncio.Event()
        self.answering.set()

    async def copy(self, sha256: Sha256Hex) -> bool:
        self.requests += 1
        await self.answering.wait()
        if self.have:
            async with self.store.stage() as stage:
                await asyncio.to_thread(stage.path.write_bytes, MODULE)
                await self.store.commit(stage, sha256)
        return self.have


class PrefetchingReplica:
    """A replica that copies published modules from the others."""

    def __init__(self, store: BlobStore, tasks: asyncio.TaskGroup) -> None:
        self.store, self.others = store, Others(store)
        self.publisher = FakePublisher(FakeObjects())
        self.changes: asyncio.Queue[ObjectKey] = asyncio.Queue()
        self.copies = Prefetcher(
            publisher=self.publisher,
            store=store,
            copy=self.others.copy,
            limits=FetchLimits(retry_base=0.05),
            tasks=tasks,
            on_change=self.changes.put_nowait,
        )

    def publish(self, key: ObjectKey = KEY) -> None:
        record = Record(source=IMAGE, sha256=sha256_of(MODULE), size=len(MODULE), abi="0.2.1")
        autowasm = validation.parse(document())
        self.publisher.envoyfilters[key] = envoyfilters.render(autowasm, record, EnvoyFetch())

    async def notified(self, key: ObjectKey = KEY) -> None:
        async with asyncio.timeout(10):
            assert await self.changes.get() == key


@pytest.fixture
def pools() -> Iterator[Pools]:
    with Pools() as pools:
        yield pools


@pytest.fixture
async def replica(tmp_path: Path, pools: Pools) -> AsyncIterator[PrefetchingReplica]:
    async with (
        BlobStore(tmp_path, pools=pools, metrics=Metrics()) as store,
        asyncio.TaskGroup() as tasks,
    ):
        replica = PrefetchingReplica(store, tasks)
        yield replica
        replica.publisher.envoyfilters.clear()
        replica.copies.ensure(KEY)


async def test_copies_a_published_module_that_is_missing(replica: PrefetchingReplica) -> None:
    replica.publish()
    replica.others.have = True
    assert not replica.copies.is_settled(KEY)
    replica.copies.ensure(KEY)
    await replica.notified()
    assert sha256_of(MODULE) in replica.store
    assert replica.copies.is_settled(KEY)
    assert replica.copies.ensure(KEY) is None
    assert replica.others.requests == 1


async def test_is_not_settled_while_the_first_copy_runs(replica: PrefetchingReplica) -> None:
    replica.publish()
    replica.others.answering.clear()
    for _ in range(3):
        replica.copies.ensure(KEY)
        await asyncio.sleep(0)
        assert not replica.copies.is_settled(KEY)
    replica.others.answering.set()
    await replica.notified()
    assert replica.copies.is_settled(KEY), "tried once"
    assert replica.others.requests == 1


async def test_tries_again_for_as_long_as_it_is_published(replica: PrefetchingReplica) -> None:
    replica.publish()
    replica.copies.ensure(KEY)
    await replica.notified()
    next_copy = replica.copies.ensure(KEY)
    assert next_copy is not None
    assert 0 < next_copy <= 0.06
    assert replica.others.requests == 1
    replica.others.have = True
    await asyncio.sleep(next_copy)
    replica.copies.ensure(KEY)
    await replica.notified()
    assert sha256_of(MODULE) in replica.store


async def test_copy_ends_with_the_envoyfilter_that_needs_it(replica: PrefetchingReplica) -> None:
    replica.publish()
    replica.others.answering.clear()
    replica.copies.ensure(KEY)
    await asyncio.sleep(0)
    replica.publisher.envoyfilters.clear()
    assert replica.copies.ensure(KEY) is None
    assert replica.copies.is_settled(KEY)
    assert replica.changes.empty()


async def test_copy_goes_on_for_another_object_with_the_same_module(
    replica: PrefetchingReplica,
) -> None:
    other = ObjectKey("default", "other")
    replica.others.answering.clear()
    for key in (KEY, other):
        replica.publish(key)
        replica.copies.ensure(key)
    await asyncio.sleep(0)
    del replica.publisher.envoyfilters[KEY]
    replica.copies.ensure(KEY)
    replica.others.have = True
    replica.others.answering.set()
    await replica.notified(other)
    assert sha256_of(MODULE) in replica.store
    assert replica.changes.empty()


async def test_requests_nothing_that_is_not_published(replica: PrefetchingReplica) -> None:
    assert replica.copies.ensure(KEY) is None
    assert replica.copies.is_settled(KEY)
    assert replica.others.requests == 0
