"""StatsReader: reads the statistics of sidecars over HTTP from port 15090 of their Pods.

`envoystats.py` parses, `runstate.py` judges. It reads only on request, never on its own. Invariants: requests go only to Pods
that have a sidecar and have not ended, to a literal address that no other Pod has, on one port, with one path, without redirects,
proxies and cookies; for all callers together, at most `limits.rate` requests begin in a second and at most `limits.concurrent`
are in flight; each takes bounded time and memory, whatever the Pod answers.
"""

import asyncio
import errno
import ipaddress
import os
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Final, Self

import aiohttp
from yarl import URL

from autowasm.controller.pods import envoystats
from autowasm.controller.pods.envoystats import ReadFailure, Reading, UnreadStats
from autowasm.controller.pods.podmatching import Pod, has_ended, in_steps
from autowasm.flowcontrol import TokenBucket
from autowasm.limits import StatsLimits
from autowasm.telemetry.metrics import Metrics

_READ: Final = "read"
"""The result of a successful reading, in metrics."""


class StatsReader:
    """One per process: an async context manager that holds the HTTP session. No connection outlives its request."""

    def __init__(
        self,
        *,
        is_shared: Callable[[Pod], bool],
        limits: StatsLimits,
        metrics: Metrics,
        port: int = envoystats.PORT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_shared`: whether another Pod has an address of this one. `clock` in seconds, monotonic."""
        self._is_shared = is_shared
        self._limits = limits
        self._metrics = metrics
        self._port = port
        self._clock = clock
        self._bucket = TokenBucket(rate=limits.rate, burst=limits.burst, clock=clock)
        self._slots = asyncio.Semaphore(limits.concurrent)
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # The semaphore is the limit of connections.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            headers={"accept-encoding": "identity", "connection": "close"},
            timeout=aiohttp.ClientTimeout(total=None),  # `_page` has the deadline
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

    async def read(self, pods: Iterable[Pod]) -> dict[bytes, Reading]:
        """Read each Pod once. Returns the readings by the uid of the Pod. Takes 1 / `rate` s for each, plus at most `deadline` s.

        Pods may change during the iteration: each is checked just before it is read.
        """
        readings: dict[bytes, Reading] = {}
        left = iter(pods)

        async def work(left: Iterator[Pod]) -> None:
            for pod in left:
                readings[pod.uid] = await self.read_pod(pod)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._limits.concurrent):
                tasks.create_task(work(left), name="read sidecars")
        return readings

    async def read_pod(self, pod: Pod) -> Reading:
        """Read one Pod."""
        url = self._url(pod)
        reading = url if isinstance(url, UnreadStats) else await self._in_turn(url)
        result = reading.why.value if isinstance(reading, UnreadStats) else _READ
        self._metrics.sidecar_reads.labels(result).inc()
        return reading

    def _url(self, pod: Pod) -> URL | UnreadStats:
        if not pod.injected:
            return UnreadStats(ReadFailure.NO_SIDECAR)
        if not pod.addresses or has_ended(pod):
            return UnreadStats(ReadFailure.NO_ADDRESS)
        if self._is_shared(pod):
            return UnreadStats(ReadFailure.SHARED_ADDRESS)
        try:
            address = ipaddress.ip_address(pod.addresses[0])
        except ValueError:
            return UnreadStats(ReadFailure.NO_ADDRESS)
        host = f"[{address}]" if address.version == 6 else str(address)
        return URL(f"http://{host}:{self._port}{envoystats.TARGET}", encoded=True)

    async def _in_turn(self, url: URL) -> Reading:
        async with self._slots:
            if wait := self._bucket.reserve():
                await asyncio.sleep(wait)
            begun = self._clock()
            page = await self._page(url)
            self._metrics.sidecar_read_seconds.observe(max(0.0, self._clock() - begun))
        if isinstance(page, UnreadStats):
            return page
        if not envoystats.is_prometheus(page):
            return UnreadStats(ReadFailure.NOT_PROMETHEUS)
        return await in_steps(envoystats.parse_in_steps(page, read_at=begun))

    async def _page(self, url: URL) -> bytes | UnreadStats:
        try:
            async with (
                asyncio.timeout(self._limits.deadline),
                self._session.get(url, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    return UnreadStats(ReadFailure.STATUS, str(response.status))
                return await self._body(response)
        except TimeoutError:
            return UnreadStats(ReadFailure.TIMEOUT)
        except aiohttp.ClientConnectorError as error:
            # asyncio's own text contains the address.
            return UnreadStats(ReadFailure.REFUSED, os.strerror(error.errno or errno.ECONNREFUSED))
        except (aiohttp.ClientError, OSError, ValueError):
            return UnreadStats(ReadFailure.BROKEN)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes | UnreadStats:
        page = bytearray()
        async for chunk in response.content.iter_any():
            page += chunk
            if len(page) > self._limits.page_bytes:
                return UnreadStats(ReadFailure.TOO_LARGE, str(self._limits.page_bytes))
        return bytes(page)
