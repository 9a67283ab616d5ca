"""ObjectSession: streams a module from an http(s) server with aiohttp (`spec.filter.source.object`).

Not for registries (`registry/`), and not a cache. Invariants: the address policy judges the address that is really
connected to, redirects included; every wait has an end (connect, answer, minimum rate, whole fetch); bytes arrive as the
server stored them, never decompressed on the way; no cookie or `.netrc` is used, and of the server no proxy; no URL's query reaches a message.
"""

import asyncio
import contextlib
import contextvars
import datetime
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
import yarl

from autowasm.errors import AddressBlocked, Advice, SourceUnavailable
from autowasm.limits import Limits
from autowasm.net import servermessage, tls
from autowasm.net.answers import Answerer, error_for
from autowasm.net.failures import certificate_failure, chain, may_be_tls, tls_failure
from autowasm.net.policy import AddressPolicy, Purpose
from autowasm.net.pools import Pools
from autowasm.net.proxy import DIRECT, Proxies
from autowasm.net.resolving import PoolResolver
from autowasm.net.servermessage import BODY_LIMIT, ServerMessage
from autowasm.net.signatures import is_signed, query_secrets, signature_hint
from autowasm.net.stream import NO_VALIDATORS, ObjectStream, Validators, too_large
from autowasm.net.urls import check_web_url, next_hop, redact
from autowasm.settings import Outgoing

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(slots=True)
class _Attempt:
    """What one request's connecting came to: aiohttp lets only an OSError through, and merges several of them."""

    host: str
    blocked: AddressBlocked | None = None
    tried: bool = False
    """An allowed address was tried: if that failed too, its failure is the news."""


_attempt: contextvars.ContextVar[_Attempt] = contextvars.ContextVar("autowasm_object_attempt")


def _any_host(host: str) -> None:
    """No rule about hosts."""


class ObjectSession:
    """An async context manager; make one for each process. Requests share nothing but the trusted authorities."""

    def __init__(
        self,
        *,
        outgoing: Outgoing,
        limits: Limits,
        pools: Pools,
        policy: AddressPolicy | None,
        resolver: Callable[..., Any] = socket.getaddrinfo,
        on_request: Callable[[str], None] = lambda _: None,
        proxies: Proxies = DIRECT,
    ) -> None:
        """`proxies` are for `wasmc` only: behind one, `policy` could not judge the address (`proxy.py`). `on_request` hears of each request's `HOST[:PORT]`. `policy` None: every address may be reached. `resolver` is the system's but in tests."""
        self._trust = tls.Trust(outgoing, may_be_insecure=False)
        self._advice = outgoing.advice
        self._proxies = proxies
        self._resolver = resolver
        self._on_request = on_request
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
    async def stream_get(
        self,
        url: str,
        *,
        validators: Validators = NO_VALIDATORS,
        check_host: Callable[[str], None] = _any_host,
    ) -> AsyncIterator[ObjectStream]:
        """GET `url`. The block has `limits.fetch_timeout` seconds from the first connection to its own end.

        With `validators` the answer may be "unchanged" (304): then the stream says so and has no body. `check_host` is asked
        about `HOST[:PORT]` before each hop, the first included, and raises what it finds wrong. Raises SourceNotFound (`ObjectNotFound`), SourceDenied, SourceUnavailable (`ObjectUnavailable`, `Timeout`,
        `TooManyRedirects`, `UnexpectedAnswer`), AddressBlocked, ContentRejected (`TooLarge`, by announced size).
        """
        session = await self._open()
        try:
            async with asyncio.timeout(self._limits.fetch_timeout) as whole:
                response = await self._follow(
                    session, url, headers=validators.headers(), check_host=check_host
                )
                try:
                    announced = response.content_length
                    if announced is not None and announced > self._limits.layer_bytes:
                        raise too_large(redact(url), limit=self._limits.layer_bytes)
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

    async def _follow(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        headers: Mapping[str, str],
        check_host: Callable[[str], None],
    ) -> aiohttp.ClientResponse:
        check_web_url(url, what="the object's URL")
        for hops in range(1, self._limits.redirects + 2):
            check_host(urlsplit(url).netloc.lower())
            response = await self._request(session, url, headers)
            if response.status == 200 or (response.status == 304 and headers):
                return response
            if response.status not in _REDIRECTS:
                said = await self._message(response, url)
                answerer = _answerer(
                    url, said, now=datetime.datetime.now(datetime.UTC), redirected=hops > 1
                )
                raise error_for(response.status, response.headers, answerer=answerer, said=said)
            response.close()  # not read: a page may be endless
            url = next_hop(
                url, response.headers.get("Location"), hops=hops, limit=self._limits.redirects
            )
        raise AssertionError("unreachable: next_hop ends the loop")

    async def _message(self, response: aiohttp.ClientResponse, url: str) -> ServerMessage:
        """What the beginning of an error's body says. Raises nothing of it."""
        data = bytearray()
        try:
            async with asyncio.timeout(self._limits.error_body_timeout):
                while len(data) < BODY_LIMIT and (chunk := await response.content.readany()):
                    data += chunk
        except (TimeoutError, aiohttp.ClientError, OSError):
            pass  # the status is known, and so is what came
        finally:
            response.close()
        return servermessage.parse(
            bytes(data), response.headers.get("Content-Type", ""), secrets=query_secrets(url)
        )

    async def _request(
        self, session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        shown = redact(url)
        attempt = _Attempt(host=urlsplit(url).hostname or "")
        token = _attempt.set(attempt)
        try:
            # encoded: a signed query must arrive as it was signed.
            target = yarl.URL(url, encoded=url.isascii() and " " not in url)
            async with asyncio.timeout(self._limits.answer_timeout):
                trusted = await self._trusted(target)
                self._on_request(urlsplit(url).netloc.lower())
                proxy = self._proxies.proxy_for(
                    target.host or "", target.port or 80, tls=target.scheme == "https"
                )
                return await session.get(
                    target,
                    allow_redirects=False,
                    headers=headers,
                    ssl=trusted,
                    proxy=proxy.url if proxy is not None else None,
                    proxy_headers=proxy.headers if proxy is not None else None,
                )
        except TimeoutError as error:  # ours, and aiohttp's own for connecting
            raise SourceUnavailable(
                f"{shown}: no answer within {self._limits.answer_timeout:g} s", reason="Timeout"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if attempt.blocked is not None and not attempt.tried:
                raise attempt.blocked from error
            raise _unavailable(shown, error, advice=self._advice) from error
        finally:
            _attempt.reset(token)

    async def _trusted(self, target: yarl.URL) -> ssl.SSLContext | bool:
        if target.scheme != "https" or not target.host:
            return True
        return await self._pools.disk.run(self._trust.context, target.host, target.port)

    async def _open(self) -> aiohttp.ClientSession:
        async with self._opening:
            if self._session is None:
                self._session = self._make_session()
            return self._session

    def _make_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=PoolResolver(
                self._pools.names, self._resolver, timeout=self._limits.dns_timeout
            ),
            socket_factory=self._make_socket,
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
                self._policy.check(
                    str(address[0]), purpose=Purpose.OBJECT, host=attempt.host, port=address[1]
                )
            except AddressBlocked as error:
                attempt.blocked = error
                raise _BlockedSocketError(str(error)) from error
        attempt.tried = True
        return socket.socket(family, kind, protocol)


class _BlockedSocketError(OSError):
    """AddressBlocked in the only form that aiohttp passes on."""


def _unavailable(shown: str, error: Exception, *, advice: Advice) -> SourceUnavailable:
    if isinstance(error, aiohttp.ClientConnectorCertificateError) and isinstance(
        error.certificate_error, ssl.SSLCertVerificationError
    ):
        return certificate_failure(
            error.certificate_error, where=shown, advice=advice, may_be_insecure=False
        )
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return tls_failure(error.os_error, where=shown, plain_http="http:// in its URL")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return SourceUnavailable(
            f"{shown}: the proxy opens no tunnel: status {error.status}", reason="ProxyRefused"
        )
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        reason = _in_words(error.os_error)
        return SourceUnavailable(
            f"{shown}: cannot connect to the proxy {error.host}:{error.port} ({reason})",
            reason="ObjectUnavailable",
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = _in_words(error.os_error)
        return SourceUnavailable(f"{shown}: cannot connect ({reason})", reason="ObjectUnavailable")
    if isinstance(
        error, ValueError
    ):  # of yarl, or aiohttp's InvalidURL: a port or a name that cannot be
        return SourceUnavailable(
            f"{shown}: this is not a URL that can be asked; check its host",
            reason="ObjectUnavailable",
        )
    for found in chain(error):
        # In TLS 1.3 a server asks for a client certificate after the handshake.
        if isinstance(found, ssl.SSLError) and not isinstance(found, ssl.SSLEOFError):
            return tls_failure(found, where=shown, plain_http="http:// in its URL")
    hint = ""
    if shown.startswith("http:") and any(map(_is_end_of_plain_http, chain(error))):
        hint = (
            "; it was asked in plain http, and such an end is usual for a port that speaks TLS (https): if it does, "
            "write https:// in its URL"
        )
    return SourceUnavailable(
        f"{shown}: the server's answer broke off or was not HTTP ({type(error).__name__}){hint}",
        reason="ObjectUnavailable",
    )


def _is_end_of_plain_http(error: BaseException) -> bool:
    """The library has its own names for what `may_be_tls` knows."""
    return may_be_tls(error) or isinstance(
        error, aiohttp.ServerDisconnectedError | aiohttp.http_exceptions.BadStatusLine
    )


def _in_words(error: OSError) -> str:
    if error.errno is not None and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)  # asyncio's own text names a call and a tuple
    return error.strerror or str(error) or "unknown reason"


def _answerer(
    url: str, said: ServerMessage, *, now: datetime.datetime, redirected: bool
) -> Answerer:
    hint = signature_hint(url, said, now=now, redirected=redirected)
    # Azure answers 409 where a storage account has no public access.
    is_denial = said.mentions("expire", "publicaccessnotpermitted")
    return Answerer(
        what=redact(url),
        not_found="ObjectNotFound",
        unavailable="ObjectUnavailable",
        denied_hint=hint,
        not_found_hint=""
        if is_signed(url)
        else "objects are fetched without credentials: if it is private, use a signed URL",
        unexpected_hint=hint if is_denial else "",
        tls_hint="write https:// in its URL" if url.lower().startswith("http:") else "",
    )
