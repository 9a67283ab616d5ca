"""BlobServer and AdminServer: the blob port and the admin port, from accepting connections to an orderly stop.

A connection of the blob port begins as a `FastConnection` and becomes aiohttp's `Connection` when a request needs more than a
`FastConnection` serves. Invariants: `stop` may be called at any time and more than once; afterwards nothing listens, sends, or waits;
`[::]` means every address of the machine, also on machines without IPv6; a connection that the kernel accepted is passed on or still
waits in the kernel; a request that had begun before the stop is answered unless its deadline has passed.
"""

import asyncio
import contextlib
import errno
import logging
import resource
import socket
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, cast

import structlog
from aiohttp import web
from aiohttp.http import HttpProcessingError
from prometheus_client import Counter

from autowasm.blobs.files import Blob
from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.errors import UsageError
from autowasm.limits import DownloadLogLimits, ServeLimits
from autowasm.performance.fastpath import FastConnection, ResponseHeads
from autowasm.server.admin import Health, Heartbeat, admin_application
from autowasm.server.aiohttpconnection import Connection
from autowasm.server.blobs import BlobHandler
from autowasm.server.downloadlog import DownloadLog
from autowasm.server.ondemand import BlobSource, OnDemandBlobs, TaskOwner
from autowasm.server.requestlog import CACHE_CONTROL, CONTENT_TYPE, SERVER, RequestLog
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)
_LEVEL: Final = logging.getLogger(__name__)
"""The same logger, to ask for its level before an event is built."""

_DESCRIPTORS: Final = 1 << 20
"""Enough for a million connections; if the hard limit is infinite, some C libraries loop over all descriptors."""
_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})


def parse_listen(listen: str) -> tuple[str, int]:
    """`[::]:8081`, `127.0.0.1:0`, `:8081` (same as `[::]`), `localhost:0` → address and port. Raises UsageError."""
    host, separator, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    address = host[1:-1] if bracketed else host
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    if not separator or not 0 <= number <= 65535 or (":" in address and not bracketed):
        raise UsageError(
            f"cannot listen on {listen!r}: expected an address such as [::]:8081 or 127.0.0.1:8081"
        )
    address = {"": "::", "*": "::", "localhost": "127.0.0.1"}.get(address, address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.inet_pton(family, address)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot listen on {listen!r}: {host!r} is not an IP address (host names are not resolved)"
        ) from error
    return address, number


def listening_socket(listen: str, *, backlog: int) -> socket.socket:
    """A non-blocking socket that listens on `listen`. Raises UsageError."""
    address, port = parse_listen(listen)
    try:
        try:
            return _listen(address, port, backlog)
        except OSError as error:
            if address != "::" or error.errno not in _NO_IPV6:
                raise
            _log.info("no IPv6 on this machine, listening on IPv4 only", listen=listen)
            return _listen("0.0.0.0", port, backlog)  # noqa: S104 - the caller requested it
    except OSError as error:
        raise UsageError(f"cannot listen on {listen!r}: {error.strerror or error}") from error


def _listen(address: str, port: int, backlog: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        listener.bind((address, port))
        listener.listen(backlog)
        stack.pop_all()
    return listener


def raise_descriptor_limit() -> int:
    """Raise the limit of open files as far as allowed, and return it. Each connection needs one descriptor, and another while it waits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE: Final = 1.0
"""Seconds without accepting when the machine has no descriptors or memory left."""


class Listener:
    """Accepts connections from `listener`, a few in each iteration of the loop. `on_accept` gets each socket and its address.

    asyncio's `Server` makes a task, a future and a transport for each connection before a request is known, and loses the waiting
    connections when it closes. Invariant: without free descriptors, accepting pauses, which is logged, and does not spin.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        loop: asyncio.AbstractEventLoop,
        accepts: int,
        on_accept: Callable[[socket.socket, str], None],
    ) -> None:
        """`accepts`: connections that are accepted in one iteration of the loop."""
        self._listener = listener
        self._loop = loop
        self._accepts = accepts
        self._on_accept = on_accept
        self._paused: asyncio.TimerHandle | None = None
        # Accepted sockets inherit these options (Linux), which saves two calls for each.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        loop.add_reader(listener, self._readable)

    def close(self) -> None:
        """Accept the waiting connections, then close, because closing a listening socket resets them."""
        if self._listener.fileno() < 0:
            return
        self._loop.remove_reader(self._listener)
        if self._paused is not None:
            self._paused.cancel()
        with contextlib.suppress(OSError):  # BlockingIOError: there are no more
            while True:
                self._accept()
        self._listener.close()

    def _readable(self) -> None:
        try:
            for _ in range(self._accepts):
                self._accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno in _EXHAUSTED:
                _log.error("accepting connections is paused", error=str(error), seconds=_PAUSE)
                self._loop.remove_reader(self._listener)
                self._paused = self._loop.call_later(_PAUSE, self._resume)
            else:  # accept(2): treat network errors of the new connection like EAGAIN
                _log.warning("connection not accepted", error=str(error))

    def _accept(self) -> None:
        accepted, address = self._listener.accept()
        accepted.setblocking(False)
        self._on_accept(accepted, address[0])

    def _resume(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listener, self._readable)


_CANCELLED_WITHIN: Final = 0.2
"""Seconds for handlers of cut connections to end; they await nothing else."""


class ReadyBlobs(Protocol):
    """The blobs that can be sent without waiting (`BlobHandler`)."""

    def ready(self, sha256: Sha256Hex) -> Blob | None:
        """The blob, if its pages are normally in memory."""

    def served(self, sha256: Sha256Hex, address: str) -> None:
        """All of the blob was sent to `address`."""


class Connections(web.Server):
    """All connections of one port: aiohttp's protocol factory for `Connection`s, and the owner of each `FastConnection`.

    `on_answer(method, status)` is called for every response, even to an invalid request.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        ready_blobs: ReadyBlobs,
        limits: ServeLimits,
        metrics: Metrics,
        on_answer: Callable[[str, int], None],
    ) -> None:
        super().__init__(
            handler,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=limits.keepalive_timeout,
            lingering_time=limits.unread_body,
        )
        self._ready_blobs = ready_blobs
        self._limits = limits
        self._metrics = metrics
        self._on_answer = on_answer
        self._heads = ResponseHeads(
            server=SERVER, cache_control=CACHE_CONTROL, content_type=CONTENT_TYPE
        )
        self._request_log = RequestLog()
        self._tasks = TaskOwner()
        self._open: set[Connection | FastConnection] = set()
        self._changed = asyncio.Event()
        self._listener: Listener | None = None
        self.is_stopping = False

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """A client connected."""
        super().connection_made(handler, transport)
        self._open.add(cast(Connection, handler))

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        """A connection has ended."""
        super().connection_lost(handler, exc)
        self._open.discard(cast(Connection, handler))
        self._changed.set()

    def answered(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """A response was sent, or the client disconnected during it."""
        self._on_answer(request.method, response.status)
        self._request_log.answered(request, response.status)

    # --- fast connections

    def _accepted(self, accepted: socket.socket, address: str) -> None:
        self._open.add(
            FastConnection(accepted, address, owner=self, loop=self._loop, limits=self._limits)
        )

    def ready(self, sha256: Sha256Hex) -> tuple[Blob, bytes] | None:
        """The blob and the head of its response, if it can be sent at once."""
        blob = self._ready_blobs.ready(sha256)
        return None if blob is None else (blob, self._heads.of(blob))

    def began(self) -> None:
        """A send began to wait for its client."""
        self._metrics.sends.inc()

    def ended(self) -> None:
        """A send that waited has ended, with or without success."""
        self._metrics.sends.dec()

    def sent(self, sha256: Sha256Hex, address: str, count: int, *, cut_for: str | None) -> None:
        """A response ended after `count` bytes of the blob."""
        self._metrics.served_bytes.inc(count)
        if cut_for is None:
            self._ready_blobs.served(sha256, address)
        else:
            self._metrics.sends_aborted.labels(cut_for).inc()
        self._on_answer("GET", 200)
        if _LEVEL.isEnabledFor(logging.DEBUG):
            _log.debug("answered", method="GET", path=f"/wasm/{sha256}", status=200, client=address)

    def hand_over(self, connection: FastConnection, data: bytes, due: float | None) -> None:
        """Continue with a `Connection`."""
        self._tasks.start(self._go_on(connection, data, due), name="hand over")

    async def _go_on(self, quick: FastConnection, data: bytes, due: float | None) -> None:
        def make() -> Connection:
            return Connection(
                self,
                owner=self,
                loop=self._loop,
                limits=self._limits,
                early=data,
                due=due,
                **self._kwargs,
            )

        try:
            await self._loop.connect_accepted_socket(make, quick.socket)
        except OSError:  # the client has disconnected
            quick.cut("client")
        except BaseException:
            quick.cut("stop")
            raise
        else:
            quick.handed_over()

    def closed(self, connection: FastConnection) -> None:
        """The connection has ended, or is a `Connection` now."""
        self._open.discard(connection)
        self._changed.set()

    # --- the port

    def listen(self, listener: socket.socket) -> None:
        """Accept connections from `listener`, which this object owns from now on."""
        self._listener = Listener(
            listener, loop=self._loop, accepts=self._limits.accepts, on_accept=self._accepted
        )

    async def stop(self, *, grace: float) -> int:
        """Accept no more connections, let responses finish for `grace` seconds, then cut the rest; returns how many were cut."""
        deadline = self._loop.time() + grace
        self.is_stopping = True
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await _next_iterations()  # reads pending bytes, so that their connections do not look idle
        self._close_idle()
        # A new connection sends its request in a moment; closing it now would lose the request.
        await self._all_closed(min(deadline, self._loop.time() + self._limits.settle))
        for connection in self._open.copy():
            if connection.is_waiting:
                connection.force_close()
        await self._all_closed(deadline)
        await self._tasks.close()
        rest = self._open.copy()
        for connection in rest:
            connection.cut("stop")
        await self.shutdown(_CANCELLED_WITHIN)
        return len(rest)

    def _close_idle(self) -> None:
        for connection in self._open.copy():
            if connection.is_idle:
                connection.force_close()

    async def _all_closed(self, deadline: float) -> None:
        while self._open:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return


async def _next_iterations() -> None:
    for _ in range(2):
        await asyncio.sleep(0)


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
