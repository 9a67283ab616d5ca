"""The reconciler between in-memory seams, with the real jobs, fetcher and store under it."""

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import record as records
from autowasm.api.record import Record
from autowasm.api.v1alpha1 import AutoWasm, RegistrySource, Source
from autowasm.artifacts.fetcher import ArtifactFetcher
from autowasm.artifacts.published import PublishedModules
from autowasm.artifacts.source import FetchRequest
from autowasm.blobs.store import BlobStore
from autowasm.controller import reconciler as module
from autowasm.controller.fetching.jobs import FetchJobs
from autowasm.controller.reconciler import AutoWasmReconciler
from autowasm.errors import (
    AutoWasmError,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    SpecError,
    StorageError,
)
from autowasm.kube.controller import Controller
from autowasm.kube.resources import ObjectKey
from autowasm.kube.workqueue import WorkQueue
from autowasm.limits import FetchLimits
from autowasm.net.pools import Pools
from autowasm.settings import EnvoyFetch, Settings
from autowasm.telemetry.metrics import Metrics
from tests.fakes.autowasms import IMAGE, digest, document, record
from tests.fakes.control import FakeObjects, FakePublisher
from tests.fakes.sources import FakeSecrets, FakeSource, sha256_of
from tests.parts import wat

OTHER = "registry.example/team/filter:v2"
KEY = ObjectKey("default", "test")
GONE = SourceNotFound("no such manifest")
DOWN = SourceUnavailable("connection refused", reason="RegistryUnavailable")
WORLD, EARTH = "world", "earth"
Announced = list[tuple[str, str, str]]


def sha(value: str) -> str:
    return sha256_of(wat.header_filter(value))


class World:
    """What outlives a restart of the process: objects, what was written, the cache directory, the registry."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.objects = FakeObjects()
        self.publisher = FakePublisher(self.objects)
        self.registry = FakeSource()
        self.secrets = FakeSecrets()
        self.announced: Announced = []
        self.polls = FoundByPolls()
        self.service_problem: AutoWasmError | None = None
        self.registry.add(IMAGE, wat.header_filter(WORLD))
        self.registry.add(OTHER, wat.header_filter(EARTH))

    def announce(self, about: Any, kind: str, reason: str, message: str, /) -> None:
        self.announced.append((kind, reason, message))

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.objects.documents[KEY].get("status", {})
        return status

    @property
    def live(self) -> str | None:
        """The digest that is published."""
        found = self.publisher.envoyfilters.get(KEY)
        record = envoyfilters.record_of(found) if found else None
        return record.sha256 if record else None

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason."""
        found = next(each for each in self.status["conditions"] if each["type"] == kind)
        return found["status"], found["reason"]

    @asynccontextmanager
    async def process(self, *, metrics: Metrics | None = None) -> AsyncIterator["Process"]:
        """One life of the process."""
        metrics = metrics or Metrics()
        settings = Settings(
            cache_dir=self.directory,
            fetch=FetchLimits(retry_base=0.01, not_found_first=0.01, breaker_failures=1000),
        )
        async with AsyncExitStack() as stack:
            pools = stack.enter_context(Pools())
            store = await stack.enter_async_context(
                BlobStore(self.directory, pools=pools, metrics=metrics)
            )
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            process = Process(self, settings, store, pools, metrics, tasks)
            worker = tasks.create_task(process.controller.run())
            yield process
            worker.cancel()
            for key in list(process.jobs._jobs):
                process.jobs.forget(key)


class FoundByPolls:
    """What a poll would have found, as a test says."""

    def __init__(self) -> None:
        self.record: Record | None = None
        self.refused: AutoWasmError | None = None
        self.told: list[Record] = []

    def found(self, _key: ObjectKey, _autowasm: AutoWasm) -> Record | None:
        return self.record

    def published(
        self, _key: ObjectKey, _autowasm: AutoWasm, record: Record
    ) -> AutoWasmError | None:
        self.told.append(record)
        return self.refused

    def forget(self, _key: ObjectKey) -> None:
        self.told.clear()


class Process:
    """The reconciler, with a queue that is as the real one."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        store: BlobStore,
        pools: Pools,
        metrics: Metrics,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.world = world
        self.store = store
        self.metrics = metrics
        self.queue: WorkQueue[ObjectKey] = WorkQueue()
        self.fetcher = fetcher = ArtifactFetcher(
            settings=settings,
            store=store,
            sources={"registry": world.registry},
            secrets=world.secrets,
            pools=pools,
            metrics=metrics,
            tasks=tasks,
        )
        self.published = PublishedModules(fetcher)
        self.jobs = FetchJobs(fetcher, limits=settings.fetch, tasks=tasks, on_change=self.queue.add)
        self.reconciler = AutoWasmReconciler(
            objects=world.objects,
            publisher=world.publisher,
            jobs=self.jobs,
            store=store,
            published=self.published,
            envoy=EnvoyFetch(),
            metrics=metrics,
            announce=world.announce,
            polls=world.polls,
            service_problem=lambda: world.service_problem,
            now=lambda: "2026-01-01T00:00:00Z",
        )
        self.controller = Controller(
            "test", queue=self.queue, reconciler=self.reconciler, workers=1
        )

    async def apply(self, **fields: Any) -> None:
        """Apply, and wait until nothing is left to do."""
        self.world.objects.apply(document(**fields))
        await self.settle()

    async def settle(self) -> None:
        self.queue.add(KEY)
        async with asyncio.timeout(10):
            while self.jobs.is_running(KEY) or len(self.queue) or self.queue.running_times():
                await asyncio.sleep(0.001)

    async def until(self, phase: str) -> None:
        self.queue.add(KEY)
        async with asyncio.timeout(10):
            while self.world.status.get("phase") != phase:
                await asyncio.sleep(0.001)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "cache")


@pytest.fixture
async def process(world: World, metrics: Metrics) -> AsyncIterator[Process]:
    async with world.process(metrics=metrics) as process:
        yield process


def kinds(world: World) -> list[str]:
    return [kind for kind, _ in world.publisher.writes]


async def test_publishes_what_was_fetched_then_says_so(world: World, process: Process) -> None:
    await process.apply()
    assert kinds(world) == ["envoyfilter", "status"]
    assert world.live == sha(WORLD)
    assert world.live in process.store
    assert world.status["phase"] == "Synced"
    assert world.status["module"]["sha256"] == sha(WORLD)
    assert [world.condition(kind)[0] for kind in ("Fetched", "Published", "Ready")] == ["True"] * 3
    assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    assert world.announced == [
        ("Normal", "Synced", f"nothing → sha256:{sha(WORLD)[:12]} ({world.status['module']['image']})")
    ]  # fmt: skip
    labels = {"phase": "Synced"}
    assert process.metrics.registry.get_sample_value("autowasm_autowasms", labels) == 1


async def test_a_new_module_is_not_published_where_no_sidecar_could_fetch_it(
    world: World, process: Process
) -> None:
    world.service_problem = AutoWasmError("Service a/b does not exist", reason="ServiceNotFound")
    await process.apply()
    assert world.live is None
    assert world.status["phase"] == "Failed"
    assert world.condition("Fetched") == ("True", "Fetched")
    assert world.condition("Published") == ("False", "ServiceNotFound")
    assert world.condition("Ready") == ("False", "ServiceNotFound")
    world.service_problem = None
    await process.settle()
    assert world.live == sha(WORLD)
    assert world.status["phase"] == "Synced"
    assert kinds(world).count("envoyfilter") == 1


async def test_what_is_in_place_stays_while_no_sidecar_could_fetch_another(
    world: World, process: Process
) -> None:
    await process.apply()
    live = copy.deepcopy(world.publisher.envoyfilters[KEY])
    world.service_problem = AutoWasmError("Service a/b does not exist", reason="ServiceNotFound")
    await process.apply(image=OTHER)
    assert world.publisher.envoyfilters[KEY] == live
    assert world.status["phase"] == "Degraded"
    assert "is still in place" in world.status["message"]
    assert world.condition("Published") == ("True", "Published")
    assert world.condition("Ready") == ("False", "ServiceNotFound")
    assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    world.service_problem = None
    await process.settle()
    assert world.live == sha(EARTH)
    assert world.status["phase"] == "Synced"


async def test_nothing_is_written_when_nothing_changed(world: World, process: Process) -> None:
    await process.apply()
    world.publisher.writes.clear()
    world.registry.steps.clear()
    for _ in range(3):
        await process.settle()
    await process.apply()
    assert not world.publisher.writes
    assert not world.registry.steps


async def test_restart_resolves_nothing_and_writes_nothing(world: World) -> None:
    async with world.process() as process:
        await process.apply()
    world.publisher.writes.clear()
    world.registry.steps.clear()
    world.registry.add(IMAGE, wat.header_filter(EARTH))  # the tag was moved meanwhile
    async with world.process() as process:
        await process.settle()
        assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    assert not world.publisher.writes
    assert not world.registry.steps


async def test_restart_with_an_empty_cache_fetches_exactly_the_record(
    world: World, tmp_path: Path
) -> None:
    async with world.process() as process:
        await process.apply()
    world.publisher.writes.clear()
    world.registry.steps.clear()
    world.registry.add(IMAGE, wat.header_filter(EARTH))
    world.directory = tmp_path / "another"
    async with world.process() as process:
        assert process.reconciler.settled(KEY)
        await process.settle()
        assert sha256_of(wat.header_filter(WORLD)) in process.store
    assert world.registry.count("resolve") == 0
    assert not world.publisher.writes


async def test_restart_without_status_keeps_the_module(world: World) -> None:
    async with world.process() as process:
        await process.apply()
    del world.objects.documents[KEY]["status"]
    world.registry.add(IMAGE, wat.header_filter(EARTH))
    async with world.process() as process:
        await process.settle()
    assert world.live == sha(WORLD)
    assert world.status["phase"] == "Synced"


async def test_changed_source_rolls_out(world: World, process: Process) -> None:
    await process.apply()
    await process.apply(image=OTHER)
    assert world.live == sha(EARTH)
    assert [entry["sha256"] for entry in world.status["history"]] == [sha(EARTH), sha(WORLD)]
    assert world.announced[-1][2].startswith(f"sha256:{sha(WORLD)[:12]} → sha256:{sha(EARTH)[:12]}")


async def test_going_back_needs_no_registry(world: World, process: Process) -> None:
    await process.apply()
    await process.apply(image=OTHER)
    world.registry.failures["resolve"] = world.registry.failures["pin"] = DOWN
    await process.apply()
    assert (world.live, world.status["phase"]) == (sha(WORLD), "Synced")


async def test_going_back_to_a_module_that_is_gone_from_the_cache_fetches_its_record(
    world: World, process: Process
) -> None:
    await process.apply()
    await process.apply(image=OTHER)
    process.store.path(sha256_of(wat.header_filter(WORLD))).unlink()
    assert await process.store.open(sha256_of(wat.header_filter(WORLD))) is None
    world.registry.steps.clear()
    await process.apply()
    assert world.live == sha(WORLD)
    assert world.registry.count("resolve") == 0


FAILURES: dict[str, dict[str, Any]] = {
    "missing image": {"image": "registry.example/team/filter:gone"},
    "not wasm": {"image": "registry.example/team/filter:bad"},
    "another digest": {"sha256": digest("0")},
    "missing secret": {"image": OTHER, "spec": {"secret": "gone"}},
    "invalid spec": {"applyPorts": [0]},
    "unknown field": {"port": 80},
}


@pytest.mark.parametrize("case", FAILURES)
async def test_failure_never_touches_what_works(world: World, process: Process, case: str) -> None:
    world.registry.add("registry.example/team/filter:bad", b"not wasm")
    await process.apply()
    before = dict(world.publisher.envoyfilters)
    world.publisher.writes.clear()
    await process.apply(**FAILURES[case])
    assert world.publisher.envoyfilters == before
    assert set(kinds(world)) == {"status"}
    assert world.status["phase"] == "Degraded"
    assert (
        f"the module from before (sha256:{sha(WORLD)[:12]}) is still in place"
        in world.status["message"]
    )
    assert world.status["observedGeneration"] == 2
    assert world.condition("Published") == ("True", "Published")
    assert world.condition("Ready")[0] == "False"
    assert world.announced[-1][:2] == ("Warning", "Degraded")
    assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    await process.apply(image=OTHER)
    assert (world.live, world.status["phase"]) == (sha(EARTH), "Synced")


@pytest.mark.parametrize("case", FAILURES)
async def test_failure_with_nothing_published_publishes_nothing(
    world: World, process: Process, case: str
) -> None:
    world.registry.add("registry.example/team/filter:bad", b"not wasm")
    await process.apply(**FAILURES[case])
    assert not world.publisher.envoyfilters
    assert world.status["phase"] == "Failed"
    assert world.condition("Published") == ("False", "NotPublished")


async def test_registry_that_is_down_is_tried_again_by_itself(
    world: World, process: Process
) -> None:
    world.registry.failures["resolve"] = DOWN
    world.objects.apply(document())
    await process.until("Failed")
    assert world.condition("Fetched") == ("False", "RegistryUnavailable")
    world.registry.failures.clear()
    await process.until("Synced")
    assert world.live == sha(WORLD)


async def test_status_is_not_written_again_while_the_failure_is_the_same(
    world: World, process: Process
) -> None:
    world.registry.failures["resolve"] = DOWN
    world.objects.apply(document())
    await process.until("Failed")
    async with asyncio.timeout(10):
        while world.registry.count("resolve") < 5:
            await asyncio.sleep(0.001)
    assert kinds(world) == ["status"]
    assert len(world.announced) == 1


async def test_fetching_is_shown_after_a_moment_only(world: World, process: Process) -> None:
    gate = world.registry.gates["resolve"] = asyncio.Event()
    world.objects.apply(document())
    begin = asyncio.get_running_loop().time()
    await process.until("Fetching")
    assert asyncio.get_running_loop().time() - begin >= module.FETCHING_SHOWN_AFTER - 0.05
    assert IMAGE in world.status["message"]
    assert world.condition("Fetched") == ("Unknown", "Fetching")
    gate.set()
    await process.until("Synced")
    assert kinds(world) == ["status", "envoyfilter", "status"]


async def test_fetching_of_a_change_replaces_what_failed_before(
    world: World, process: Process
) -> None:
    await process.apply(image="registry.example/team/filter:gone")
    assert world.status["phase"] == "Failed"
    world.registry.gates["resolve"] = asyncio.Event()
    world.objects.apply(document(image=OTHER))
    await process.until("Fetching")
    world.registry.gates["resolve"].set()
    await process.until("Synced")


async def test_retry_that_takes_long_keeps_telling_what_failed(
    world: World, process: Process
) -> None:
    world.registry.failures["resolve"] = DOWN
    world.objects.apply(document())
    await process.until("Failed")
    world.registry.gates["resolve"] = asyncio.Event()
    async with asyncio.timeout(10):
        while not process.jobs.is_running(KEY):
            await asyncio.sleep(0.001)
    await asyncio.sleep(module.FETCHING_SHOWN_AFTER + 0.1)
    assert world.status["phase"] == "Failed"
    assert "refused" in world.status["message"]


async def test_refresh_annotation_resolves_afresh_once(world: World, process: Process) -> None:
    await process.apply()
    world.registry.add(IMAGE, wat.header_filter(EARTH))
    await process.apply()
    assert world.live == sha(WORLD)
    for _ in range(2):
        await process.apply(metadata={"annotations": {"wasm.tcm.io/refresh": "now"}})
        assert world.live == sha(EARTH)
    assert world.status["refresh"] == "now"
    assert world.registry.count("resolve") == 2


async def test_refresh_that_fails_stays_wanted(world: World, process: Process) -> None:
    await process.apply()
    world.registry.add(IMAGE, wat.header_filter(EARTH))
    world.registry.failures["resolve"] = DOWN
    world.objects.apply(document(metadata={"annotations": {"wasm.tcm.io/refresh": "now"}}))
    await process.until("Degraded")
    assert world.live == sha(WORLD)
    world.registry.failures.clear()
    await process.until("Synced")
    assert world.live == sha(EARTH)


async def test_always_asks_at_a_change_and_not_at_a_restart(world: World) -> None:
    async with world.process() as process:
        await process.apply(pullPolicy="Always")
        world.registry.add(IMAGE, wat.header_filter(EARTH))
    async with world.process() as process:
        await process.settle()
        assert world.live == sha(WORLD)
        await process.apply(pullPolicy="Always", rootID="changed")
        assert world.live == sha(EARTH)


async def test_always_with_a_broken_secret_does_not_pretend_to_have_asked(
    world: World, process: Process
) -> None:
    world.secrets.login("default", "pull", "a:b", host="registry.example")
    await process.apply(pullPolicy="Always")
    await process.apply(pullPolicy="Always", spec={"secret": "pull"})
    await process.settle()
    assert world.status["phase"] == "Degraded"
    assert world.condition("Fetched") == ("False", "SecretInvalid")


async def test_published_module_that_is_lost_is_said_and_changes_nothing(
    world: World, tmp_path: Path
) -> None:
    async with world.process() as process:
        await process.apply()
    before = dict(world.publisher.envoyfilters)
    world.directory = tmp_path / "another"
    world.registry.failures["pin"] = GONE
    world.registry.add(IMAGE, wat.header_filter(EARTH))
    async with world.process() as process:
        await process.until("Degraded")
        assert world.condition("Fetched") == ("False", "PublishedModuleLost")
        assert "wasm.tcm.io/refresh" in world.status["message"]
        assert world.publisher.envoyfilters == before
        assert world.registry.count("resolve") == 1
        await process.apply(metadata={"annotations": {"wasm.tcm.io/refresh": "1"}})
        await process.until("Synced")
        assert world.live == sha(EARTH)


async def test_published_module_that_was_removed_is_fetched_again(
    world: World, process: Process
) -> None:
    await process.apply()
    before = dict(world.publisher.envoyfilters)
    process.store.path(sha256_of(wat.header_filter(WORLD))).unlink()
    assert await process.store.open(sha256_of(wat.header_filter(WORLD))) is None
    await process.settle()
    assert sha256_of(wat.header_filter(WORLD)) in process.store
    assert world.publisher.envoyfilters == before


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "evil.example/team/filter@sha256:" + "1" * 64},
        {"source": "registry:evil.example/team/filter:v1"},
        {"sha256": "0" * 64},
    ],
)
async def test_forged_record_reaches_nothing_and_publishes_nothing(
    world: World, process: Process, fields: dict[str, Any]
) -> None:
    await process.apply()
    genuine = envoyfilters.record_of(world.publisher.envoyfilters[KEY])
    assert genuine is not None
    forged = msgspec.structs.replace(genuine, **fields)
    annotations = world.publisher.envoyfilters[KEY]["metadata"]["annotations"]
    annotations[records.ANNOTATION] = records.dump(forged)
    world.registry.steps.clear()
    begin = asyncio.get_running_loop().time()
    await process.settle()
    await asyncio.sleep(0.05)
    assert not any("evil" in step for step in world.registry.steps)
    elapsed = asyncio.get_running_loop().time() - begin
    assert len(world.registry.steps) <= 2 + elapsed / 0.01, "asks without pause"
    assert world.live in {sha(WORLD), forged.sha256}


async def test_forged_record_is_no_origin_to_fill_a_blob_from(
    world: World, process: Process
) -> None:
    await process.apply()
    genuine = envoyfilters.record_of(world.publisher.envoyfilters[KEY])
    assert genuine is not None
    forged = msgspec.structs.replace(
        genuine, image="evil.example/team/filter@sha256:" + "1" * 64, sha256=digest("e")
    )
    annotations = world.publisher.envoyfilters[KEY]["metadata"]["annotations"]
    annotations[records.ANNOTATION] = records.dump(forged)
    world.objects.problems[KEY] = SpecError("metadata.name", "twice")
    await process.settle()
    del world.objects.problems[KEY]
    world.registry.gates["resolve"] = world.registry.gates["pin"] = asyncio.Event()
    world.objects.apply(document(image="registry.example/team/filter:v9"))
    await process.reconciler.reconcile(KEY)
    assert not process.published.is_known(digest("e")), "its spec names another module"
    assert process.published.is_known(genuine.sha256), "whatever its annotation says"
    assert not any("evil" in step for step in world.registry.steps)


async def test_record_of_another_place_is_no_origin_to_fill_a_blob_from(
    world: World, process: Process
) -> None:
    await process.apply()
    genuine = envoyfilters.record_of(world.publisher.envoyfilters[KEY])
    assert genuine is not None
    forged = msgspec.structs.replace(genuine, image="evil.example/team/filter@sha256:" + "1" * 64)
    annotations = world.publisher.envoyfilters[KEY]["metadata"]["annotations"]
    annotations[records.ANNOTATION] = records.dump(forged)
    world.objects.documents[KEY]["status"].pop("module")
    world.objects.problems[KEY] = SpecError("metadata.name", "twice")
    await process.settle()
    assert process.published.is_known(genuine.sha256)
    with pytest.raises(SourceUnavailable, match="nothing says where"):
        await asyncio.wait_for(process.published.fill(genuine.sha256), 5)
    assert not any("evil" in step for step in world.registry.steps)


async def test_damaged_record_is_put_back_from_the_status(world: World, process: Process) -> None:
    await process.apply()
    as_it_was = copy.deepcopy(world.publisher.envoyfilters[KEY])
    world.registry.steps.clear()
    for damage in ("{", "", records.dump(record(sha256=digest("e")))):
        annotations = world.publisher.envoyfilters[KEY]["metadata"]["annotations"]
        annotations[records.ANNOTATION] = damage
        await process.settle()
        assert world.publisher.envoyfilters[KEY] == as_it_was
        assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    assert world.registry.steps == [], "no registry is needed for it"


async def test_filter_out_of_sight_is_looked_for_before_it_is_called_absent(
    world: World, process: Process
) -> None:
    await process.apply()
    world.publisher.unseen[KEY] = world.publisher.envoyfilters.pop(KEY)
    await process.apply(image="registry.example/team/filter:gone")
    assert world.status["phase"] == "Degraded"
    assert "is still in place" in world.status["message"]
    assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))


async def test_module_that_went_before_it_was_published_is_fetched_again_first(
    world: World, process: Process
) -> None:
    module_digest = sha256_of(wat.header_filter(WORLD))
    world.publisher.refusal = StorageError("no space", reason="StorageFull")
    world.objects.apply(document())
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while not process.queue.num_requeues(KEY):
            await asyncio.sleep(0.001)
    process.store.path(module_digest).unlink()
    assert await process.store.open(module_digest) is None
    world.publisher.refusal = None
    world.registry.gates["fetch"] = asyncio.Event()
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while world.registry.count("fetch") < 2:
            await asyncio.sleep(0.001)
    assert not world.publisher.writes
    world.registry.gates["fetch"].set()
    await process.until("Synced")
    assert module_digest in process.store


async def test_deleted_object_takes_its_filter_along(world: World, process: Process) -> None:
    await process.apply()
    del world.objects.documents[KEY]
    await process.settle()
    assert not world.publisher.envoyfilters
    assert not process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    labels = {"phase": "Synced"}
    assert process.metrics.registry.get_sample_value("autowasm_autowasms", labels) == 0


async def test_deletion_ends_the_fetch(world: World, process: Process) -> None:
    world.registry.gates["resolve"] = asyncio.Event()
    world.objects.apply(document())
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while not world.registry.running:
            await asyncio.sleep(0.001)
        del world.objects.documents[KEY]
        process.queue.add(KEY)
        while world.registry.running:
            await asyncio.sleep(0.001)
    assert not world.publisher.writes


async def test_nothing_is_written_for_an_object_that_is_being_deleted(
    world: World, process: Process
) -> None:
    await process.apply()
    world.publisher.writes.clear()
    await process.apply(image=OTHER, metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})
    assert not world.publisher.writes


async def test_foreign_envoyfilter_is_a_conflict_not_a_failed_fetch(
    world: World, process: Process
) -> None:
    world.publisher.refusal = SpecError(
        "metadata.name", "that one is not ours", reason="EnvoyFilterConflict"
    )
    await process.apply()
    assert world.status["phase"] == "Failed"
    assert world.condition("Fetched")[0] == "True"
    assert world.condition("Published") == ("False", "EnvoyFilterConflict")
    world.publisher.refusal = None
    await process.settle()
    assert world.status["phase"] == "Synced"
    assert world.registry.count("fetch") == 1


async def test_filter_that_somebody_keeps_rewriting_is_told_of(
    world: World, process: Process
) -> None:
    await process.apply()
    world.publisher.refusal = AutoWasmError("something rewrites it", reason="Mutated")
    await process.apply(rootID="changed")
    assert world.status["phase"] == "Degraded"
    assert world.condition("Published") == ("False", "Mutated")


async def test_filter_whose_label_somebody_keeps_taking_off_is_told_of(
    world: World, process: Process
) -> None:
    await process.apply()
    world.publisher.unseen[KEY] = world.publisher.envoyfilters.pop(KEY)
    world.publisher.refusal = AutoWasmError("something rewrites it", reason="Mutated")
    await process.settle()
    assert world.condition("Published") == ("False", "Mutated")
    assert not process.queue.num_requeues(KEY)


async def test_disk_that_is_full_is_left_to_the_queue(world: World, process: Process) -> None:
    world.publisher.refusal = StorageError("no space", reason="StorageFull")
    world.objects.apply(document())
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while not process.queue.num_requeues(KEY):
            await asyncio.sleep(0.001)
    assert not world.publisher.writes
    world.publisher.refusal = None
    await process.until("Synced")


async def test_problem_outside_the_object_keeps_the_filter(world: World, process: Process) -> None:
    await process.apply()
    before = dict(world.publisher.envoyfilters)
    world.objects.problems[KEY] = SpecError("metadata.name", "twice", reason="DuplicateObject")
    await process.settle()
    assert world.publisher.envoyfilters == before
    assert world.status["phase"] == "Degraded"
    assert world.condition("Fetched") == ("Unknown", "DuplicateObject")
    world.objects.problems.clear()
    await process.settle()
    assert world.status["phase"] == "Synced"


async def test_times_stay_while_the_module_does(world: World, process: Process) -> None:
    await process.apply()
    before = world.status
    process.reconciler._now = lambda: "2030-01-01T00:00:00Z"
    await process.apply(rootID="changed")
    assert world.status["observedGeneration"] == 2
    assert world.status["module"]["fetchedAt"] == before["module"]["fetchedAt"]
    times = [condition["lastTransitionTime"] for condition in world.status["conditions"]]
    assert times == ["2026-01-01T00:00:00Z"] * 3


async def test_what_a_poll_found_goes_the_way_of_a_change(world: World, process: Process) -> None:
    await process.apply()
    before = world.live
    world.registry.add(IMAGE, wat.header_filter(EARTH))
    world.polls.record = await process.fetcher.fetch(
        FetchRequest("default", Source(registry=RegistrySource(IMAGE)))
    )
    world.publisher.writes.clear()
    await process.settle()
    assert kinds(world) == ["envoyfilter", "status"]
    assert world.live == sha(EARTH)
    assert world.status["phase"] == "Synced"
    assert world.status["history"][0]["sha256"] == sha(EARTH)
    assert world.polls.told[-1] == world.polls.record
    message = world.announced[-1][2]
    assert message.startswith(f"sha256:{str(before)[:12]} → sha256:{sha(EARTH)[:12]}")


async def test_what_a_poll_found_is_not_used_against_a_pin(world: World, process: Process) -> None:
    await process.apply()
    world.registry.add(IMAGE, wat.header_filter(EARTH))
    world.polls.record = await process.fetcher.fetch(
        FetchRequest("default", Source(registry=RegistrySource(IMAGE)))
    )
    await process.apply(sha256=sha(WORLD))
    assert world.live == sha(WORLD)


async def test_a_refused_poll_degrades_and_leaves_what_is_published(
    world: World, process: Process
) -> None:
    await process.apply()
    world.polls.refused = SourceDenied("no more")
    world.publisher.writes.clear()
    await process.settle()
    await process.settle()
    assert kinds(world) == ["status"], "told once"
    assert world.status["phase"] == "Degraded"
    assert "still in place" in world.status["message"]
    assert world.live == sha(WORLD)
    world.polls.refused = None
    await process.settle()
    assert world.status["phase"] == "Synced"
