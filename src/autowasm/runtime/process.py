"""The lifecycle of `wasmer`: builds all parts, starts them in order, and stops them in order.

Invariants: one TaskGroup owns every task; the blob port answers before the first EnvoyFilter is written, and closes last.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from importlib import metadata
from typing import Final

import prometheus_client
import structlog

from autowasm.blobs.store import BlobStore
from autowasm.controller.sourcepolicy import PolicyFile
from autowasm.errors import AutoWasmError
from autowasm.kube.resources import ObjectKey
from autowasm.kube.workqueue import WorkQueue
from autowasm.limits import LoopLimits
from autowasm.net.pools import Pools
from autowasm.performance.eventloop import stop_reporting, timing_of
from autowasm.runtime.context import SharedResources
from autowasm.runtime.datapath import DataPath, open_data_path
from autowasm.runtime.manager import Manager, open_stats_reader
from autowasm.runtime.modes import choose_mode
from autowasm.server.admin import Health
from autowasm.server.app import AdminServer
from autowasm.settings import Settings
from autowasm.telemetry.metrics import Metrics
from autowasm.units import format_duration

_log = structlog.get_logger(__name__)

_INTERRUPTED: Final = 128 + signal.SIGINT
"""The exit status, as in shells."""


class StopSignals:
    """SIGTERM and SIGINT: the first signal requests a stop. A second SIGTERM cuts the drain delay short, a second SIGINT ends the process.

    `drain_delay` in seconds, for the log.
    """

    def __init__(self, *, drain_delay: float) -> None:
        self._drain_delay = drain_delay
        self._requested = asyncio.Event()
        self._again = asyncio.Event()

    def signalled(self, number: signal.Signals) -> None:
        """Handle one more signal."""
        is_first = not self._requested.is_set()
        (self._requested if is_first else self._again).set()
        if number != signal.SIGINT:
            return
        if not is_first:
            # A user at a terminal does not want to wait. Files are replaced as a whole, so none is left half written.
            _log.warning("stopped at once")
            os._exit(_INTERRUPTED)
        drain = (
            f"{format_duration(self._drain_delay)} of drain delay, then "
            if self._drain_delay
            else ""
        )
        _log.info(
            "interrupted",
            waits_for=f"{drain}downloads under way",
            next="Ctrl-C again exits at once",
        )

    async def wait(self) -> None:
        """Return when a stop is requested."""
        await self._requested.wait()

    async def delay(self, seconds: float) -> None:
        """Return after this many seconds, or at once on a second signal."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._again.wait()


@contextlib.contextmanager
def stop_signals(*, drain_delay: float) -> Iterator[StopSignals]:
    """Handle both signals inside the context."""
    loop = asyncio.get_running_loop()
    stop = StopSignals(drain_delay=drain_delay)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.signalled, number)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class _Stopped(Exception):  # ends the TaskGroup after an orderly stop
    pass


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, then stop in order. A second SIGTERM cuts the drain delay short, a second SIGINT ends at once.

    Raises UsageError or StorageError if start-up is impossible.
    """
    metrics = Metrics()
    prometheus_client.ProcessCollector(registry=metrics.registry)
    prometheus_client.GCCollector(registry=metrics.registry)
    sys.setswitchinterval(LoopLimits().switch)
    metrics.loop.iterations = timing_of(asyncio.get_running_loop())
    with (
        Pools(transfers=settings.fetch.total) as pools,
        stop_signals(drain_delay=settings.drain_delay) as stop,
    ):
        pools.start()
        async with AsyncExitStack() as stack:
            store = BlobStore(
                settings.cache_dir, pools=pools, metrics=metrics, limits=settings.store
            )
            await stack.enter_async_context(store)
            try:
                async with asyncio.TaskGroup() as tasks:
                    process = _Process(
                        SharedResources(settings, pools, metrics, store, tasks, stack)
                    )
                    await process.start()
                    await stop.wait()
                    await process.stop(stop)
                    raise _Stopped
            except BaseExceptionGroup as group:
                _raise_unless_stopped(group)
    stop_reporting(asyncio.get_running_loop())
    _log.info("stopped")


def _raise_unless_stopped(group: BaseExceptionGroup) -> None:
    """Suppress an orderly stop; raise a single AutoWasmError as itself rather than in a group."""
    _, rest = group.split(_Stopped)
    if rest is None:
        return
    errors = rest.exceptions
    if len(errors) == 1 and isinstance(errors[0], AutoWasmError):
        raise errors[0]
    raise rest


class _Process:
    """The running parts and their connections."""

    def __init__(self, shared: SharedResources) -> None:
        self._shared = shared
        # Fair over namespaces: one tenant's thousand failing objects do not delay those of others (ADR 21).
        self._queue: WorkQueue[ObjectKey] = WorkQueue(
            metrics=shared.metrics.workqueue, fairness=lambda key: key.namespace
        )
        shared.metrics.workqueue.watch(self._queue)
        self._health = Health()
        self._manager: Manager | None = None

    async def start(self) -> None:
        """Open the ports first: stored modules are served even if the rest fails."""
        shared, settings = self._shared, self._shared.settings
        policy = PolicyFile(settings.policy_file, limits=settings.limits, pools=shared.pools)
        await policy.load()
        chosen = await choose_mode(
            shared,
            busy=lambda: len(self._queue) > 0,
            on_leading=self._on_leading,
            warn=self._health.warn,
        )
        data = await open_data_path(shared, chosen, policy=policy)
        port, admin_port = await self._open_ports(data)
        self._manager = Manager(
            shared,
            chosen,
            data,
            policy=policy,
            queue=self._queue,
            health=self._health,
            reader=await open_stats_reader(shared, chosen),
        )
        shared.tasks.create_task(self._manager.run(), name="manager")
        shared.tasks.create_task(shared.store.verify_all(), name="verify stored blobs")
        shared.tasks.create_task(data.retention.run(), name="blob retention")
        _log.info(
            "started",
            version=metadata.version("autowasm"),
            blob_port=port,
            admin_port=admin_port,
            cache_dir=str(settings.cache_dir),
            blobs=len(shared.store.digests()),
        )

    async def _open_ports(self, data: DataPath) -> tuple[int, int]:
        """Returns the blob port and the admin port. The admin port reports unready until start-up is complete."""
        settings, stack = self._shared.settings, self._shared.stack
        self._blob_server = data.blob_server
        self._admin_server = AdminServer(self._health, metrics=self._shared.metrics)
        self._health.set("start-up", False, "starting")
        port = await self._blob_server.start(settings.listen)
        stack.push_async_callback(self._blob_server.stop, 0.0)
        admin_port = await self._admin_server.start(settings.admin_listen)
        stack.push_async_callback(self._admin_server.stop, 0.0)
        return port, admin_port

    def _on_leading(self, leading: bool) -> None:
        self._shared.metrics.leader.set(leading)
        if self._manager is not None:
            self._manager.leading_changed(leading)

    async def stop(self, signals: StopSignals) -> None:
        """Unready → drain delay → no more writes, another replica may lead → finish sends and write queued Events → close."""
        settings = self._shared.settings
        _log.info("stopping", drain_delay=settings.drain_delay)
        self._health.stopping()
        await signals.delay(settings.drain_delay)
        self._queue.shut_down(drain=False)
        if self._manager is not None:
            await self._manager.resign()
        async with asyncio.TaskGroup() as ending:
            if self._manager is not None:
                ending.create_task(self._manager.flush(), name="flush events")
            await self._blob_server.stop(settings.serve.finish_sends)
        await self._admin_server.stop(1.0)
