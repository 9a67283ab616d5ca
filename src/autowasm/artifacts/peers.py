"""Peers: the other replicas, and what this replica requests from them: modules, their presence, and small documents.

Answers to peers are in `server/blobs.py`. Invariants: a request to a peer has a header that makes the peer answer at once from
its store, so replicas never wait for one another in a circle; only bytes with the requested digest enter the store; a request to a peer takes bounded
time, even without an answer; with `hedged`, peers delay the other source by `ALONE` seconds at most, and an error of a peer is never the one that is
reported.
"""

import asyncio
import contextlib
import ipaddress
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from enum import Enum
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp
import structlog
from cachetools import TTLCache

from autowasm.artifacts.singleflight import SingleFlight
from autowasm.blobs import files
from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.errors import ContentRejected, StorageError
from autowasm.net.pools import Pools
from autowasm.net.transfer import RateWatch
from autowasm.settings import PeerSettings
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

Resolve = Callable[[str, int], list[str]]


def addresses_of(host: str, port: int) -> list[str]:
    """All addresses of `host`, as base URLs. Blocks. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [_base_url(str(address[0]), port) for *_, address in found]


def _base_url(address: str, port: int) -> str:
    plain = address.partition("%")[0]
    bracketed = f"[{address}]" if ipaddress.ip_address(plain).version == 6 else address
    return f"http://{bracketed}:{port}"


class PeerList:
    """The other replicas: a fixed list, or the addresses of the headless Service in DNS, updated by `run`.

    Invariants: if a name server fails, the last list stays; an address that is our own is skipped as long as it is listed.
    """

    def __init__(
        self, settings: PeerSettings, *, pools: Pools, resolve: Resolve = addresses_of
    ) -> None:
        self._settings = settings
        self._pools = pools
        self._resolve = resolve
        self._urls: tuple[str, ...] = settings.urls
        self._ourselves: set[str] = set()
        self._failing = False
        self._refresh_requested = asyncio.Event()
        self._first_lookup = asyncio.Event()
        if settings.urls or not settings.host:
            self._first_lookup.set()

    def known(self) -> tuple[str, ...]:
        """Base URLs (`http://ADDRESS:PORT`) of the known peers."""
        return tuple(url for url in self._urls if url not in self._ourselves)

    def is_us(self, url: str) -> None:
        """`url` belongs to this replica itself."""
        self._ourselves.add(url)

    def refresh(self) -> None:
        """Look up the names again now, because no listed peer had the module."""
        self._refresh_requested.set()

    async def run(self) -> None:
        """Look up the names every `lookup_interval` seconds, forever, and at once after `refresh`, but at most once a second."""
        settings = self._settings
        if not settings.host or settings.urls:
            return
        while True:
            await self._look_up(settings.host, settings.port)
            self._first_lookup.set()
            await asyncio.sleep(settings.lookup_pause)
            self._refresh_requested.clear()
            try:
                async with asyncio.timeout(settings.lookup_interval * random.uniform(0.8, 1.2)):  # noqa: S311  # jitter
                    await self._refresh_requested.wait()
            except TimeoutError:
                continue

    async def settled(self) -> None:
        """Return after the first lookup, whatever its result: after a start, peers are asked before any other source.

        Needs `run`; takes `lookup_timeout` seconds at most.
        """
        await self._first_lookup.wait()

    async def _look_up(self, host: str, port: int) -> None:
        try:
            async with asyncio.timeout(self._settings.lookup_timeout):
                found = await self._pools.names.run(self._resolve, host, port)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            if not self._failing:
                _log.warning("peer lookup failed", host=host, error=str(error) or "timed out")
            self._failing = True
            return
        self._failing = False
        urls = tuple(sorted(dict.fromkeys(found))[: self._settings.most])
        if urls != self._urls:
            self._urls = urls
            self._ourselves &= set(urls)
            _log.info("peers changed", peers=list(self.known()))


_CHUNK: Final = 256 * 1024


class UnusablePeer(Exception):
    """A peer's answer is unusable. The message has the reason."""


async def module_chunks(
    content: aiohttp.StreamReader, size: int, *, settings: PeerSettings
) -> AsyncIterator[bytes]:
    """`size` bytes, never more.

    Raises UnusablePeer for fewer or more bytes or a low rate; aiohttp.ClientError and OSError for a broken connection.
    """
    watch = RateWatch(minimum=settings.minimum_rate, window=settings.rate_window)
    received, waited = 0, 0.0
    watch.is_too_slow(waited, received)
    while True:
        began = time.monotonic()
        chunk = await content.read(_CHUNK)
        # Only the time that the peer took counts, not the disk's between two chunks.
        waited += time.monotonic() - began
        received += len(chunk)
        if not chunk or received > size:
            break
        if received < size and watch.is_too_slow(waited, received):
            raise UnusablePeer(f"too slow: {received} bytes in {waited:.1f} s")
        yield chunk
    if received != size:
        raise UnusablePeer(f"sent {received} bytes instead of {size}")


PEER_HEADER: Final = "x-autowasm-peer"
"""On requests and responses: the instance that sends it. It is a random number, so it identifies nothing outside the replicas."""


class PeerCopy(Enum):
    """The result of a copy; the values are metric labels."""

    COPIED = "copied"
    ABSENT = "absent"
    FAILED = "failed"
    NO_ROOM = "no_room"
    """On this replica; bytes from another peer would need as much room."""


class Peers:
    """The client of the peers, one for each process: an async context manager that holds the connections."""

    def __init__(
        self,
        peers: PeerList,
        *,
        instance: str,
        store: BlobStore,
        settings: PeerSettings,
        module_bytes: int,
        pools: Pools,
        metrics: Metrics,
        tasks: asyncio.TaskGroup,
    ) -> None:
        """`instance`: unique among the replicas. `module_bytes`: the largest module."""
        self._list = peers
        self._instance = instance
        self._store = store
        self._settings = settings
        self._module_bytes = module_bytes
        self._disk = pools.disk
        self._metrics = metrics
        self._single_flight = SingleFlight(tasks)
        self._copying = asyncio.Semaphore(settings.copies)
        self._checking = asyncio.Semaphore(settings.checks)
        self._seeking = asyncio.Semaphore(settings.seeks)
        self._missed: TTLCache[Sha256Hex, None] = TTLCache(
            settings.misses, settings.missed_for, lambda: asyncio.get_running_loop().time()
        )
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # Semaphores are the limits: a peer that hangs must not take connections from the others.
            connector=aiohttp.TCPConnector(limit=0),
            headers={PEER_HEADER: self._instance, "accept-encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    def known(self) -> tuple[str, ...]:
        """Base URLs of the others."""
        return self._list.known()

    async def settled(self) -> None:
        """Return once the lookup of the peers' addresses has succeeded or failed."""
        await self._list.settled()

    async def copy(self, sha256: Sha256Hex) -> bool:
        """Copy the blob into the store from any peer that has it. False: no peer has it, or none could send it.

        Takes `copy_timeout` seconds at most, once it has a slot.
        """
        return await self._join_copy(sha256, tries=self._settings.query_attempts)

    async def seek(self, sha256: Sha256Hex) -> bool:
        """Like `copy`, for a digest that no AutoWasm on this replica names.

        Only a few run at a time, and a miss is remembered for a while: a client that invents digests must not cause traffic
        between the replicas.
        """
        if self._seeking.locked() or sha256 in self._missed:
            return False
        async with self._seeking:
            if await self._join_copy(sha256, tries=1):
                return True
        self._missed[sha256] = None
        return False

    async def wait_all_have(self, sha256: Sha256Hex, timeout: float) -> bool:
        """True once every peer that answers has the blob, False after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout), asyncio.TaskGroup() as tasks:
                for url in self.known():
                    tasks.create_task(self._until_it_has(url, sha256), name=f"wait for {url}")
        except TimeoutError:
            return False
        return True

    async def query(self, path: str) -> list[bytes]:
        """A small document from every peer that has one."""
        async with asyncio.TaskGroup() as tasks:
            queries = [tasks.create_task(self._document(url, path)) for url in self.known()]
        return [document for task in queries if (document := task.result()) is not None]

    async def _join_copy(self, sha256: Sha256Hex, *, tries: int) -> bool:
        if sha256 in self._store:
            return True
        if not self.known():
            self._list.refresh()
            return False
        outcome = await self._single_flight.join(
            sha256, lambda: self._copy(sha256, tries=tries), slot=lambda: self._copying
        )
        return outcome is PeerCopy.COPIED

    async def _copy(self, sha256: Sha256Hex, *, tries: int) -> PeerCopy:
        outcome = await self._from_any_peer(sha256, tries=tries)
        if outcome is PeerCopy.ABSENT:
            self._list.refresh()
        self._metrics.peer_copies.labels(outcome.value).inc()
        return outcome

    async def _from_any_peer(self, sha256: Sha256Hex, *, tries: int) -> PeerCopy:
        """Ask all peers at once and copy from the fastest that has the blob. If it takes long, a copy from the next starts in parallel."""
        starting = asyncio.Lock()
        attempts = [
            asyncio.create_task(
                self._try(url, sha256, starting, tries=tries), name=f"copy from {url}"
            )
            for url in self.known()
        ]
        result = PeerCopy.ABSENT
        try:
            async with asyncio.timeout(self._settings.copy_timeout):
                for attempt in asyncio.as_completed(attempts):
                    outcome = await attempt
                    if outcome in {PeerCopy.COPIED, PeerCopy.NO_ROOM}:
                        return outcome
                    if outcome is PeerCopy.FAILED:
                        result = outcome
        except TimeoutError:
            _log.warning("copy from peers timed out", digest=sha256)
            return PeerCopy.FAILED
        finally:
            for task in attempts:
                task.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)
        return result

    async def _try(
        self, url: str, sha256: Sha256Hex, starting: asyncio.Lock, *, tries: int
    ) -> PeerCopy:
        """Copy from one peer. A peer holds `starting` for `hedge_after` seconds at most, so copies start one after the other."""
        if not await self._offers(url, sha256, tries=tries):
            return PeerCopy.ABSENT
        async with asyncio.TaskGroup() as tasks, starting:
            fetching = tasks.create_task(self._outcome(url, sha256), name=f"fetch from {url}")
            await asyncio.wait([fetching], timeout=self._settings.hedge_after)
        return fetching.result()

    async def _outcome(self, url: str, sha256: Sha256Hex) -> PeerCopy:
        try:
            await self._fetch(url, sha256)
        except StorageError as error:
            _log.warning("module not copied", digest=sha256, peer=url, error=str(error))
            return PeerCopy.NO_ROOM
        except (aiohttp.ClientError, OSError, UnusablePeer, ContentRejected) as error:
            text = str(error) or type(error).__name__
            _log.warning("copy from peer failed", digest=sha256, peer=url, error=text)
            return PeerCopy.FAILED
        _log.info("module copied from a peer", digest=sha256, peer=url)
        return PeerCopy.COPIED

    async def _offers(self, url: str, sha256: Sha256Hex, *, tries: int) -> bool:
        """Whether the peer has the blob. A peer that does not answer in time is asked again: it may have the only copy."""
        for _ in range(tries):
            with contextlib.suppress(TimeoutError):
                return await self._probe(url, sha256) is True
        return False

    async def _has(self, url: str, sha256: Sha256Hex) -> bool | None:
        """None: the peer does not answer, or is this replica."""
        with contextlib.suppress(TimeoutError):
            return await self._probe(url, sha256)
        return None

    async def _probe(self, url: str, sha256: Sha256Hex) -> bool | None:
        """None: the peer cannot be reached, or is this replica. Raises TimeoutError."""
        try:
            async with (
                asyncio.timeout(self._settings.query_timeout),
                self._request("HEAD", f"{url}/wasm/{sha256}") as answer,
            ):
                if self._is_ours(url, answer):
                    return None
                return answer.status == 200
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError):
            return None

    async def _until_it_has(self, url: str, sha256: Sha256Hex) -> None:
        while True:
            async with self._checking:
                if await self._has(url, sha256) is not False:
                    return
            await asyncio.sleep(self._settings.query_pause)

    async def _fetch(self, url: str, sha256: Sha256Hex) -> None:
        """Raises aiohttp.ClientError, OSError, UnusablePeer, ContentRejected, StorageError."""
        settings = self._settings
        idle = aiohttp.ClientTimeout(sock_connect=settings.query_timeout, sock_read=settings.idle)
        async with self._request("GET", f"{url}/wasm/{sha256}", timeout=idle) as answer:
            size = answer.content_length
            if answer.status != 200 or size is None or PEER_HEADER not in answer.headers:
                raise UnusablePeer(f"unexpected status {answer.status}")
            if size > self._module_bytes:
                raise UnusablePeer(
                    f"module too large: {size} bytes, at most {self._module_bytes} are accepted"
                )
            async with self._store.admission.reserve_space(size), self._store.stage() as stage:
                async with files.create(self._disk, stage.path) as file:
                    async for chunk in module_chunks(answer.content, size, settings=settings):
                        await file.write(chunk)
                await self._store.commit(stage, sha256)
        self._metrics.peer_bytes.inc(size)

    async def _document(self, base: str, path: str) -> bytes | None:
        most = self._settings.document_bytes
        try:
            async with (
                asyncio.timeout(self._settings.query_timeout),
                self._request("GET", f"{base}{path}") as answer,
            ):
                if self._is_ours(base, answer):
                    return None
                if answer.status != 200 or PEER_HEADER not in answer.headers:
                    return None
                document = b""
                async for chunk in answer.content.iter_any():
                    document += chunk
                    if len(document) > most:
                        _log.warning("peer's document too large", peer=base, path=path, limit=most)
                        return None
                return document
        except (aiohttp.ClientError, OSError):
            return None

    def _is_ours(self, url: str, answer: aiohttp.ClientResponse) -> bool:
        if answer.headers.get(PEER_HEADER) != self._instance:
            return False
        self._list.is_us(url)
        return True

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, url: str, *, timeout: aiohttp.ClientTimeout | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        limit = timeout or aiohttp.ClientTimeout(total=self._settings.query_timeout)
        async with self._session.request(
            method, url, timeout=limit, allow_redirects=False
        ) as answer:
            yield answer


T = TypeVar("T")

ALONE: Final = 2.0
"""Seconds before the other source starts: 32 MiB within a cluster take less, and Envoy waits for 10."""


async def hedged(
    copy: Coroutine[Any, Any, bool], otherwise: Callable[[], Coroutine[Any, Any, T]]
) -> T | None:
    """None if `copy` returns True, else the result of `otherwise`, which starts when the copy fails or after `ALONE` seconds.

    Raises the error of `otherwise`, once the copy has failed too.
    """
    copying = asyncio.create_task(copy, name="copy from a replica")
    tasks: list[asyncio.Task[Any]] = [copying]
    try:
        await asyncio.wait([copying], timeout=ALONE)
        if copying.done() and copying.result():
            return None
        other = asyncio.create_task(otherwise(), name="beside the copy")
        tasks.append(other)
        await asyncio.wait(tasks if not copying.done() else [other], return_when="FIRST_COMPLETED")
        if other.done() and other.exception() is None:
            return other.result()
        if await copying:
            return None
        return await other
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
