"""Peers: what this replica gets from the others: modules, answers to "have you got it?", and small documents.

Not where they are (`peerlist.py`) and not the answering (`server/blobs.py`). A peer is asked over the blob port with a header
that makes it answer at once from its store: replicas never wait for one another in a circle. Invariants: nothing enters the
store but bytes with the digest that was asked for; no answer of a peer, nor its silence, costs more than a bounded time.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from enum import Enum
from types import TracebackType
from typing import Final, Self

import aiofiles
import aiohttp
import structlog

from autowasm.artifacts.flights import Flights
from autowasm.artifacts.peerlist import PeerList
from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.errors import ContentRejected, StorageError
from autowasm.net.pools import Pools
from autowasm.settings import PeerSettings
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

PEER_HEADER: Final = "x-autowasm-peer"
"""On requests and on their answers: the instance that speaks. Names nobody who could not be named: it is a random number."""

_CHUNK: Final = 256 * 1024


class Copy(Enum):
    """How a copy ended; the values are metric labels."""

    COPIED = "copied"
    NOBODY = "absent"
    FAILED = "failed"


class _Unusable(Exception):
    """A peer's answer is of no use. The message says why."""


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
        self._seeking = asyncio.Semaphore(settings.seeks)
        self._missed: dict[Sha256Hex, float] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=64, limit_per_host=16),
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
        if self._session is not None:
            await self._session.close()
            self._session = None

    def known(self) -> tuple[str, ...]:
        """Base URLs of the others."""
        return self._list.known()

    async def copy(self, sha256: Sha256Hex) -> bool:
        """Bring the blob into the store from whichever peer has it. False: none has it, or none could give it."""
        if sha256 in self._store:
            return True
        if not self.known():
            self._list.refresh()
            return False
        outcome = await self._flights.join(
            sha256, lambda: self._copy(sha256), place=contextlib.nullcontext
        )
        self._metrics.peer_copies.labels(outcome.value).inc()
        return outcome is Copy.COPIED

    async def seek(self, sha256: Sha256Hex) -> bool:
        """As `copy`, for a digest that nobody has told us of.

        Only a few at a time, and what was missed is not sought again at once: whoever invents digests must not set the
        replicas at each other.
        """
        loop = asyncio.get_running_loop()
        if self._seeking.locked() or self._missed.get(sha256, float("-inf")) > loop.time():
            return False
        async with self._seeking:
            if await self.copy(sha256):
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
            asked = [tasks.create_task(self._document(f"{url}{path}")) for url in self.known()]
        return [document for task in asked if (document := task.result()) is not None]

    async def _copy(self, sha256: Sha256Hex) -> Copy:
        failed = False
        async with contextlib.aclosing(self._holders(sha256)) as holders:
            async for url in holders:
                try:
                    await self._fetch(url, sha256)
                except StorageError as error:  # another peer's bytes need as much room
                    _log.warning("module not copied", digest=sha256, peer=url, reason=str(error))
                    return Copy.FAILED
                except (aiohttp.ClientError, OSError, _Unusable, ContentRejected) as error:
                    failed = True
                    reason = str(error) or type(error).__name__
                    _log.warning("peer gave no module", digest=sha256, peer=url, reason=reason)
                else:
                    _log.info("module copied from a peer", digest=sha256, peer=url)
                    return Copy.COPIED
        if failed:
            return Copy.FAILED
        self._list.refresh()
        return Copy.NOBODY

    async def _holders(self, sha256: Sha256Hex) -> AsyncGenerator[str, None]:
        """Peers that have it, the quickest first."""
        waiting = {
            asyncio.create_task(self._has(url, sha256), name=f"ask {url}"): url
            for url in self.known()
        }
        try:
            while waiting:
                ended, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    url = waiting.pop(task)
                    if task.result():
                        yield url
        finally:
            for task in waiting:
                task.cancel()
            if waiting:
                await asyncio.wait(waiting)

    async def _has(self, url: str, sha256: Sha256Hex) -> bool | None:
        """None: it gives no answer, or it is ourselves."""
        try:
            async with (
                asyncio.timeout(self._settings.ask_timeout),
                self._request("HEAD", f"{url}/wasm/{sha256}") as answer,
            ):
                if self._is_ours(url, answer):
                    return None
                return answer.status == 200
        except (aiohttp.ClientError, OSError):
            return None

    async def _until_it_has(self, url: str, sha256: Sha256Hex) -> None:
        while await self._has(url, sha256) is False:  # noqa: ASYNC110  # it is another process that we wait for
            await asyncio.sleep(self._settings.ask_again)

    async def _fetch(self, url: str, sha256: Sha256Hex) -> None:
        """Raises aiohttp.ClientError, OSError, _Unusable, ContentRejected, StorageError."""
        settings = self._settings
        idle = aiohttp.ClientTimeout(sock_connect=settings.ask_timeout, sock_read=settings.idle)
        async with (
            asyncio.timeout(settings.copy_timeout),
            self._request("GET", f"{url}/wasm/{sha256}", timeout=idle) as answer,
        ):
            size = answer.content_length
            if answer.status != 200 or size is None or PEER_HEADER not in answer.headers:
                raise _Unusable(f"it answered {answer.status} where a module was to come")
            if size > self._module_bytes:
                raise _Unusable(
                    f"it offers {size} bytes; no module is larger than {self._module_bytes}"
                )
            async with self._store.keeper.room(size), self._store.stage() as stage:
                received = 0
                async with aiofiles.open(stage.path, "wb", executor=self._disk.executor) as file:
                    async for chunk in answer.content.iter_chunked(_CHUNK):
                        received += len(chunk)
                        await file.write(chunk)
                if received != size:
                    raise _Unusable(f"it sent {received} bytes of {size}")
                await self._store.commit(stage, sha256)
        self._metrics.peer_bytes.inc(size)

    async def _document(self, url: str) -> bytes | None:
        most = self._settings.document_bytes
        try:
            async with (
                asyncio.timeout(self._settings.ask_timeout),
                self._request("GET", url) as answer,
            ):
                if answer.status != 200 or PEER_HEADER not in answer.headers:
                    return None
                document = b""
                async for chunk in answer.content.iter_any():
                    document += chunk
                    if len(document) > most:
                        _log.warning("peer's document too long", url=url, limit=most)
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
        if self._session is None:
            raise RuntimeError("Peers is used outside of its context")
        limit = timeout or aiohttp.ClientTimeout(total=self._settings.ask_timeout)
        async with self._session.request(
            method, url, timeout=limit, allow_redirects=False
        ) as answer:
            yield answer
