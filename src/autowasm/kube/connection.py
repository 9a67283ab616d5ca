"""Connection: a pool of connections to one API server, with one identity and one way of TLS.

kubernetes_asyncio makes TLS of its configuration; the calls are aiohttp's own. Its session would look for a .netrc in a
thread of the default executor before every call (`trust_env`), and its client copies each body before it encodes it.
Not the choice of what to do with an answer (`client.py`). Invariant: closed once it was replaced and its last call ended.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies_environment

import aiohttp
import msgspec

from autowasm.kube import library
from autowasm.kube.calls import JSON, Call
from autowasm.net.proxy import NoProxy
from autowasm.net.tls import check_chains_as_curl

if TYPE_CHECKING:
    from kubernetes_asyncio.client import Configuration

_READ_BUFFER: Final = 2 * 1024 * 1024
"""Bytes. As kubernetes_asyncio has it: an event with an object of etcd's largest size fits."""
_encoder = msgspec.json.Encoder()


class Connection:
    """`fingerprint` tells which settings it was made with. The token may change while it is open."""

    def __init__(
        self, configuration: "Configuration", *, fingerprint: str, user_agent: str
    ) -> None:
        self.fingerprint = fingerprint
        self.configuration = configuration
        self._user_agent = user_agent
        self._rest = library.load().rest.RESTClientObject(configuration)
        connector = self._rest.pool_manager.connector
        # kubernetes_asyncio keeps its context to itself, and has a switch for one of the two flags only.
        check_chains_as_curl(connector._ssl)
        self._session = aiohttp.ClientSession(
            connector=connector,
            connector_owner=False,
            read_bufsize=_READ_BUFFER,
        )
        self._proxy = configuration.proxy or _proxy_for(str(configuration.host))
        self._users = 0
        self._retired = False

    @asynccontextmanager
    async def send(
        self, call: Call, deadlines: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, whatever its status; released at the end. Raises what aiohttp raises."""
        self._users += 1
        configuration = self.configuration
        headers = {
            "Accept": JSON,
            # Compressed lists would spare a network that is fast, and cost processor time on both sides.
            "Accept-Encoding": "identity",
            "User-Agent": self._user_agent,
        }
        if call.body is not None:
            headers["Content-Type"] = call.content_type
        query = "?" + urlencode(call.query) if call.query else ""
        try:
            token = await configuration.get_api_key_with_prefix("BearerToken")
            if token:
                headers["Authorization"] = token
            async with self._session.request(
                call.method,
                f"{configuration.host}{call.path}{query}",
                headers=headers,
                data=None if call.body is None else _encoder.encode(call.body),
                timeout=deadlines,
                proxy=self._proxy,
                proxy_headers=configuration.proxy_headers,
                server_hostname=configuration.tls_server_name or None,
                allow_redirects=False,
            ) as response:
                yield response
        finally:
            self._users -= 1
            await self._close_if_unused()

    async def retire(self) -> None:
        """Close it as soon as nobody uses it."""
        self._retired = True
        await self._close_if_unused()

    async def close(self) -> None:
        """Close it now; calls under way break off."""
        await self._session.close()
        await self._rest.close()

    async def _close_if_unused(self) -> None:
        if self._retired and self._users == 0:
            await self.close()


def _proxy_for(url: str) -> str | None:
    """As the environment has it (HTTPS_PROXY, NO_PROXY), but never for a loopback host: golang.org/x/net/http/httpproxy."""
    parts, environment = urlsplit(url), getproxies_environment()
    exceptions = NoProxy.parse(environment.get("no", ""))
    port = parts.port or (443 if parts.scheme == "https" else 80)
    direct = exceptions.covers(parts.hostname or "", port)
    return None if direct else environment.get(parts.scheme)
