"""BlobServer and AdminServer: the blob port and the admin port, from start to stop.

Invariant: `stop` may be called at any time and more than once; afterwards nothing listens, sends, or waits.
"""

import asyncio
import logging
from typing import Final

import structlog
from aiohttp import web
from aiohttp.http import HttpProcessingError
from prometheus_client import Counter

from autowasm.blobs.store import BlobStore
from autowasm.limits import DownloadLogLimits, ServeLimits
from autowasm.server.admin import Health, Heartbeat, admin_application
from autowasm.server.blobs import BlobHandler
from autowasm.server.downloadlog import DownloadLog
from autowasm.server.listener import Connections, listening_socket, raise_descriptor_limit
from autowasm.server.ondemand import BlobSource, OnDemandBlobs, TaskOwner
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

_METHODS = frozenset({"GET", "HEAD"})


class _NoBadRequests(logging.Filter):
    """Drops the errors of invalid requests: aiohttp logs each request of a port scanner as an error, with a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_ADMIN_LOGGER: Final = logging.getLogger(f"{__name__}.admin")
_NO_BAD_REQUESTS: Final = _NoBadRequests()


class BlobServer:
    """Serves `store` to Envoy. A request for a digest that `source` knows waits until the module is stored."""

    def __init__(
        self,
        store: BlobStore,
        source: BlobSource,
        *,
        limits: ServeLimits,
        metrics: Metrics,
        instance: str = "",
        download_log: DownloadLog | None = None,
    ) -> None:
        """`instance`: our name for the other replicas. `download_log` records which addresses downloaded which module."""
        self._instance = instance
        self._download_log = download_log or DownloadLog(DownloadLogLimits(), instance=instance)
        self._store = store
        self._source = source
        self._limits = limits
        self._metrics = metrics
        self._counters: dict[tuple[str, int], Counter] = {}
        self._running: tuple[Connections, OnDemandBlobs] | None = None

    async def start(self, listen: str) -> int:
        """Listen on `listen` (`[::]:8081`: both IP versions); returns the port. Raises UsageError."""
        limits = self._limits
        descriptors = raise_descriptor_limit()
        on_demand = OnDemandBlobs(self._store, self._source, limits=limits, metrics=self._metrics)
        handler = BlobHandler(
            on_demand,
            instance=self._instance,
            download_log=self._download_log,
            limits=limits,
            metrics=self._metrics,
        )
        connections = Connections(
            handler,
            ready_blobs=handler,
            limits=limits,
            metrics=self._metrics,
            on_answer=self._count,
        )
        listener = listening_socket(listen, backlog=limits.backlog)
        port: int = listener.getsockname()[1]
        connections.listen(listener)
        self._running = (connections, on_demand)
        _log.info("blob port open", listen=listen, port=port, descriptors=descriptors)
        return port

    def _count(self, method: str, status: int) -> None:
        counter = self._counters.get((method, status))
        if counter is None:
            known = method if method in _METHODS else "other"
            counter = self._metrics.responses.labels(known, str(status))
            if known == method:  # made-up methods of clients must not fill the memory
                self._counters[method, status] = counter
        counter.inc()

    async def stop(self, grace: float) -> None:
        """Accept no more connections, finish responses (held ones too) for `grace` seconds, then cut the rest."""
        if self._running is None:
            return
        connections, on_demand = self._running
        self._running = None
        # Held requests are answered just before the end, so that the response is still sent.
        release = asyncio.get_running_loop().call_later(
            max(grace - self._limits.held_margin, grace / 2), on_demand.release
        )
        try:
            cut = await connections.stop(grace=grace)
        finally:
            release.cancel()
            await on_demand.close()
        _log.info("blob port closed", cut=cut)


class AdminServer:
    """Serves health and metrics to the kubelet and Prometheus."""

    def __init__(
        self, health: Health, *, metrics: Metrics, limits: ServeLimits | None = None
    ) -> None:
        self._health = health
        self._metrics = metrics
        self._limits = limits or ServeLimits()
        self._tasks = TaskOwner()
        self._runner: web.AppRunner | None = None

    async def start(self, listen: str) -> int:
        """Listen on `listen`; returns the port. Raises UsageError."""
        heartbeat = Heartbeat(asyncio.get_running_loop().time)
        application = admin_application(self._health, heartbeat, self._metrics.registry)
        _ADMIN_LOGGER.addFilter(_NO_BAD_REQUESTS)
        runner = web.AppRunner(
            application,
            logger=_ADMIN_LOGGER,
            access_log=None,
            keepalive_timeout=self._limits.request_timeout,  # also bounds silent and incomplete requests
            lingering_time=self._limits.unread_body,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        listener = listening_socket(listen, backlog=128)
        port: int = listener.getsockname()[1]
        await web.SockSite(runner, listener).start()
        self._tasks.start(heartbeat.run(), name="heartbeat")
        self._runner = runner
        _log.info("admin port open", listen=listen, port=port)
        return port

    async def stop(self, grace: float) -> None:
        """Close within `grace` seconds (0: no limit). Responses in progress get one second."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        await self._tasks.close()
        try:
            async with asyncio.timeout(grace or None):
                await runner.cleanup()
        except TimeoutError:
            _log.warning("admin port did not close in time", seconds=grace)
