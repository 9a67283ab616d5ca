"""The reconciler of one replica among others: who leads, who follows, and in which order things are written."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from autowasm.api import envoyfilter as envoyfilters
from autowasm.artifacts.fetcher import ArtifactFetcher
from autowasm.artifacts.published import PublishedModules
from autowasm.blobs.store import BlobStore
from autowasm.controller.fetching.jobs import FetchJobs
from autowasm.controller.fetching.spreading import Spreading
from autowasm.controller.reconciler import AutoWasmReconciler
from autowasm.digest import sha256_hex
from autowasm.errors import SourceNotFound, SourceUnavailable
from autowasm.kube.controller import Controller
from autowasm.kube.leadership import Tenure
from autowasm.kube.resources import ObjectKey
from autowasm.kube.workqueue import WorkQueue
from autowasm.limits import FetchLimits
from autowasm.net.pools import Pools
from autowasm.settings import EnvoyFetch, Settings
from autowasm.telemetry.metrics import Metrics
from tests.fakes.autowasms import IMAGE, document
from tests.fakes.control import FakeObjects, FakePublisher
from tests.fakes.sources import FakeSecrets, FakeSource, sha256_of
from tests.parts import wat

KEY = ObjectKey("default", "test")
OTHER = "registry.example/team/filter:v2"
FOREVER = 1e9
WORLD, EARTH = wat.header_filter("world"), wat.header_filter("earth")
GONE = SourceNotFound("no such manifest")
DOWN = SourceUnavailable("connection refused", reason="RegistryUnavailable")


class FakeReplicas:
    """The others; they have what is in `stored`."""

    def __init__(self) -> None:
        self.urls: tuple[str, ...] = ()
        self.stored: set[str] = set()
        self.changed = asyncio.Event()
        self.asked: list[tuple[str, float]] = []

    def known(self) -> tuple[str, ...]:
        return self.urls

    async def wait_all_have(self, sha256: str, timeout: float) -> bool:
        self.asked.append((sha256, timeout))
        try:
            async with asyncio.timeout(min(timeout, 0.05)):
                while sha256 not in self.stored:
                    await asyncio.sleep(0.001)
        except TimeoutError:
            return False
        return True


class World:
    """The cluster, and what one replica makes of it."""

    def __init__(self) -> None:
        self.objects = FakeObjects()
        self.publisher = FakePublisher(self.objects)
        self.registry = FakeSource()
        self.registry.add(IMAGE, WORLD)
        self.registry.add(OTHER, EARTH)
        self.replicas = FakeReplicas()

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.objects.documents[KEY].get("status", {})
        return status

    @property
    def live(self) -> str | None:
        found = self.publisher.envoyfilters.get(KEY)
        record = envoyfilters.record_of(found) if found else None
        return record.sha256 if record else None

    def writes(self) -> list[str]:
        """Kinds, with the phase of each status."""
        return [
            f"status {value['phase']}" if kind == "status" else kind
            for kind, value in self.publisher.writes
        ]


class Replica:
    """One process."""

    def __init__(self, world: World, store: BlobStore, pools: Pools, tasks: asyncio.TaskGroup):
        self.world, self.store = world, store
        self.queue: WorkQueue[ObjectKey] = WorkQueue()
        self.tenure = Tenure(lambda _: None)
        metrics = Metrics()
        settings = Settings(
            cache_dir=Path("/nowhere"),
            fetch=FetchLimits(retry_base=0.01, not_found_first=0.01, breaker_failures=1000),
        )
        fetcher = ArtifactFetcher(
            settings=settings,
            store=store,
            sources={"registry": world.registry},
            secrets=FakeSecrets(),
            pools=pools,
            metrics=metrics,
            tasks=tasks,
        )
        self.published = PublishedModules(fetcher)
        self.jobs = FetchJobs(fetcher, limits=settings.fetch, tasks=tasks, on_change=self.queue.add)
        reconciler = AutoWasmReconciler(
            objects=world.objects,
            publisher=world.publisher,
            jobs=self.jobs,
            store=store,
            published=self.published,
            envoy=EnvoyFetch(),
            metrics=metrics,
            leadership=self.tenure,
            spreading=Spreading(world.replicas, tasks=tasks, on_change=self.queue.add),
        )
        self.controller = Controller("test", queue=self.queue, reconciler=reconciler, workers=1)

    def lead(self, leading: bool = True) -> None:
        if leading:
            self.tenure.extend(FOREVER)
        else:
            self.tenure.end()
            self.jobs.drop_resolving()
        self.queue.add(KEY)

    async def until(self, phase: str) -> None:
        self.queue.add(KEY)
        async with asyncio.timeout(10):
            while self.world.status.get("phase") != phase:
                await asyncio.sleep(0.001)

    async def settle(self) -> None:
        self.queue.add(KEY)
        async with asyncio.timeout(10):
            while self.jobs.is_running(KEY) or len(self.queue) or self.queue.running_times():
                await asyncio.sleep(0.001)


@pytest.fixture
def world() -> World:
    return World()


@asynccontextmanager
async def started(world: World, directory: Path) -> AsyncIterator[Replica]:
    async with AsyncExitStack() as stack:
        pools = stack.enter_context(Pools())
        store = await stack.enter_async_context(
            BlobStore(directory, pools=pools, metrics=Metrics())
        )
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        replica = Replica(world, store, pools, tasks)
        worker = tasks.create_task(replica.controller.run())
        yield replica
        worker.cancel()
        for key in list(replica.jobs._jobs):
            replica.jobs.forget(key)


@pytest.fixture
async def replica(world: World, tmp_path: Path) -> AsyncIterator[Replica]:
    async with started(world, tmp_path / "one") as replica:
        yield replica


@pytest.fixture
async def another(world: World, tmp_path: Path) -> AsyncIterator[Replica]:
    async with started(world, tmp_path / "two") as replica:
        yield replica


async def test_follower_resolves_nothing_and_writes_nothing(world: World, replica: Replica) -> None:
    world.objects.apply(document())
    await replica.settle()
    assert not world.registry.steps
    assert not world.publisher.writes


async def test_follower_keeps_nothing_of_an_autowasm_that_is_gone(
    world: World, replica: Replica
) -> None:
    world.objects.apply(document())
    await replica.settle()
    del world.objects.documents[KEY]
    await replica.settle()
    assert KEY in world.publisher.forgotten
    assert not world.publisher.writes


async def test_follower_has_what_the_leader_published(
    world: World, replica: Replica, another: Replica
) -> None:
    world.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    writes = list(world.publisher.writes)
    await another.settle()
    await another.settle()
    assert world.live in another.store
    assert world.registry.count("resolve") == 1
    assert world.publisher.writes == writes


async def test_new_leader_writes_nothing_that_is_there(
    world: World, replica: Replica, another: Replica
) -> None:
    world.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    world.publisher.writes.clear()
    replica.lead(False)
    another.lead()
    await another.settle()
    await replica.settle()
    assert not world.publisher.writes
    assert world.registry.count("resolve") == 1


async def test_lost_leadership_drops_what_was_being_resolved(
    world: World, replica: Replica
) -> None:
    world.registry.failures["resolve"] = DOWN
    world.objects.apply(document())
    replica.lead()
    await replica.until("Failed")
    replica.lead(False)
    await replica.settle()
    asked = world.registry.count("resolve")
    await asyncio.sleep(0.1)  # several retry delays
    assert world.registry.count("resolve") == asked


async def test_record_is_told_and_copied_before_envoys_hear_of_it(
    world: World, replica: Replica, another: Replica
) -> None:
    world.replicas.urls = ("http://two",)
    world.objects.apply(document())
    replica.lead()
    await replica.until("Fetching")
    digest = sha256_of(WORLD)
    assert world.status["module"]["sha256"] == digest
    assert "history" not in world.status
    await another.settle()
    assert digest in another.store
    assert another.published.is_known(digest)
    world.replicas.stored.add(digest)
    await replica.until("Synced")
    assert world.writes() == ["status Fetching", "envoyfilter", "status Synced"]
    assert world.registry.count("resolve") == 1


async def test_replica_that_never_has_it_holds_up_no_rollout(
    world: World, replica: Replica
) -> None:
    world.replicas.urls = ("http://two",)
    world.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    assert [timeout for _, timeout in world.replicas.asked] == [0.5, 5.0]


async def test_nothing_is_told_to_replicas_that_have_it_already(
    world: World, replica: Replica
) -> None:
    world.replicas.urls = ("http://two",)
    world.replicas.stored.add(sha256_of(WORLD))
    world.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    assert world.writes() == ["envoyfilter", "status Synced"]


async def test_leader_that_dies_between_status_and_envoyfilter_is_continued_exactly(
    world: World, replica: Replica, another: Replica
) -> None:
    world.replicas.urls = ("http://two",)
    world.objects.apply(document())
    replica.lead()
    await replica.until("Fetching")
    replica.lead(False)
    await replica.settle()
    world.registry.add(IMAGE, EARTH)  # the tag moves meanwhile
    world.replicas.stored.add(sha256_of(WORLD))
    another.lead()
    await another.until("Synced")
    assert world.live == sha256_of(WORLD)
    assert world.registry.count("resolve") == 1


async def test_always_that_was_told_and_not_published_is_not_rolled_back(
    world: World, replica: Replica, another: Replica
) -> None:
    """The spec changed, the moved tag is resolved and told; the next leader must not settle for what is live."""
    world.objects.apply(document(pullPolicy="Always"))
    replica.lead()
    await replica.until("Synced")
    world.registry.add(IMAGE, EARTH)
    world.replicas.urls = ("http://two",)
    world.objects.apply(document(pullPolicy="Always", rootID="changed"))
    await replica.until("Fetching")
    replica.lead(False)
    await replica.settle()
    another.lead()
    async with asyncio.timeout(10):
        while world.live != sha256_of(EARTH):
            await asyncio.sleep(0.001)


async def test_forged_status_makes_nothing_known_to_a_follower(
    world: World, replica: Replica, another: Replica
) -> None:
    world.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    module = dict(world.status["module"])
    forged = {**module, "sha256": "1" * 64, "image": f"evil.example/x@sha256:{'1' * 64}"}
    world.objects.documents[KEY]["status"] = {**world.status, "module": forged, "history": []}
    world.registry.steps.clear()
    digest = sha256_hex("1" * 64)
    await another.settle()
    assert not another.published.is_known(digest)
    assert digest not in another.store
    assert world.live in another.store


async def test_published_module_whose_origin_is_down_is_not_called_lost(
    world: World, replica: Replica, another: Replica
) -> None:
    world.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    replica.lead(False)
    world.registry.failures["pin"] = DOWN
    another.lead()
    await another.until("Degraded")
    fetched = next(one for one in world.status["conditions"] if one["type"] == "Fetched")
    assert fetched["reason"] == "RegistryUnavailable"
    world.registry.failures.clear()
    await another.until("Synced")


async def test_remembered_record_that_is_gone_has_its_source_resolved_afresh(
    world: World, replica: Replica, another: Replica
) -> None:
    world.objects.apply(document())
    replica.lead()
    await replica.until("Synced")
    world.objects.apply(document(image=OTHER))
    await replica.settle()
    await replica.until("Synced")
    assert world.live == sha256_of(EARTH)
    replica.lead(False)
    another.lead()
    await another.settle()
    world.registry.failures["pin"] = GONE
    world.objects.apply(document(image=IMAGE))  # back, with nothing stored and no manifest left
    await another.settle()
    async with asyncio.timeout(10):
        while world.live != sha256_of(WORLD):
            await asyncio.sleep(0.001)
