"""The composition root: builds everything, starts it in order, stops it in order (design section 5, "Stop").

Not a place for decisions about modules or objects. Invariants: one TaskGroup owns every task; the blob port answers
before the first EnvoyFilter is written, and is the last thing to close.
"""

import asyncio
import contextlib
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING

import prometheus_client
import structlog

from autowasm.api.v1alpha1 import AutoWasm
from autowasm.artifacts.fetcher import ArtifactFetcher
from autowasm.artifacts.image import ImageSource
from autowasm.artifacts.object import HttpObjectSource
from autowasm.artifacts.peerlist import PeerList
from autowasm.artifacts.peers import Peers
from autowasm.artifacts.published import PublishedModules
from autowasm.artifacts.pullsecrets import ServiceAccounts
from autowasm.blobs.pins import Pins
from autowasm.blobs.retention import Retention
from autowasm.blobs.store import BlobStore
from autowasm.controller.copying import PublishedCopies
from autowasm.controller.gathering import Gathering
from autowasm.controller.healing import Healing, Mesh, Outage
from autowasm.controller.interfaces import (
    Announce,
    NoReplicas,
    Replicas,
    announce_nothing,
)
from autowasm.controller.jobs import FetchJobs
from autowasm.controller.loading import Loading, Workloads
from autowasm.controller.mode import Mode
from autowasm.controller.permits import Permits
from autowasm.controller.policyfile import PolicyFile
from autowasm.controller.polling import Polling, Polls
from autowasm.controller.reach import check_reach
from autowasm.controller.reconciler import AutoWasmReconciler
from autowasm.controller.spreading import Spreading
from autowasm.controller.startup import StartupGate
from autowasm.errors import AutoWasmError, UsageError
from autowasm.kube.controller import Controller
from autowasm.kube.leadership import AlwaysLeading, Leadership
from autowasm.kube.resources import ObjectKey
from autowasm.kube.workqueue import WorkQueue
from autowasm.limits import LoopLimits
from autowasm.net.policy import AddressPolicy
from autowasm.net.pools import Pools
from autowasm.net.session import ObjectSession
from autowasm.registry.client import RegistryClient
from autowasm.server.app import AdminServer, BlobServer
from autowasm.server.probes import Health
from autowasm.server.sightings import AllReplicas, Sightings
from autowasm.settings import Cluster, Settings
from autowasm.standalone.directory import ConfigDirectory
from autowasm.standalone.mode import StandaloneMode
from autowasm.standalone.publisher import StandalonePublisher
from autowasm.telemetry import garbage, looplag
from autowasm.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from autowasm.kube.leaderelection import LeaderElector

_log = structlog.get_logger(__name__)


class _Stopped(Exception):  # ends the TaskGroup after an orderly stop
    pass


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, then stop in order. A second signal cuts the drain delay short.

    Raises UsageError and StorageError for what makes a start impossible.
    """
    metrics = Metrics()
    prometheus_client.ProcessCollector(registry=metrics.registry)
    prometheus_client.GCCollector(registry=metrics.registry)
    garbage.tame()
    sys.setswitchinterval(LoopLimits().switch)
    metrics.loop.turns = looplag.turns_of(asyncio.get_running_loop())
    with Pools(transfers=settings.fetch.total) as pools, _signals() as stop:
        async with AsyncExitStack() as stack:
            store = BlobStore(
                settings.cache_dir, pools=pools, metrics=metrics, limits=settings.store
            )
            await stack.enter_async_context(store)
            try:
                async with asyncio.TaskGroup() as tasks:
                    process = _Process(settings, pools, metrics, store, tasks)
                    await process.start(stack)
                    await stop.wait()
                    await process.stop(stop)
                    raise _Stopped
            except BaseExceptionGroup as group:
                _raise_unless_stopped(group)
    _log.info("stopped")


def _raise_unless_stopped(group: BaseExceptionGroup) -> None:
    """Let an orderly stop pass, and give `main` a single AutoWasmError as itself rather than as a group."""
    _, rest = group.split(_Stopped)
    if rest is None:
        return
    errors = rest.exceptions
    if len(errors) == 1 and isinstance(errors[0], AutoWasmError):
        raise errors[0]
    raise rest


@contextlib.contextmanager
def _signals() -> Iterator["_StopSignals"]:
    loop = asyncio.get_running_loop()
    stop = _StopSignals()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.signalled)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class _StopSignals:
    """The first signal asks to stop, the second to hurry."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._again = asyncio.Event()

    def signalled(self) -> None:
        (self._again if self._asked.is_set() else self._asked).set()

    async def wait(self) -> None:
        await self._asked.wait()

    async def delay(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._again.wait()


def _check(autowasm: AutoWasm, *, cluster: Cluster | None, policy: PolicyFile) -> None:
    """What depends on the operator's settings. Raises SpecError."""
    if cluster is not None:
        check_reach(autowasm, cluster=cluster)
    policy.check(autowasm)


def _service_accounts(mode: Mode, cluster: Cluster | None) -> ServiceAccounts | None:
    wanted = cluster is not None and cluster.service_account_pull_secrets
    return mode if wanted and isinstance(mode, ServiceAccounts) else None


class _Process:
    """What runs, with its joins."""

    def __init__(
        self,
        settings: Settings,
        pools: Pools,
        metrics: Metrics,
        store: BlobStore,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._settings = settings
        self._tasks = tasks
        self._pools = pools
        self._metrics = metrics
        self._store = store
        # Fair over namespaces: one tenant's thousand failing objects delay nobody else's (D11).
        self._queue: WorkQueue[ObjectKey] = WorkQueue(
            metrics=metrics.workqueue, fairness=lambda key: key.namespace
        )
        metrics.workqueue.watch(self._queue)
        self._health = Health()
        self._announce: Announce = announce_nothing
        self._leadership: Leadership = AlwaysLeading()
        self._elector: LeaderElector | None = None
        self._election: asyncio.Task[None] | None = None
        self._replicas: Replicas = NoReplicas()
        self._instance = secrets.token_hex(8)
        self._sightings = Sightings(settings.sightings, instance=self._instance)
        self._last_alive: float | None = None
        self._healing: Healing | None = None
        self._peers: Peers | None = None
        self._leading_changed: Callable[[bool], None] = lambda _: None

    async def start(self, stack: AsyncExitStack) -> None:
        """The ports first: what is stored is served whatever is wrong with the rest."""
        settings, metrics = self._settings, self._metrics
        self._policy = PolicyFile(settings.policy_file, limits=settings.limits, pools=self._pools)
        await self._policy.load()
        mode = await self._make_mode(stack)
        peers = await self._make_peers(stack)
        fetcher = self._make_fetcher(mode, peers, stack)
        pins = Pins()
        self._retention = Retention(
            self._store, pins, settings=settings, pools=self._pools, metrics=metrics
        )
        await stack.enter_async_context(self._retention)
        published = PublishedModules(fetcher, pins=pins, peers=peers)
        self._blob_server = BlobServer(
            self._store,
            published,
            instance=self._instance,
            sightings=self._sightings,
            limits=settings.serve,
            metrics=metrics,
        )
        self._admin_server = AdminServer(self._health, metrics=metrics)
        self._health.set("start-up", False, "starting")
        port = await self._blob_server.start(settings.listen)
        stack.push_async_callback(self._blob_server.stop, 0.0)
        admin_port = await self._admin_server.start(settings.admin_listen)
        stack.push_async_callback(self._admin_server.stop, 0.0)
        self._tasks.create_task(self._control(mode, fetcher, published), name="control")
        self._tasks.create_task(self._store.verify_all(), name="verify stored blobs")
        self._tasks.create_task(self._retention.run(), name="blob retention")
        _log.info(
            "started",
            version=metadata.version("autowasm"),
            blob_port=port,
            admin_port=admin_port,
            cache_dir=str(settings.cache_dir),
            blobs=len(self._store.digests()),
        )

    async def _make_mode(self, stack: AsyncExitStack) -> Mode:
        settings, pools = self._settings, self._pools
        if settings.cluster is not None:
            return await self._make_cluster_mode(settings.cluster, stack)
        if settings.standalone is None:
            raise UsageError("nothing to run: no mode was chosen")
        standalone = settings.standalone
        directory = ConfigDirectory(standalone.config_dir, limits=settings.limits, pools=pools)
        publisher = StandalonePublisher(
            standalone.envoy_dir, template=standalone.listener_template, pools=pools
        )
        mode = StandaloneMode(directory, publisher)
        await mode.check()
        return mode

    async def _make_cluster_mode(self, cluster: Cluster, stack: AsyncExitStack) -> Mode:
        from autowasm.controller.assembly import connect  # noqa: PLC0415  # standalone needs none of it

        connected = await connect(
            cluster,
            namespace=self._settings.envoy.service_namespace,
            pools=self._pools,
            metrics=self._metrics,
            tasks=self._tasks,
            stack=stack,
            on_leading=self._on_leading,
            busy=lambda: len(self._queue) > 0,
        )
        self._announce = connected.announce
        self._elector = connected.elector
        self._last_alive = connected.last_alive
        if connected.elector is not None:
            self._leadership = connected.elector
        return connected.mode

    def _on_leading(self, leading: bool) -> None:
        self._metrics.leader.set(leading)
        self._leading_changed(leading)

    async def _make_peers(self, stack: AsyncExitStack) -> Peers | None:
        settings = self._settings
        if not (settings.peers.urls or settings.peers.host):
            return None
        known = PeerList(settings.peers, pools=self._pools)
        peers = Peers(
            known,
            instance=self._instance,
            store=self._store,
            settings=settings.peers,
            module_bytes=settings.limits.module_bytes,
            pools=self._pools,
            metrics=self._metrics,
            tasks=self._tasks,
        )
        await stack.enter_async_context(peers)
        self._tasks.create_task(known.run(), name="peers")
        self._replicas = self._peers = peers
        return peers

    def _make_fetcher(
        self, mode: Mode, peers: Peers | None, stack: AsyncExitStack
    ) -> ArtifactFetcher:
        settings, pools = self._settings, self._pools
        policy = AddressPolicy(allow=settings.outgoing.allow_cidr, deny=settings.outgoing.deny_cidr)
        registry = RegistryClient(
            outgoing=settings.outgoing,
            limits=settings.limits,
            pools=pools,
            policy=policy,
            on_request=self._metrics.requests.sent,
        )
        stack.push_async_callback(registry.close)
        session = ObjectSession(
            outgoing=settings.outgoing,
            limits=settings.limits,
            pools=pools,
            policy=policy,
            on_request=self._metrics.requests.sent,
        )
        stack.push_async_callback(session.close)
        return ArtifactFetcher(
            settings=settings,
            store=self._store,
            sources={
                "registry": ImageSource(registry, limits=settings.limits, pools=pools),
                "object": HttpObjectSource(session, limits=settings.limits, pools=pools),
            },
            secrets=mode,
            pools=pools,
            metrics=self._metrics,
            tasks=self._tasks,
            service_accounts=_service_accounts(mode, settings.cluster),
            object_hosts=self._policy.object_hosts,
            peers=peers,
        )

    async def _control(
        self, mode: Mode, fetcher: ArtifactFetcher, published: PublishedModules
    ) -> None:
        """Read what is there, then reconcile it and whatever changes."""
        settings, queue = self._settings, self._queue
        gathering = Gathering(AllReplicas(self._sightings, self._peers))
        self._healing = self._make_healing(mode, gathering)
        loading = self._make_loading(mode, gathering)
        jobs = FetchJobs(fetcher, limits=settings.fetch, tasks=self._tasks, on_change=queue.add)
        self._permits = Permits(fetcher, limits=settings.fetch, on_change=queue.add)
        polling = Polling(
            fetcher, settings=settings.poll, metrics=self._metrics, on_change=queue.add
        )
        reconciler = self._make_reconciler(mode, jobs, published, polling)
        copies = PublishedCopies(
            reconciler,
            publisher=mode.publisher,
            store=self._store,
            copy=self._peers.copy if self._peers is not None else None,
            limits=settings.fetch,
            tasks=self._tasks,
            on_change=queue.add,
        )
        gate = StartupGate(
            copies,
            settled=lambda key: reconciler.settled(key) and copies.settled(key),
            report=lambda ok, why: self._health.set("start-up", ok, why),
        )
        self._tasks.create_task(gate.run(settings.startup_deadline), name="start-up gate")
        if self._peers is not None:
            await self._peers.settled()
        await mode.start(self._tasks)
        keys = mode.keys()
        gate.expect(keys)
        self._retention.synced(str(key) for key in keys)
        for key in sorted(keys):
            queue.add(key)
        controller = Controller(
            "autowasm",
            queue=queue,
            reconciler=gate,
            workers=settings.workers,
            metrics=self._metrics.controller,
        )

        def secret_changed(key: ObjectKey) -> None:
            jobs.retry_now(key)
            self._permits.recheck(key)
            queue.add(key)

        def policy_changed() -> None:
            for key in mode.keys():  # noqa: SIM118  # not a mapping
                jobs.retry_now(key)
                queue.add(key)

        def leading_changed(leading: bool) -> None:
            if not leading:
                jobs.drop_resolving()
            for key in sorted(mode.keys()):
                queue.add(key)

        self._leading_changed = leading_changed
        self._metrics.leader.set(self._elector is None)
        if self._elector is not None:
            self._election = self._tasks.create_task(self._elector.run(), name="election")
        self._tasks.create_task(self._permits.run(), name="permits")
        self._tasks.create_task(polling.run(self._leadership), name="polling")
        self._tasks.create_task(self._policy.run(policy_changed), name="policy file")
        self._tasks.create_task(controller.run(), name="controller")
        if self._healing is not None:
            self._tasks.create_task(self._healing.run(self._leadership), name="healing")
        if loading is not None:
            self._tasks.create_task(loading.run(self._leadership), name="proof of load")
        await mode.run(changed=queue.add, secret_changed=secret_changed)

    def _make_loading(self, mode: Mode, gathering: Gathering) -> Loading | None:
        """None in standalone mode, which knows no Pods."""
        if self._settings.cluster is None or not isinstance(mode, Workloads):
            return None
        loading = Loading(mode, gathering, metrics=self._metrics, settings=self._settings.proof)
        mode.prove(loading.report)
        return loading

    def _make_healing(self, mode: Mode, gathering: Gathering) -> Healing | None:
        """None in standalone mode, which knows no Pods."""
        if self._settings.cluster is None or not isinstance(mode, Mesh):
            return None
        healing = self._settings.healing
        outage = None
        if self._last_alive is not None and time.time() - self._last_alive > healing.outage:
            outage = Outage(self._last_alive, time.time())
        return Healing(
            mode,
            gathering,
            is_stored=self._store.__contains__,
            requeue=self._queue.add,
            announce=self._announce,
            metrics=self._metrics,
            settings=healing,
            outage=outage,
        )

    def _make_reconciler(
        self, mode: Mode, jobs: FetchJobs, published: PublishedModules, polls: Polls
    ) -> AutoWasmReconciler:
        cluster = self._settings.cluster
        return AutoWasmReconciler(
            objects=mode,
            publisher=mode.publisher,
            jobs=jobs,
            store=self._store,
            published=published,
            envoy=self._settings.envoy,
            metrics=self._metrics,
            check=partial(_check, cluster=cluster, policy=self._policy),
            permits=self._permits,
            admit=self._retention.admit,
            pods=getattr(mode, "pods", None),
            announce=self._announce,
            leadership=self._leadership,
            prepared=getattr(mode, "prepared", None),
            spreading=Spreading(self._replicas, tasks=self._tasks, on_change=self._queue.add),
            polls=polls,
            heal=self._healing.wanted if self._healing is not None else lambda *_: 0,
        )

    async def stop(self, signals: "_StopSignals") -> None:
        """Unready → drain delay → no more writes, another may lead → finish sends → close."""
        settings = self._settings
        _log.info("stopping", drain_delay=settings.drain_delay)
        self._health.stopping()
        await signals.delay(settings.drain_delay)
        self._queue.shut_down(drain=False)
        if self._election is not None:
            self._election.cancel()
            await asyncio.wait([self._election])
        await self._blob_server.stop(settings.serve.finish_sends)
        await self._admin_server.stop(1.0)
