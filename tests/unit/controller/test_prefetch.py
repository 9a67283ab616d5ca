"""Published modules are copied from the other replicas, independently of the current spec."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import parsing
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


class World:
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
        autowasm = parsing.parse(document())
        self.publisher.envoyfilters[key] = envoyfilters.render(autowasm, record, EnvoyFetch())

    async def notified(self, key: ObjectKey = KEY) -> None:
        async with asyncio.timeout(10):
            assert await self.changes.get() == key


@pytest.fixture
def pools() -> Iterator[Pools]:
    with Pools() as pools:
        yield pools


@pytest.fixture
async def world(tmp_path: Path, pools: Pools) -> AsyncIterator[World]:
    async with (
        BlobStore(tmp_path, pools=pools, metrics=Metrics()) as store,
        asyncio.TaskGroup() as tasks,
    ):
        world = World(store, tasks)
        yield world
        world.publisher.envoyfilters.clear()
        world.copies.ensure(KEY)


async def test_copies_what_is_published_and_missing(world: World) -> None:
    world.publish()
    world.others.have = True
    assert not world.copies.is_settled(KEY)
    world.copies.ensure(KEY)
    await world.notified()
    assert sha256_of(MODULE) in world.store
    assert world.copies.is_settled(KEY)
    assert world.copies.ensure(KEY) is None
    assert world.others.requests == 1


async def test_is_not_settled_while_the_first_copy_runs(world: World) -> None:
    world.publish()
    world.others.answering.clear()
    for _ in range(3):
        world.copies.ensure(KEY)
        await asyncio.sleep(0)
        assert not world.copies.is_settled(KEY)
    world.others.answering.set()
    await world.notified()
    assert world.copies.is_settled(KEY), "tried once"
    assert world.others.requests == 1


async def test_tries_again_for_as_long_as_it_is_published(world: World) -> None:
    world.publish()
    world.copies.ensure(KEY)
    await world.notified()
    next_copy = world.copies.ensure(KEY)
    assert next_copy is not None
    assert 0 < next_copy <= 0.06
    assert world.others.requests == 1
    world.others.have = True
    await asyncio.sleep(next_copy)
    world.copies.ensure(KEY)
    await world.notified()
    assert sha256_of(MODULE) in world.store


async def test_copy_ends_with_what_it_was_for(world: World) -> None:
    world.publish()
    world.others.answering.clear()
    world.copies.ensure(KEY)
    await asyncio.sleep(0)
    world.publisher.envoyfilters.clear()
    assert world.copies.ensure(KEY) is None
    assert world.copies.is_settled(KEY)
    assert world.changes.empty()


async def test_copy_goes_on_for_another_object_with_the_same_module(world: World) -> None:
    other = ObjectKey("default", "other")
    world.others.answering.clear()
    for key in (KEY, other):
        world.publish(key)
        world.copies.ensure(key)
    await asyncio.sleep(0)
    del world.publisher.envoyfilters[KEY]
    world.copies.ensure(KEY)
    world.others.have = True
    world.others.answering.set()
    await world.notified(other)
    assert sha256_of(MODULE) in world.store
    assert world.changes.empty()


async def test_requests_nothing_that_is_not_published(world: World) -> None:
    assert world.copies.ensure(KEY) is None
    assert world.copies.is_settled(KEY)
    assert world.others.requests == 0
