"""ObjectSession: streams a module from an http(s) server with aiohttp (`spec.filter.source.object`).

Not for registries (see `registry/`), and not a cache. Invariants: the address policy checks the address that is connected to,
redirects included; a name is resolved once for each connection, in the names pool; every wait has an end (connect, response,
minimum rate, whole fetch); a body is limited to `limits.layer_bytes` and the minimum rate; bytes arrive as the server stored
them, never decompressed; no cookie, no `.netrc` and, in the server, no proxy is used; no query of a URL reaches a message,
and only the expiry of a signature is read (`query_secrets` returns values only for their removal from messages).

Sources for signed URLs: AWS Signature Version 4 (`X-Amz-Date`, `X-Amz-Expires`) and 2 (`Expires`), Google Cloud Storage V4
(`X-Goog-Date`, `X-Goog-Expires`), Tencent COS (`q-sign-time=START;END`), Alibaba OSS (`Expires`, `x-oss-date`), Azure SAS
(`se`), CloudFront (`Expires`).
"""

import asyncio
import contextlib
import contextvars
import datetime
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qsl, unquote_plus, urlsplit

import aiohttp
import aiohttp.abc
import yarl

from autowasm.errors import AddressBlocked, Advice, ContentRejected, SourceUnavailable
from autowasm.limits import Limits
from autowasm.net import tls
from autowasm.net.addresspolicy import AddressPolicy, Purpose
from autowasm.net.errors import (
    BODY_LIMIT,
    Responder,
    ServerMessage,
    causes_of,
    certificate_failure,
    error_for,
    may_be_tls,
    parse_message,
    tls_failure,
)
from autowasm.net.pools import Pool, Pools
from autowasm.net.proxy import DIRECT, Proxies
from autowasm.net.transfer import RateWatch, too_slow
from autowasm.net.urls import check_web_url, next_hop, redact
from autowasm.reasons import Reason
from autowasm.settings import Outgoing
from autowasm.units import format_size

_SIGNATURES: Final = frozenset(
    {
        "x-amz-signature",
        "x-goog-signature",
        "x-oss-signature",
        "q-signature",
        "signature",
        "sig",
        "sign",
        "x-amz-expires",
        "x-goog-expires",
        "x-amz-security-token",
        "policy",
        "token",
        "access_token",
        "private_token",
        "job_token",
        "jwt",
    }
)
_MIN_VALUE_LENGTH: Final = 8
"""Characters. Shorter values (`60`, `v4`) are not secrets, and occur in ordinary messages."""


def signature_hint(
    url: str, message: ServerMessage, *, now: datetime.datetime, redirected: bool = False
) -> str:
    """The advice for a refused object. Objects are fetched without credentials.

    `redirected`: `url` is not in the spec; the server of the spec's URL redirected to it.
    """
    if redirected and is_signed(url):
        return "the server that redirects there must sign the URL again: the signature has expired or is refused"
    if not is_signed(url):
        return "objects are fetched without credentials: use a URL that needs none, or a signed one"
    until = signed_until(url)
    if until is not None and until <= now:
        return (
            f"the signature in its URL has expired at {until:%Y-%m-%dT%H:%M:%SZ}; put a new URL into the spec, or use one that "
            "does not expire"
        )
    if message.mentions("not valid yet", "not yet valid"):
        return "the signature in its URL is not valid yet; check the clock of the machine that signed it"
    if message.mentions("expire"):
        return "the signature in its URL has expired; put a new URL into the spec, or use one that does not expire"
    return "the signature in its URL is refused: it may have expired, or the URL was changed after it was signed"


def is_signed(url: str) -> bool:
    """Whether the query has the fields of a signature."""
    return not _SIGNATURES.isdisjoint(_fields(url))


def query_secrets(url: str) -> tuple[str, ...]:
    """The values of the query, encoded and decoded: a server may echo them."""
    with contextlib.suppress(ValueError):
        written = [part.partition("=")[2] for part in urlsplit(url).query.split("&")[:200]]
        forms = dict.fromkeys([*written, *map(unquote_plus, written)])
        return tuple(value for value in forms if len(value) >= _MIN_VALUE_LENGTH)
    return ()


def signed_until(url: str) -> datetime.datetime | None:
    """The end of the signature's validity as in the URL; None if the URL has none."""
    fields = _fields(url)
    if "q-sign-time" in fields:
        return _at(fields["q-sign-time"].rpartition(";")[2])
    for prefix in ("x-amz", "x-goog", "x-oss"):
        begin = _compact(fields.get(f"{prefix}-date", ""))
        seconds = fields.get(f"{prefix}-expires", "")
        if begin is not None and seconds.isascii() and seconds.isdigit():
            return _later(begin, min(int(seconds[:12]), 10 * 366 * 86400))
    if "se" in fields and "sig" in fields:
        return _iso(fields["se"])
    return _at(fields.get("expires", ""))


def _fields(url: str) -> dict[str, str]:
    """The fields of the query: names in lower case; the first of equal names counts."""
    try:
        pairs = parse_qsl(urlsplit(url).query, keep_blank_values=True, max_num_fields=200)
    except ValueError:
        return {}
    return {name.lower(): value for name, value in reversed(pairs)}


def _at(seconds: str) -> datetime.datetime | None:
    if not (seconds.isascii() and seconds.isdigit()) or len(seconds) > 12:
        return None
    return _later(datetime.datetime.fromtimestamp(0, datetime.UTC), int(seconds))


def _later(begin: datetime.datetime, seconds: int) -> datetime.datetime | None:
    """The time `seconds` after `begin`; None after the year 9999."""
    try:
        return begin + datetime.timedelta(seconds=seconds)
    except OverflowError:
        return None


def _compact(text: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    except ValueError:
        return None


def _iso(text: str) -> datetime.datetime | None:
    try:
        found = datetime.datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).astimezone(
            datetime.UTC
        )
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class Validators:
    """The validators of an earlier response (RFC 9110 section 8.8)."""

    etag: str = ""
    last_modified: str = ""

    def headers(self) -> dict[str, str]:
        """The headers of a conditional request: the entity tag alone if there is one, because a server then ignores the date."""
        if self.etag:
            return {"If-None-Match": self.etag}
        return {"If-Modified-Since": self.last_modified} if self.last_modified else {}


NO_VALIDATORS: Final = Validators()

_MAX_VALIDATOR_LENGTH: Final = 1024
"""Characters; real validators have fewer than 100, and each is stored in an annotation."""


class ObjectStream:
    """A response with status 200 or 304: its validators, and its body, which is iterated once, in chunks."""

    def __init__(self, response: aiohttp.ClientResponse, *, limits: Limits) -> None:
        self._response = response
        self._limits = limits
        self.url = str(response.url)
        """The URL after redirects. It may hold a signed query: `redact` it for messages."""
        self.unchanged = response.status == 304
        """The server confirmed the validators of the request; there is no body."""
        self.etag = _validator(response.headers.get("ETag"))
        self.last_modified = _validator(response.headers.get("Last-Modified"))
        self.content_length = response.content_length
        """The size that the server announced, in bytes. Not verified."""

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
                    reason=Reason.OBJECT_UNAVAILABLE,
                ) from error
            if not chunk:
                return
            # Only the server's time counts, not the caller's between two chunks.
            waited += time.monotonic() - began
            total += len(chunk)
            if total > limit:
                raise too_large(what, limit=limit)
            if watch.is_too_slow(waited, total):
                raise too_slow(what, limits=self._limits)
            yield chunk


def _validator(value: str | None) -> str | None:
    """A validator that can be stored in a record and sent again; None otherwise, so the object is fetched again each time.

    aiohttp decodes bytes above 0x7F to halves of surrogate pairs, which JSON cannot hold.
    """
    if value is None or len(value) > _MAX_VALIDATOR_LENGTH or not value.isascii():
        return None
    return value if value.isprintable() else None


def too_large(what: str, *, limit: int) -> ContentRejected:
    """The error for more bytes than the limit."""
    return ContentRejected(f"{what}: larger than {format_size(limit)}", reason=Reason.TOO_LARGE)


class PoolResolver(aiohttp.abc.AbstractResolver):
    """aiohttp's name lookups: getaddrinfo in the names pool, with a bounded wait, never in the default executor.

    Not a cache. Addresses are checked when the socket is made (`ObjectSession`), on the address that is connected to.
    """

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
        """Does nothing: there is nothing to release."""


_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(slots=True)
class _Attempt:
    """The outcome of one request's connection attempts: aiohttp passes on only OSErrors, and merges several of them."""

    host: str
    blocked: AddressBlocked | None = None
    tried: bool = False
    """An allowed address was tried: if that failed, its failure is reported."""


_attempt: contextvars.ContextVar[_Attempt] = contextvars.ContextVar("autowasm_object_attempt")


def _any_host(host: str) -> None:
    """No rule about hosts."""


class ObjectSession:
    """An async context manager; create one for each process. Requests share only the trusted authorities."""

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
        """`policy` None: every address may be reached. `proxies` are for `wasmc` only: behind one, `policy` cannot check (`proxy.py`).

        `on_request` gets the `HOST[:PORT]` of each request. `resolver` is the system's, except in tests.
        """
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
        """Close the connections, including those of streams in use."""
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

        With `validators` the response may be a 304: the stream is `unchanged` and has no body. `check_host` gets the
        `HOST[:PORT]` of each hop, the first included, before the request, and raises to refuse it. Raises SourceNotFound
        (`ObjectNotFound`), SourceDenied, SourceUnavailable (`ObjectUnavailable`, `Timeout`, `TooManyRedirects`,
        `UnexpectedAnswer`), AddressBlocked, ContentRejected (`TooLarge`, by announced size).
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
                reason=Reason.TIMEOUT,
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
                message = await self._message(response, url)
                answerer = _answerer(
                    url, message, now=datetime.datetime.now(datetime.UTC), redirected=hops > 1
                )
                raise error_for(
                    response.status, response.headers, answerer=answerer, message=message
                )
            response.close()  # not read: a page may be endless
            url = next_hop(
                url, response.headers.get("Location"), hops=hops, limit=self._limits.redirects
            )
        raise AssertionError("unreachable: next_hop ends the loop")

    async def _message(self, response: aiohttp.ClientResponse, url: str) -> ServerMessage:
        """The message at the beginning of an error body. Failures while reading it are ignored."""
        data = bytearray()
        try:
            async with asyncio.timeout(self._limits.error_body_timeout):
                while len(data) < BODY_LIMIT and (chunk := await response.content.readany()):
                    data += chunk
        except (TimeoutError, aiohttp.ClientError, OSError):
            pass  # the status and the bytes so far suffice
        finally:
            response.close()
        return parse_message(
            bytes(data), response.headers.get("Content-Type", ""), secrets=query_secrets(url)
        )

    async def _request(
        self, session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        shown = redact(url)
        attempt = _Attempt(host=urlsplit(url).hostname or "")
        token = _attempt.set(attempt)
        try:
            # encoded=True: a signed query must be sent unchanged.
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
        except TimeoutError as error:  # our timeout, or aiohttp's for connecting
            raise SourceUnavailable(
                f"{shown}: no answer within {self._limits.answer_timeout:g} s",
                reason=Reason.TIMEOUT,
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
            force_close=True,  # fetches are rare: a kept connection would go stale
            limit=0,  # the fetch limiter bounds the connections
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
    """AddressBlocked as an OSError, which aiohttp passes on."""


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
            f"{shown}: the proxy did not open a tunnel: status {error.status}",
            reason=Reason.PROXY_REFUSED,
        )
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        reason = _in_words(error.os_error)
        return SourceUnavailable(
            f"{shown}: cannot connect to the proxy {error.host}:{error.port} ({reason})",
            reason=Reason.OBJECT_UNAVAILABLE,
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = _in_words(error.os_error)
        return SourceUnavailable(
            f"{shown}: cannot connect ({reason})", reason=Reason.OBJECT_UNAVAILABLE
        )
    if isinstance(error, ValueError):  # of yarl, or aiohttp's InvalidURL: an invalid port or name
        return SourceUnavailable(
            f"{shown}: the URL is not valid; check its host",
            reason=Reason.OBJECT_UNAVAILABLE,
        )
    for found in causes_of(error):
        # In TLS 1.3 a server requests a client certificate after the handshake.
        if isinstance(found, ssl.SSLError) and not isinstance(found, ssl.SSLEOFError):
            return tls_failure(found, where=shown, plain_http="http:// in its URL")
    hint = ""
    if shown.startswith("http:") and any(map(_is_end_of_plain_http, causes_of(error))):
        hint = (
            "; the request used plain http, and a port that speaks TLS (https) often ends it like this: if it does, "
            "write https:// in its URL"
        )
    return SourceUnavailable(
        f"{shown}: the response was cut off or was not HTTP ({type(error).__name__}){hint}",
        reason=Reason.OBJECT_UNAVAILABLE,
    )


def _is_end_of_plain_http(error: BaseException) -> bool:
    """`may_be_tls`, with aiohttp's exceptions for the same failures."""
    return may_be_tls(error) or isinstance(
        error, aiohttp.ServerDisconnectedError | aiohttp.http_exceptions.BadStatusLine
    )


def _in_words(error: OSError) -> str:
    if error.errno is not None and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)  # asyncio's own text names a call and a tuple
    return error.strerror or str(error) or "unknown reason"


def _answerer(
    url: str, message: ServerMessage, *, now: datetime.datetime, redirected: bool
) -> Responder:
    hint = signature_hint(url, message, now=now, redirected=redirected)
    # Azure answers 409 where a storage account has no public access.
    is_denial = message.mentions("expire", "publicaccessnotpermitted")
    return Responder(
        what=redact(url),
        not_found=Reason.OBJECT_NOT_FOUND,
        unavailable=Reason.OBJECT_UNAVAILABLE,
        denied_hint=hint,
        not_found_hint=""
        if is_signed(url)
        else "objects are fetched without credentials: if it is private, use a signed URL",
        unexpected_hint=hint if is_denial else "",
        tls_hint="write https:// in its URL" if url.lower().startswith("http:") else "",
    )
