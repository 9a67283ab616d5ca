"""A reconciler in memory, and the cluster that it reads and writes: objects, the module source, published documents."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api.record import Record
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.artifacts.fetcher import ArtifactFetcher
from autowasm.artifacts.published import PublishedModules
from autowasm.blobs.pins import Pins
from autowasm.blobs.store import BlobStore
from autowasm.controller.fetchjobs import FetchJobs
from autowasm.controller.reconciler import AutoWasmReconciler, Checks, Modules, StartupGate, Updates
from autowasm.controller.rollout.publisher import StagedPublisher
from autowasm.controller.startcheck import StartCheck
from autowasm.controller.statusreporter import StatusReporter
from autowasm.digest import Sha256Hex
from autowasm.errors import (
    AutoWasmError,
    SourceUnavailable,
)
from autowasm.kube.controller import Controller
from autowasm.kube.leaderelection import AlwaysLeading, Leadership
from autowasm.kube.resources import ObjectKey
from autowasm.kube.workqueue import WorkQueue
from autowasm.limits import FetchLimits
from autowasm.net.pools import Pools
from autowasm.settings import EnvoyFetch, Settings
from autowasm.telemetry.metrics import Metrics
from tests.fakes.autowasms import IMAGE, document
from tests.fakes.modulesource import FakeSource, sha256_of
from tests.fakes.publisher import FakeObjects, FakePublisher
from tests.fakes.pullsecrets import FakeSecrets
from tests.parts import wat

OTHER = "registry.example/team/filter:v2"


KEY = ObjectKey("default", "test")


DOWN = SourceUnavailable("connection refused", reason="RegistryUnavailable")


WORLD, EARTH = "world", "earth"


RecordedEvents = list[tuple[str, str, str]]


def sha(value: str) -> Sha256Hex:
    return sha256_of(wat.header_filter(value))


class ReconciledCluster:
    """The state that outlives a restart of the process: objects, written documents, the cache directory, the registry."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.objects = FakeObjects()
        self.publisher = FakePublisher(self.objects)
        self.registry = FakeSource()
        self.secrets = FakeSecrets()
        self.recorded_events: RecordedEvents = []
        self.polls = FoundByPolls()
        self.service_problem: AutoWasmError | None = None
        self.registry.add(IMAGE, wat.header_filter(WORLD))
        self.registry.add(OTHER, wat.header_filter(EARTH))

    def record_event(self, about: Any, kind: str, reason: str, message: str, /) -> None:
        self.recorded_events.append((kind, reason, message))

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

    def process(
        self, *, metrics: Metrics | None = None, retry_base: float = 0.01
    ) -> AbstractAsyncContextManager["Process"]:
        """One life of the process. `retry_base`: seconds from a failed fetch to the next."""
        return running(Process, self, self.directory, metrics=metrics, retry_base=retry_base)


class FoundByPolls:
    """The result of a poll, set by a test."""

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
        cluster: ReconciledCluster,
        settings: Settings,
        store: BlobStore,
        pools: Pools,
        metrics: Metrics,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.tasks = tasks
        self.cluster = cluster
        self.store = store
        self.metrics = metrics
        self.queue: WorkQueue[ObjectKey] = WorkQueue()
        self.fetcher = fetcher = ArtifactFetcher(
            settings=settings,
            store=store,
            sources={"registry": cluster.registry},
            secrets=cluster.secrets,
            pools=pools,
            metrics=metrics,
            tasks=tasks,
        )
        self.pins = Pins()
        self.published = PublishedModules(fetcher, pins=self.pins)
        self.jobs = FetchJobs(fetcher, limits=settings.fetch, tasks=tasks, on_change=self.queue.add)
        reporter = StatusReporter(
            cluster.publisher, metrics=metrics, record_event=cluster.record_event
        )
        self.reconciler = AutoWasmReconciler(
            objects=cluster.objects,
            publisher=cluster.publisher,
            modules=replace(
                Modules(self.jobs, store, self.published), **self.module_collaborators()
            ),
            reporter=reporter,
            envoy=EnvoyFetch(),
            checks=self.checks(),
            updates=Updates(polls=cluster.polls),
            staged=self.staged_publisher(reporter),
            leadership=self.leadership(),
            startup_gate=self.startup_gate(),
            now=lambda: "2026-01-01T00:00:00Z",
        )
        self.controller = Controller(
            "test", queue=self.queue, reconciler=self.reconciler, workers=1
        )

    def module_collaborators(self) -> dict[str, Any]:
        """More fields of the reconciler's `Modules`."""
        return {}

    def staged_publisher(self, _reporter: StatusReporter) -> StagedPublisher | None:
        """None: as in standalone mode."""
        return None

    def start_check(self) -> StartCheck | None:
        """Whether modules are judged."""
        return None

    def checks(self) -> Checks:
        """What keeps a stored module from being published."""
        self.check = check = self.start_check()
        return Checks(
            spec=check.check if check is not None else lambda _: None,
            start=check,
            service=lambda: self.cluster.service_problem,
        )

    def leadership(self) -> Leadership:
        """Whether the reconciler leads."""
        return AlwaysLeading()

    def startup_gate(self) -> StartupGate:
        """The gate that the reconciler opens."""
        return StartupGate()

    async def apply(self, **fields: Any) -> None:
        """Apply, and wait until nothing is left to do."""
        self.cluster.objects.apply(document(**fields))
        await self.settle()

    async def settle(self) -> None:
        self.queue.add(KEY)
        async with asyncio.timeout(10):
            while self.jobs.is_running(KEY) or len(self.queue) or self.queue.running_times():
                await asyncio.sleep(0.001)

    async def until(self, phase: str) -> None:
        self.queue.add(KEY)
        async with asyncio.timeout(10):
            while self.cluster.status.get("phase") != phase:
                await asyncio.sleep(0.001)


P = TypeVar("P", bound=Process)


@asynccontextmanager
async def running(
    kind: type[P],
    cluster: ReconciledCluster,
    directory: Path,
    *,
    metrics: Metrics | None = None,
    retry_base: float = 0.01,
) -> AsyncIterator[P]:
    """A process with its cache in `directory`."""
    metrics = metrics or Metrics()
    settings = Settings(
        cache_dir=directory,
        fetch=FetchLimits(retry_base=retry_base, not_found_first=retry_base, breaker_failures=1000),
    )
    async with AsyncExitStack() as stack:
        pools = stack.enter_context(Pools())
        store = await stack.enter_async_context(BlobStore(directory, pools=pools, metrics=metrics))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        process = kind(cluster, settings, store, pools, metrics, tasks)
        worker = tasks.create_task(process.controller.run())
        yield process
        worker.cancel()
        for key in list(process.jobs._jobs):
            process.jobs.forget(key)


def kinds(cluster: ReconciledCluster) -> list[str]:
    return [kind for kind, _ in cluster.publisher.writes]
