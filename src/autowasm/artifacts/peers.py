"""Peers: what this replica gets from the others: modules, answers to "have you got it?", and small documents.

Not where they are (`peerlist.py`) and not the answering (`server/blobs.py`). A peer is asked over the blob port with a header
that makes it answer at once from its store: replicas never wait for one another in a circle. Invariants: nothing enters the
store but bytes with the digest that was asked for; no answer of a peer, nor its silence, costs more than a bounded time.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from enum import Enum
from types import TracebackType
from typing import Final, Self

import aiofiles
import aiohttp
import structlog

from autowasm.artifacts.flights import Flights
from autowasm.artifacts.peerlist import PeerList
from autowasm.artifacts.peerstream import Unusable, module_chunks
from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.errors import ContentRejected, StorageError
from autowasm.net.pools import Pools
from autowasm.settings import PeerSettings
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

PEER_HEADER: Final = "x-autowasm-peer"
"""On requests and on their answers: the instance that speaks. Names nobody who could not be named: it is a random number."""


class Copy(Enum):
    """How a copy ended; the values are metric labels."""

    COPIED = "copied"
    NOBODY = "absent"
    FAILED = "failed"
    NO_ROOM = "no_room"
    """Here; another peer's bytes would need as much."""


class Peers:
    """One for the process: an async context manager that holds the connections."""

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
        """`instance`: a name that no other replica has. `module_bytes`: no module is larger."""
        self._list = peers
        self._instance = instance
        self._store = store
        self._settings = settings
        self._module_bytes = module_bytes
        self._disk = pools.disk
        self._metrics = metrics
        self._flights = Flights(tasks)
        self._copying = asyncio.Semaphore(settings.copies)
        self._checking = asyncio.Semaphore(settings.checks)
        self._seeking = asyncio.Semaphore(settings.seeks)
        self._missed: dict[Sha256Hex, float] = {}
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # No limits here but in semaphores: whoever hangs must not keep connections from the others.
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
        """Return once we know where they are, or that this cannot be learned now."""
        await self._list.settled()

    async def copy(self, sha256: Sha256Hex) -> bool:
        """Bring the blob into the store from whichever peer has it. False: none has it, or none could give it.

        Takes `copy_timeout` seconds at most, once it is its turn.
        """
        return await self._join_copy(sha256, asks=self._settings.asks)

    async def seek(self, sha256: Sha256Hex) -> bool:
        """As `copy`, for a digest that nobody has told us of.

        Only a few at a time, and what was missed is not sought again at once: whoever invents digests must not set the
        replicas at each other.
        """
        loop = asyncio.get_running_loop()
        if self._seeking.locked() or self._missed.get(sha256, float("-inf")) > loop.time():
            return False
        async with self._seeking:
            if await self._join_copy(sha256, asks=1):
                return True
        if len(self._missed) >= self._settings.misses:
            self._missed.clear()
        self._missed[sha256] = loop.time() + self._settings.missed_for
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

    async def ask(self, path: str) -> list[bytes]:
        """A small document from every peer that has one."""
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._document(url, path)) for url in self.known()]
        return [document for task in asked if (document := task.result()) is not None]

    async def _join_copy(self, sha256: Sha256Hex, *, asks: int) -> bool:
        if sha256 in self._store:
            return True
        if not self.known():
            self._list.refresh()
            return False
        outcome = await self._flights.join(
            sha256, lambda: self._copy(sha256, asks=asks), place=lambda: self._copying
        )
        return outcome is Copy.COPIED

    async def _copy(self, sha256: Sha256Hex, *, asks: int) -> Copy:
        outcome = await self._from_anybody(sha256, asks=asks)
        if outcome is Copy.NOBODY:
            self._list.refresh()
        self._metrics.peer_copies.labels(outcome.value).inc()
        return outcome

    async def _from_anybody(self, sha256: Sha256Hex, *, asks: int) -> Copy:
        """All are asked at once; the quickest that has it gives it, and the next beside it if that takes long."""
        turn = asyncio.Lock()
        attempts = [
            asyncio.create_task(self._try(url, sha256, turn, asks=asks), name=f"copy from {url}")
            for url in self.known()
        ]
        result = Copy.NOBODY
        try:
            async with asyncio.timeout(self._settings.copy_timeout):
                for attempt in asyncio.as_completed(attempts):
                    outcome = await attempt
                    if outcome in {Copy.COPIED, Copy.NO_ROOM}:
                        return outcome
                    if outcome is Copy.FAILED:
                        result = outcome
        except TimeoutError:
            _log.warning("peers gave no module in time", digest=sha256)
            return Copy.FAILED
        finally:
            for task in attempts:
                task.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)
        return result

    async def _try(self, url: str, sha256: Sha256Hex, turn: asyncio.Lock, *, asks: int) -> Copy:
        """`turn` is had for a while only, so one after the other begins until one has ended well."""
        if not await self._offers(url, sha256, asks=asks):
            return Copy.NOBODY
        async with asyncio.TaskGroup() as tasks, turn:
            fetching = tasks.create_task(self._outcome(url, sha256), name=f"fetch from {url}")
            await asyncio.wait([fetching], timeout=self._settings.beside_after)
        return fetching.result()

    async def _outcome(self, url: str, sha256: Sha256Hex) -> Copy:
        try:
            await self._fetch(url, sha256)
        except StorageError as error:
            _log.warning("module not copied", digest=sha256, peer=url, reason=str(error))
            return Copy.NO_ROOM
        except (aiohttp.ClientError, OSError, Unusable, ContentRejected) as error:
            reason = str(error) or type(error).__name__
            _log.warning("peer gave no module", digest=sha256, peer=url, reason=reason)
            return Copy.FAILED
        _log.info("module copied from a peer", digest=sha256, peer=url)
        return Copy.COPIED

    async def _offers(self, url: str, sha256: Sha256Hex, *, asks: int) -> bool:
        """Whether the peer has the blob. One that gives no answer in time is asked again: it may have the only copy."""
        for _ in range(asks):
            with contextlib.suppress(TimeoutError):
                return await self._ask(url, sha256) is True
        return False

    async def _has(self, url: str, sha256: Sha256Hex) -> bool | None:
        """None: it gives no answer, or it is ourselves."""
        with contextlib.suppress(TimeoutError):
            return await self._ask(url, sha256)
        return None

    async def _ask(self, url: str, sha256: Sha256Hex) -> bool | None:
        """None: it cannot be reached, or it is ourselves. Raises TimeoutError."""
        try:
            async with (
                asyncio.timeout(self._settings.ask_timeout),
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
            await asyncio.sleep(self._settings.ask_again)

    async def _fetch(self, url: str, sha256: Sha256Hex) -> None:
        """Raises aiohttp.ClientError, OSError, Unusable, ContentRejected, StorageError."""
        settings = self._settings
        idle = aiohttp.ClientTimeout(sock_connect=settings.ask_timeout, sock_read=settings.idle)
        async with self._request("GET", f"{url}/wasm/{sha256}", timeout=idle) as answer:
            size = answer.content_length
            if answer.status != 200 or size is None or PEER_HEADER not in answer.headers:
                raise Unusable(f"it answered {answer.status} where a module was to come")
            if size > self._module_bytes:
                raise Unusable(
                    f"it offers {size} bytes; no module is larger than {self._module_bytes}"
                )
            async with self._store.keeper.room(size), self._store.stage() as stage:
                async with aiofiles.open(stage.path, "wb", executor=self._disk.executor) as file:
                    async for chunk in module_chunks(answer.content, size, settings=settings):
                        await file.write(chunk)
                await self._store.commit(stage, sha256)
        self._metrics.peer_bytes.inc(size)

    async def _document(self, base: str, path: str) -> bytes | None:
        most = self._settings.document_bytes
        try:
            async with (
                asyncio.timeout(self._settings.ask_timeout),
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
                        _log.warning("peer's document too long", peer=base, path=path, limit=most)
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
        limit = timeout or aiohttp.ClientTimeout(total=self._settings.ask_timeout)
        async with self._session.request(
            method, url, timeout=limit, allow_redirects=False
        ) as answer:
            yield answer
