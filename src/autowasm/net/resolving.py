"""PoolResolver: aiohttp's name lookups in the names pool, with a bounded wait; never in the default executor.

Not a cache and not a judge of addresses (`policy.py`, asked where the socket is made). Invariant: what it found is what is
connected to; a name is never looked up a second time for the same connection.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import aiohttp.abc

from autowasm.net.pools import Pool


class PoolResolver(aiohttp.abc.AbstractResolver):
    """getaddrinfo in the names pool, with a bounded wait; never in the default executor."""

    def __init__(self, names: Pool, resolver: Callable[..., Any], *, timeout: float) -> None:
        self._names = names
        self._resolver = resolver
        self._timeout = timeout

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[aiohttp.abc.ResolveResult]:
        """Addresses of `host`. Raises OSError."""
        lookup = self._names.run(self._resolver, host, port, family, socket.SOCK_STREAM)
        try:
            found = await asyncio.wait_for(lookup, self._timeout)
        except TimeoutError as error:
            raise OSError(f"no answer from the name service in {self._timeout:g} s") from error
        except UnicodeError as error:
            raise OSError("not a host name") from error
        return [
            {
                "hostname": host,
                "host": str(address[0]),
                "port": port,
                "family": kind,
                "proto": protocol,
                "flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            }
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Nothing is held."""
