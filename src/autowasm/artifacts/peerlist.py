"""PeerList: where the other replicas are: a fixed list, or what DNS says of the headless Service.

Not what is asked of them (`peers.py`). Invariants: a name server that fails changes nothing: the last list stays; an address
that was found to be our own is left out until it goes.
"""

import asyncio
import ipaddress
import random
import socket
from collections.abc import Callable

import structlog

from autowasm.net.pools import Pools
from autowasm.settings import PeerSettings

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
    """The list that `run` keeps up to date."""

    def __init__(
        self, settings: PeerSettings, *, pools: Pools, resolve: Resolve = addresses_of
    ) -> None:
        self._settings = settings
        self._pools = pools
        self._resolve = resolve
        self._urls: tuple[str, ...] = settings.urls
        self._ourselves: set[str] = set()
        self._failing = False
        self._wanted = asyncio.Event()
        self._settled = asyncio.Event()
        if settings.urls or not settings.host:
            self._settled.set()

    def known(self) -> tuple[str, ...]:
        """Base URLs (`http://ADDRESS:PORT`) of the others as far as known."""
        return tuple(url for url in self._urls if url not in self._ourselves)

    def is_us(self, url: str) -> None:
        """We have answered ourselves there."""
        self._ourselves.add(url)

    def refresh(self) -> None:
        """Look again now: nobody of the list could help."""
        self._wanted.set()

    async def run(self) -> None:
        """Look names up every `lookup_interval` seconds, for ever; at once, but not more than once a second, when asked."""
        settings = self._settings
        if not settings.host or settings.urls:
            return
        while True:
            await self._look_up(settings.host, settings.port)
            self._settled.set()
            await asyncio.sleep(settings.lookup_pause)
            self._wanted.clear()
            try:
                async with asyncio.timeout(settings.lookup_interval * random.uniform(0.8, 1.2)):  # noqa: S311  # jitter
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def settled(self) -> None:
        """Return once names were looked up for the first time, whatever came of it: a start asks its peers before anybody else.

        Needs `run`; takes `lookup_timeout` seconds at most.
        """
        await self._settled.wait()

    async def _look_up(self, host: str, port: int) -> None:
        try:
            async with asyncio.timeout(self._settings.lookup_timeout):
                found = await self._pools.names.run(self._resolve, host, port)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            if not self._failing:
                _log.warning("peers not found", host=host, reason=str(error) or "no answer in time")
            self._failing = True
            return
        self._failing = False
        urls = tuple(sorted(dict.fromkeys(found))[: self._settings.most])
        if urls != self._urls:
            self._urls = urls
            self._ourselves &= set(urls)
            _log.info("peers changed", peers=list(self.known()))
