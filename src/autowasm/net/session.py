"""ObjectSession: streams a module from an http(s) server with aiohttp (`spec.filter.source.object`).

Not for registries (`registry/`), and not a cache. Invariants: the address policy judges the address that is really
connected to, redirects included; every wait has an end (connect, answer, minimum rate, whole fetch); bytes arrive as the
server stored them, never decompressed on the way; no cookie, proxy or `.netrc` is used; no URL's query reaches a message.
"""

import asyncio
import contextlib
import contextvars
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
import aiohttp.abc
import yarl

from autowasm.errors import AddressBlocked, ContentRejected, SourceUnavailable
from autowasm.net import tls
from autowasm.net.answers import Answerer, error_for
from autowasm.net.policy import AddressPolicy, Purpose
from autowasm.net.pools import Pool, Pools
from autowasm.net.transfer import RateWatch, too_slow
from autowasm.net.urls import check_web_url, next_hop, redact
from autowasm.settings import Limits, Outgoing
from autowasm.units import format_size

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(slots=True)
class _Attempt:
    """What one request's connecting came to: aiohttp lets only an OSError through, and merges several of them."""

    host: str
    blocked: AddressBlocked | None = None
    tried: bool = False
    """An allowed address was tried: if that failed too, its failure is the news."""


_attempt: contextvars.ContextVar[_Attempt] = contextvars.ContextVar("autowasm_object_attempt")


class ObjectStream:
    """An answer with status 200: its validators, and its body to be iterated once, in chunks."""

    def __init__(self, response: aiohttp.ClientResponse, *, limits: Limits) -> None:
        self._response = response
        self._limits = limits
        self.url = str(response.url)
        """After redirects; may hold a signed query: `redact` it before it is shown."""
        self.etag = response.headers.get("ETag")
        self.last_modified = response.headers.get("Last-Modified")
        self.content_length = response.content_length
        """As the server announced it, in bytes. Not to be trusted."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Chunks of the body. Raises ContentRejected (`TooLarge`) and SourceUnavailable (`TooSlow`, cut short)."""
        what = redact(self.url)
        limit = self._limits.layer_bytes
        window = self._limits.minimum_rate_after
        watch = RateWatch(minimum=self._limits.minimum_rate, window=window)
        total, waited = 0, 0.0
        watch.is_too_slow(waited, total)
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(window):
                    chunk = await self._response.content.readany()
            except TimeoutError as error:
                raise too_slow(what, limits=self._limits) from error
            except (aiohttp.ClientError, OSError) as error:
                raise SourceUnavailable(
                    f"{what}: the connection broke after {total} bytes ({type(error).__name__})",
                    reason="ObjectUnavailable",
                ) from error
            if not chunk:
                return
            # Only the time that the server took counts, not what the caller does between two chunks.
            waited += time.monotonic() - began
            total += len(chunk)
            if total > limit:
                raise _too_large(what, limit=limit)
            if watch.is_too_slow(waited, total):
                raise too_slow(what, limits=self._limits)
            yield chunk


class ObjectSession:
    """An async context manager; make one for each process. Requests share nothing but the trusted authorities."""

    def __init__(
        self, *, outgoing: Outgoing, limits: Limits, pools: Pools, policy: AddressPolicy | None
    ) -> None:
        """`policy` None: every address may be reached."""
        self._outgoing = outgoing
        self._limits = limits
        self._pools = pools
        self._policy = policy
        self._session: aiohttp.ClientSession | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close connections. Streams in use break."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @contextlib.asynccontextmanager
    async def stream_get(self, url: str) -> AsyncIterator[ObjectStream]:
        """GET `url`. The block has `limits.fetch_timeout` seconds from the first connection to its own end.

        Raises SourceNotFound (`ObjectNotFound`), SourceDenied, SourceUnavailable (`ObjectUnavailable`, `Timeout`,
        `TooManyRedirects`, `UnexpectedAnswer`), AddressBlocked, ContentRejected (`TooLarge`, by announced size).
        """
        session = await self._open()
        try:
            async with asyncio.timeout(self._limits.fetch_timeout) as whole:
                response = await self._follow(session, url)
                try:
                    announced = response.content_length
                    if announced is not None and announced > self._limits.layer_bytes:
                        raise _too_large(redact(url), limit=self._limits.layer_bytes)
                    yield ObjectStream(response, limits=self._limits)
                finally:
                    response.close()
        except TimeoutError as error:
            if not whole.expired():
                raise
            raise SourceUnavailable(
                f"{redact(url)}: not finished within {self._limits.fetch_timeout:g} s",
                reason="Timeout",
            ) from error

    async def _follow(self, session: aiohttp.ClientSession, url: str) -> aiohttp.ClientResponse:
        check_web_url(url, what="the object's URL")
        for hops in range(1, self._limits.redirects + 2):
            response = await self._request(session, url)
            if response.status == 200:
                return response
            response.close()  # not read: an error page may be endless
            if response.status not in _REDIRECTS:
                raise error_for(response.status, response.headers, answerer=_answerer(url))
            url = next_hop(
                url, response.headers.get("Location"), hops=hops, limit=self._limits.redirects
            )
        raise AssertionError("unreachable: next_hop ends the loop")

    async def _request(self, session: aiohttp.ClientSession, url: str) -> aiohttp.ClientResponse:
        shown = redact(url)
        attempt = _Attempt(host=urlsplit(url).hostname or "")
        token = _attempt.set(attempt)
        try:
            # encoded: a signed query must arrive as it was signed.
            target = yarl.URL(url, encoded=url.isascii() and " " not in url)
            async with asyncio.timeout(self._limits.answer_timeout):
                return await session.get(target, allow_redirects=False)
        except TimeoutError as error:  # ours, and aiohttp's own for connecting
            raise SourceUnavailable(
                f"{shown}: no answer within {self._limits.answer_timeout:g} s", reason="Timeout"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if attempt.blocked is not None and not attempt.tried:
                raise attempt.blocked from error
            raise _unavailable(shown, error) from error
        finally:
            _attempt.reset(token)

    async def _open(self) -> aiohttp.ClientSession:
        async with self._opening:
            if self._session is None:
                context = await self._pools.disk.run(
                    tls.client_context, ca_file=self._outgoing.ca_file
                )
                self._session = self._make_session(context)
            return self._session

    def _make_session(self, context: ssl.SSLContext) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=_PoolResolver(self._pools.names, timeout=self._limits.dns_timeout),
            socket_factory=self._make_socket,
            ssl=context,
            use_dns_cache=False,
            force_close=True,  # fetches are rare: a kept connection would only age
            limit=0,  # how many fetches run is decided before they come here
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect_timeout),
            headers={"Accept-Encoding": "identity", "User-Agent": "autowasm"},
            trust_env=False,
            auto_decompress=False,
            read_bufsize=self._limits.transfer_chunk,
        )

    def _make_socket(self, candidate: tuple[Any, Any, int, str, Any]) -> socket.socket:
        family, kind, protocol, _, address = candidate
        attempt = _attempt.get()
        if self._policy is not None:
            try:
                self._policy.check(str(address[0]), purpose=Purpose.OBJECT, host=attempt.host)
            except AddressBlocked as error:
                attempt.blocked = error
                raise _BlockedSocketError(str(error)) from error
        attempt.tried = True
        return socket.socket(family, kind, protocol)


class _BlockedSocketError(OSError):
    """AddressBlocked in the only form that aiohttp passes on."""


class _PoolResolver(aiohttp.abc.AbstractResolver):
    """getaddrinfo in the names pool, with a bounded wait; never in the default executor."""

    def __init__(self, names: Pool, *, timeout: float) -> None:
        self._names = names
        self._timeout = timeout

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[aiohttp.abc.ResolveResult]:
        """Addresses of `host`. Raises OSError."""
        lookup = self._names.run(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
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


def _unavailable(shown: str, error: Exception) -> SourceUnavailable:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        problem = getattr(error.certificate_error, "verify_message", "") or "not valid"
        return SourceUnavailable(
            f"{shown}: its certificate is not trusted ({problem}); name its authority with a CA file",
            reason="CertificateInvalid",
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = _in_words(error.os_error)
        return SourceUnavailable(f"{shown}: cannot connect ({reason})", reason="ObjectUnavailable")
    if isinstance(error, aiohttp.InvalidURL):
        return SourceUnavailable(
            f"{shown}: this is not a URL that can be asked; check its host",
            reason="ObjectUnavailable",
        )
    return SourceUnavailable(
        f"{shown}: the server's answer broke off or was not HTTP ({type(error).__name__})",
        reason="ObjectUnavailable",
    )


def _in_words(error: OSError) -> str:
    if error.errno is not None and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)  # asyncio's own text names a call and a tuple
    return error.strerror or str(error) or "unknown reason"


def _answerer(url: str) -> Answerer:
    return Answerer(
        what=redact(url),
        not_found="ObjectNotFound",
        unavailable="ObjectUnavailable",
        denied_hint="objects are fetched without credentials: use a URL that needs none, or a signed one",
    )


def _too_large(what: str, *, limit: int) -> ContentRejected:
    return ContentRejected(f"{what}: larger than {format_size(limit)}", reason="TooLarge")
