"""Published modules that could not be fetched again, because the address policy refuses their hosts (ADR 0031).

Not the policy (`net/addresspolicy.py`), which judges each connection. What is published needs no registry while a replica has the
module, so an operator who upgrades without the flag that is missing would learn of it when the last cache is lost.
Invariants: names are looked up and nothing is connected to; nothing that is published changes.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from autowasm.api.record import Record
from autowasm.errors import AddressBlocked
from autowasm.net.addresspolicy import AddressPolicy, Purpose
from autowasm.net.hosts import names_host, split_port
from autowasm.net.pools import Pool
from autowasm.net.proxy import Proxy, ProxyRules, written_addresses
from autowasm.reference import DOCKER_HUB, ImageReference
from autowasm.settings import Outgoing

_log = structlog.get_logger(__name__)

_AT_ONCE: Final = 4
"""Lookups at one time: half of the names pool, which fetches use, too."""

Host = tuple[Purpose, str, int]


async def warn_of_refused(
    records: Iterable[Record],
    *,
    outgoing: Outgoing,
    names: Pool,
    timeout: float,
    resolver: Callable[..., Any] = socket.getaddrinfo,
) -> None:
    """Log one warning for each host that is refused. `timeout` in seconds, for one lookup; a name that has no answer is passed over."""
    policy = AddressPolicy.of(outgoing)
    proxies = ProxyRules(Proxy.parse(outgoing.proxy) if outgoing.proxy else None, outgoing.no_proxy)
    counts = Counter(host for record in records if (host := _host_of(record, outgoing)) is not None)
    places = asyncio.Semaphore(_AT_ONCE)

    async def addresses(purpose: Purpose, host: str, port: int) -> list[str]:
        if purpose is Purpose.REGISTRY and proxies.proxy_for(host, port) is not None:
            return list(written_addresses(host))
        async with places, asyncio.timeout(timeout):
            found = await names.run(resolver, host, port, type=socket.SOCK_STREAM)
        return [str(address[0]) for *_, address in found]

    async def look(where: Host, modules: int) -> None:
        purpose, host, port = where
        refused: AddressBlocked | None = None
        try:
            for address in await addresses(purpose, host, port):
                try:
                    policy.check(address, purpose=purpose, host=host, port=port)
                except AddressBlocked as error:
                    refused = error
                else:
                    return  # one that may be connected to is enough
        except (OSError, UnicodeError):  # TimeoutError is an OSError
            return
        if refused is not None:
            _log.warning(
                "published modules could not be fetched again",
                host=host,
                port=port,
                modules=modules,
                error=str(refused),
            )

    async with asyncio.TaskGroup() as looks:
        for where, modules in counts.items():
            looks.create_task(look(where, modules), name=f"address of {where[1]}")


def _host_of(record: Record, outgoing: Outgoing) -> Host | None:
    """Where the module would be fetched from; None for a record that cannot be read, and for Docker Hub, which is public."""
    try:
        if record.url:
            parts = urlsplit(record.url)
            port = parts.port or (80 if parts.scheme.lower() == "http" else 443)
            return (Purpose.OBJECT, parts.hostname, port) if parts.hostname else None
        host = ImageReference.parse(record.image).host
    except ValueError:
        return None
    if host == DOCKER_HUB:
        return None
    name, port_ = split_port(host)
    default = 80 if names_host(outgoing.plain_http, host) else 443
    return Purpose.REGISTRY, name.strip("[]"), int(port_ or default)
