"""Manager: reads all objects, then reconciles them and their changes, while leading or following.

It also builds the trackers of Pods and the resender, in cluster mode only: standalone mode has no Pods. Decisions about an
object are in `controller/reconciler.py`. Invariants: nothing is reconciled and no replica leads before all objects were read.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

import structlog

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api.status import utc_now
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.controller.fetchjobs import FetchJobs
from autowasm.controller.interfaces import Publisher
from autowasm.controller.pods.downloadtracker import DownloadTracker, PeerQuery
from autowasm.controller.pods.resend import Outage, Resender
from autowasm.controller.pods.runtracker import RunTracker
from autowasm.controller.pods.statsreader import StatsReader
from autowasm.controller.polling import Poller
from autowasm.controller.pullauthorization import PullAuthorizer
from autowasm.controller.reconciler import AutoWasmReconciler, Checks, Modules, StartupGate, Updates
from autowasm.controller.replication import Prefetcher, ReplicaWaiter
from autowasm.controller.rollout.driver import RolloutDriver
from autowasm.controller.rollout.publisher import StagedPublisher
from autowasm.controller.sourcepolicy import PolicyFile, check_mesh_scope, warn_of_refused
from autowasm.controller.startcheck import StartCheck
from autowasm.controller.statusreporter import StatusReporter
from autowasm.kube.controller import Controller
from autowasm.kube.resources import ObjectKey
from autowasm.kube.workqueue import WorkQueue
from autowasm.performance.eventloop import start_up_complete
from autowasm.preflight.cache import CodeCache
from autowasm.preflight.processes import ForkServer
from autowasm.preflight.runner import Preflight
from autowasm.runtime.context import SharedResources
from autowasm.runtime.datapath import DataPath
from autowasm.runtime.modes import ChosenMode
from autowasm.server.admin import Health
from autowasm.server.downloadlog import AllReplicas
from autowasm.settings import Cluster, ResendSettings

_log = structlog.get_logger(__name__)

_WORKERS_END: Final = 2.0
"""Seconds that a stop waits for reconciles, so that their writes get an Event. Longer reconciles are cancelled."""


def make_download_tracker(
    shared: SharedResources, chosen: ChosenMode, *, peer_query: PeerQuery
) -> DownloadTracker | None:
    """The tracker that keeps `status.pods` up to date with downloads; None: standalone."""
    cluster = chosen.cluster
    if cluster is None:
        return None
    downloads = DownloadTracker(
        cluster, peer_query, metrics=shared.metrics, settings=shared.settings.proof
    )
    cluster.use_load_report(downloads.report)
    return downloads


def make_run_tracker(
    shared: SharedResources,
    chosen: ChosenMode,
    *,
    downloads: DownloadTracker | None,
    reader: StatsReader | None,
) -> RunTracker | None:
    """The tracker that keeps `status.pods.running` up to date with running modules; None: standalone."""
    cluster = chosen.cluster
    if cluster is None or downloads is None or reader is None:
        return None
    runs = RunTracker(
        cluster,
        reader,
        downloaded=downloads.downloaded_at,
        record_event=chosen.record_event,
        metrics=shared.metrics,
        settings=shared.settings.run,
    )
    cluster.use_running_report(
        runs.report, pods_changed=runs.pods_changed, published_changed=runs.published_changed
    )
    return runs


def make_resender(
    shared: SharedResources,
    chosen: ChosenMode,
    *,
    peer_query: PeerQuery,
    requeue: Callable[[ObjectKey], None],
) -> Resender | None:
    """The resender, which makes sidecars fetch a module again; None: standalone."""
    cluster, leadership = chosen.cluster, chosen.leadership
    if cluster is None:
        return None
    return Resender(
        cluster,
        peer_query,
        is_stored=shared.store.__contains__,
        requeue=requeue,
        record_event=chosen.record_event,
        metrics=shared.metrics,
        settings=shared.settings.resend,
        outage=_outage(chosen, shared.settings.resend),
        others_led=lambda: leadership.others_led,
    )


async def open_stats_reader(shared: SharedResources, chosen: ChosenMode) -> StatsReader | None:
    """The reader of sidecars' statistics, which the exit stack closes; None: standalone. There is one, because its rate limit is for all."""
    if chosen.cluster is None:
        return None
    reader = StatsReader(
        is_shared=chosen.cluster.is_shared,
        limits=shared.settings.stats,
        metrics=shared.metrics,
    )
    return await shared.stack.enter_async_context(reader)


def make_start_check(
    shared: SharedResources, *, policy: PolicyFile, requeue: Callable[[ObjectKey], None]
) -> StartCheck | None:
    """The check that runs modules before they are published, with its fork server; None: it is disabled everywhere."""
    settings, store = shared.settings, shared.store
    if not settings.runs_preflight:
        return None
    preflight = Preflight(
        server=ForkServer(settings.preflight_limits, metrics=shared.metrics),
        cache=CodeCache(
            settings.cache_dir / "compiled",
            budget=settings.code_budget,
            pools=shared.pools,
            metrics=shared.metrics,
        ),
        limits=settings.preflight_limits,
        pools=shared.pools,
        metrics=shared.metrics,
        tasks=shared.tasks,
        envoy=settings.oldest_envoy,
        extra_imports=settings.allow_imports,
    )
    shared.tasks.create_task(preflight.run(), name="pre-flight")
    return StartCheck(
        preflight,
        operators=lambda namespace: policy.preflight(namespace, settings),
        module_path=store.path,
        tasks=shared.tasks,
        on_change=requeue,
    )


def _outage(chosen: ChosenMode, settings: ResendSettings) -> Outage | None:
    now = time.time()
    if chosen.last_alive is None or now - chosen.last_alive <= settings.outage:
        return None
    return Outage(chosen.last_alive, now)


class Manager:
    """The parts that act on objects. Runs once."""

    def __init__(
        self,
        shared: SharedResources,
        chosen: ChosenMode,
        data: DataPath,
        *,
        policy: PolicyFile,
        queue: WorkQueue[ObjectKey],
        health: Health,
        reader: StatsReader | None = None,
    ) -> None:
        """`reader` None: standalone."""
        self._reader = reader
        self._shared = shared
        self._chosen = chosen
        self._data = data
        self._policy = policy
        self._queue = queue
        self._health = health
        self._election: asyncio.Task[None] | None = None
        self._working: asyncio.Task[None] | None = None
        fetch = shared.settings.fetch
        peer_query = PeerQuery(AllReplicas(data.download_log, data.peers))
        self._resender = make_resender(shared, chosen, peer_query=peer_query, requeue=queue.add)
        self._downloads = make_download_tracker(shared, chosen, peer_query=peer_query)
        self._runs = make_run_tracker(shared, chosen, downloads=self._downloads, reader=reader)
        self._jobs = FetchJobs(data.fetcher, limits=fetch, tasks=shared.tasks, on_change=queue.add)
        self._pull_authorizer = PullAuthorizer(data.fetcher, limits=fetch, on_change=queue.add)
        self._polling = Poller(
            data.fetcher,
            settings=shared.settings.poll,
            metrics=shared.metrics,
            on_change=queue.add,
        )
        self._start_check = make_start_check(shared, policy=policy, requeue=queue.add)
        self._startup_gate = StartupGate(self._report_start_up)
        self._reconciler = self._make_reconciler()

    def _make_reconciler(self) -> AutoWasmReconciler:
        shared, chosen = self._shared, self._chosen
        publisher = chosen.mode.publisher
        reporter = StatusReporter(
            publisher,
            metrics=shared.metrics,
            pods=chosen.cluster,
            record_event=chosen.record_event,
        )
        return AutoWasmReconciler(
            objects=chosen.mode,
            publisher=publisher,
            modules=self._modules(publisher),
            reporter=reporter,
            envoy=shared.settings.envoy,
            checks=Checks(
                spec=partial(
                    _check,
                    cluster=shared.settings.cluster,
                    policy=self._policy,
                    start=self._start_check,
                ),
                with_rollout=self._policy.with_rollout,
                start=self._start_check,
                pull_authorizer=self._pull_authorizer,
                service=chosen.service.problem if chosen.service is not None else lambda: None,
            ),
            updates=Updates(
                polls=self._polling,
                resend=self._resend,
            ),
            staged=self._make_staged_publisher(reporter),
            leadership=chosen.leadership,
            startup_gate=self._startup_gate,
        )

    def _resend(self, key: ObjectKey, live: Mapping[str, Any] | None, sha256: str) -> int:
        return self._resender.wanted(key, live, sha256) if self._resender is not None else 0

    def _make_staged_publisher(self, reporter: StatusReporter) -> StagedPublisher | None:
        """None: standalone."""
        shared, chosen = self._shared, self._chosen
        if chosen.cluster is None or self._reader is None:
            return None
        driver = RolloutDriver(
            chosen.cluster,
            self._reader,
            envoy=shared.settings.envoy,
            metrics=shared.metrics,
            tasks=shared.tasks,
            on_change=self._queue.add,
        )
        return StagedPublisher(
            driver,
            objects=chosen.mode,
            publisher=chosen.mode.publisher,
            reporter=reporter,
            polls=self._polling,
            resend=self._resend,
            now=utc_now,
            record_event=chosen.record_event,
        )

    def _modules(self, publisher: Publisher) -> Modules:
        shared, data = self._shared, self._data
        tasks, on_change = shared.tasks, self._queue.add
        modules = partial(
            Modules,
            jobs=self._jobs,
            store=shared.store,
            published=data.published,
            admit=data.retention.admit,
        )
        if data.peers is None:
            return modules()
        return modules(
            prefetcher=Prefetcher(
                publisher=publisher,
                store=shared.store,
                copy=data.peers.copy,
                limits=shared.settings.fetch,
                tasks=tasks,
                on_change=on_change,
            ),
            replica_waiter=ReplicaWaiter(data.peers, tasks=tasks, on_change=on_change),
        )

    def _report_start_up(self, ok: bool, why: str) -> None:
        self._health.set("start-up", ok, why)
        if ok:
            start_up_complete(asyncio.get_running_loop())
            _log.info("ready", why=why or "all published modules are stored")

    async def run(self) -> None:
        """Run forever."""
        shared, mode, queue = self._shared, self._chosen.mode, self._queue
        settings, tasks = shared.settings, shared.tasks
        tasks.create_task(self._startup_gate.run(settings.startup_deadline), name="start-up gate")
        if self._data.peers is not None:
            await self._data.peers.settled()
        await mode.start(tasks)
        if self._chosen.service is not None:
            await self._chosen.service.check()  # before anything is published
        keys = mode.keys()
        self._startup_gate.expect(keys)
        self._data.retention.synced(str(key) for key in keys)
        for key in sorted(keys):
            queue.add(key)
        controller = Controller(
            "autowasm",
            queue=queue,
            reconciler=self._reconciler,
            workers=settings.workers,
            metrics=shared.metrics.controller,
        )
        self._start(controller)
        self._warn_of_refused(keys)
        await mode.run(changed=queue.add, secret_changed=self._secret_changed)

    def _warn_of_refused(self, keys: Iterable[ObjectKey]) -> None:
        shared, publisher = self._shared, self._chosen.mode.publisher
        published = (publisher.published(key) for key in keys)
        records = [envoyfilters.record_of(one) for one in published if one is not None]
        checking = warn_of_refused(
            [record for record in records if record is not None],
            outgoing=shared.settings.outgoing,
            names=shared.pools.names,
            timeout=shared.settings.limits.dns_timeout,
        )
        shared.tasks.create_task(checking, name="addresses of published modules")

    def _start(self, controller: Controller[ObjectKey]) -> None:
        tasks, chosen = self._shared.tasks, self._chosen
        self._shared.metrics.leader.set(chosen.leadership.is_leading)
        self._election = tasks.create_task(chosen.leadership.run(), name="election")
        tasks.create_task(self._pull_authorizer.run(), name="pull authorization")
        tasks.create_task(self._polling.run(chosen.leadership), name="polling")
        tasks.create_task(self._policy.run(self._policy_changed), name="policy file")
        self._working = tasks.create_task(controller.run(), name="controller")
        if chosen.service is not None:
            tasks.create_task(chosen.service.run(self._requeue_all), name="service")
        if self._resender is not None:
            tasks.create_task(self._resender.run(chosen.leadership), name="resend")
        if self._downloads is not None:
            tasks.create_task(self._downloads.run(chosen.leadership), name="load report")
        if self._runs is not None:
            tasks.create_task(self._runs.run(chosen.leadership), name="run report")

    def _secret_changed(self, key: ObjectKey) -> None:
        self._jobs.retry_now(key)
        self._pull_authorizer.recheck(key)
        self._queue.add(key)

    def _policy_changed(self) -> None:
        for key in self._chosen.mode.keys():  # noqa: SIM118  # not a mapping
            self._jobs.retry_now(key)
            self._queue.add(key)

    def leading_changed(self, leading: bool) -> None:
        """This replica begins or stops leading."""
        if not leading:
            self._jobs.drop_resolving()
            self._chosen.mode.publisher.resigned()
            if self._chosen.recorder is not None:
                self._chosen.recorder.hurry()  # before a follower's work can delay them
        self._requeue_all()

    def _requeue_all(self) -> None:
        for key in sorted(self._chosen.mode.keys()):
            self._queue.add(key)

    async def resign(self) -> None:
        """Wait for running reconciles, then stop leading and release the Lease; return when nothing is reconciled any more.

        The queue must be shut down before.
        """
        if self._working is not None:
            await asyncio.wait([self._working], timeout=_WORKERS_END)
        for task in (self._election, self._working):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])

    async def flush(self) -> None:
        """Write the queued Events, within a deadline."""
        if self._chosen.recorder is not None:
            await self._chosen.recorder.flush(timeout=self._shared.settings.kube.events_flush)


def _check(
    autowasm: AutoWasm,
    *,
    cluster: Cluster | None,
    policy: PolicyFile,
    start: StartCheck | None,
) -> None:
    """The checks that depend on the operator's settings. Raises SpecError."""
    if cluster is not None:
        check_mesh_scope(autowasm, cluster=cluster)
    policy.check(autowasm)
    if start is not None:
        start.check(autowasm)
