"""The oras adapter: HTTP exchanges with one registry, blocking, in a Transfer's thread (ADR 3).

The registry's verbs are in `repository.py`, decisions about images in `client.py`. Nothing of oras, requests or urllib3
leaves this module. Invariants: one instance serves one (registry, repository, credential) and one thread at a time; a
refusal of an anonymous request is final only without a credential; the credential is sent only to the registry's own origin
and to the token endpoint that it names; no body is read without a limit, or outside the Transfer's deadlines; every
redirect is checked before it is followed; a request is repeated only if a new token may change the response; network
failures become our errors.

oras' own request is replaced: it retries a refused connection or login for 131 s, has no timeouts, sends its token to any
host, and cannot answer a Basic challenge.
"""

import contextlib
import http.cookiejar
import io
import logging
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, cast
from urllib.parse import urlsplit

import oras.container
import oras.provider
import requests

from autowasm.digest import Digest
from autowasm.errors import WASMER, AddressBlocked, Advice, ContentRejected
from autowasm.limits import Limits
from autowasm.net.dialer import NETWORK_ERRORS, DialedAdapter, Dialer
from autowasm.net.errors import (
    BODY_LIMIT,
    LATER,
    NO_MESSAGE,
    Responder,
    ServerMessage,
    connection_failure,
    error_for,
    parse_message,
)
from autowasm.net.transfer import Transfer, TransferEnded, current_transfer
from autowasm.net.urls import next_hop, origin, redact
from autowasm.reasons import Reason
from autowasm.reference import DOCKER_HUB, ImageReference
from autowasm.registry.auth import Authorizer, LoginAttempt, LoginThrottle, TokenRequest
from autowasm.registry.credentials import Credential, fingerprint_of
from autowasm.registry.ratelimiter import HostRateLimiter
from autowasm.units import format_size


class UploadBody:
    """The body of one upload: `content` in memory or in a file, `size` bytes long.

    Invariant: a file is never in memory whole; a repeated request (after a token was issued) starts at the first byte.
    """

    def __init__(self, content: bytes | Path, *, size: int) -> None:
        self._content = content
        self._size = size

    @contextmanager
    def open(self, transfer: Transfer, *, answer_timeout: float) -> Iterator["UploadReader"]:
        """The body for requests. Not for an empty body, which requests would send chunked; none of our uploads is empty."""
        stream: BinaryIO
        if isinstance(self._content, Path):
            stream = self._content.open("rb")
        else:
            stream = io.BytesIO(self._content)
        with stream:
            yield UploadReader(stream, self._size, transfer, answer_timeout=answer_timeout)


class UploadReader:
    """The interface that requests and urllib3 need of a body: a length and `read`. Counts the bytes as they leave."""

    def __init__(
        self, stream: BinaryIO, size: int, transfer: Transfer, *, answer_timeout: float
    ) -> None:
        self._stream = stream
        self._size = size
        self._transfer = transfer
        self._answer_timeout = answer_timeout
        self._left = size

    def __len__(self) -> int:
        return self._size

    def read(self, count: int = -1) -> bytes:
        """The next bytes. At each call the kernel has accepted the bytes of the call before."""
        self._transfer.expect_body()
        data = self._stream.read(self._left if count < 0 else min(count, self._left))
        self._left -= len(data)
        self._transfer.received(len(data))
        if not data:
            self._transfer.expect_answer(self._answer_timeout)
        return data


_MAX_RECEIVED: Final = 256 * 1024
"""Bytes of one read. Each read allocates a buffer, and the kernel provides a buffer of 1 MiB page by page, although a read rarely
fills more than half of it."""
_DISCARD_LIMIT: Final = 64 * 1024
"""An unwanted body up to this size is read, to keep the connection; for a longer one the connection is closed."""


class Response(Protocol):
    """The part of `requests.Response` that we use."""

    status_code: int
    url: str
    headers: Any
    raw: Any
    request: Any

    def close(self) -> None:
        """Close the connection, unless the body was read to its end."""


class RegistryResponse:
    """The response to one request, its body not read yet."""

    def __init__(
        self,
        response: Response,
        *,
        limits: Limits,
        advice: Advice = WASMER,
        secrets: tuple[str, ...] = (),
        with_login: bool = False,
    ) -> None:
        """`secrets` are removed from `message`."""
        self.response = response
        """The response of requests; read its body through this object."""
        self._limits = limits
        self._advice = advice
        self._secrets = secrets
        self._message: ServerMessage | None = None
        self.with_login = with_login
        """The request carried the credential, or a token that was issued for it."""
        self.status = response.status_code
        self.url = response.url
        self.headers: Mapping[str, str] = response.headers

    def chunks(self) -> Iterator[bytes]:
        """The body as sent, not decoded, in chunks of at most `limits.transfer_chunk` bytes, as they arrive."""
        transfer = current_transfer()
        transfer.expect_body()
        most = min(self._limits.transfer_chunk, _MAX_RECEIVED)
        while True:
            with network_errors(self.url, advice=self._advice):
                # read1 returns the available bytes: the loop sees progress, and nothing is copied twice.
                chunk = self.response.raw.read1(most, decode_content=False)
            if not chunk:
                break
            transfer.received(len(chunk))
            yield chunk
        transfer.expect_nothing()

    def read(self, *, limit: int, what: str) -> bytes:
        """The whole body. Raises ContentRejected (`TooLarge`) past `limit` bytes."""
        data = bytearray()
        for chunk in self.chunks():
            data += chunk
            if len(data) > limit:
                raise ContentRejected(
                    f"{what}: larger than {format_size(limit)}", reason=Reason.TOO_LARGE
                )
        return bytes(data)

    @property
    def is_page(self) -> bool:
        """Whether the Content-Type is that of a web page: no registry API returns one."""
        return self.headers.get("Content-Type", "").lower().startswith("text/html")

    def message(self) -> ServerMessage:
        """The message in the body of an error. Reads its beginning, within `limits.error_body_timeout`; ignores failures."""
        if self._message is None:
            self._message = NO_MESSAGE
            if self.response.request.method != "HEAD":
                self._message = parse_message(
                    self._beginning(), self.headers.get("Content-Type", ""), secrets=self._secrets
                )
        return self._message

    def _beginning(self) -> bytes:
        """At most BODY_LIMIT bytes of the body. If more are left, the connection is closed."""
        raw, data = self.response.raw, bytearray()
        deadline = time.monotonic() + self._limits.error_body_timeout
        transfer = current_transfer()
        with contextlib.suppress(*NETWORK_ERRORS):
            while len(data) < BODY_LIMIT and (left := deadline - time.monotonic()) > 0:
                sock = getattr(getattr(raw, "connection", None), "sock", None)
                if sock is not None:
                    sock.settimeout(left)
                chunk = raw.read1(BODY_LIMIT - len(data), decode_content=False)
                if not chunk:
                    return bytes(data)
                transfer.received(len(chunk))
                data += chunk
        self.close()
        return bytes(data)

    def discard(self) -> None:
        """Read a short rest of the body, so that the connection can be used again."""
        length = self.headers.get("Content-Length", "")
        short = length.isdigit() and int(length[:12]) <= _DISCARD_LIMIT
        with contextlib.suppress(*NETWORK_ERRORS):
            if short or self.response.request.method == "HEAD":
                self.response.raw.read(_DISCARD_LIMIT + 1, decode_content=False)
        self.close()

    def close(self) -> None:
        """Close the connection, unless the body was read to its end."""
        self.response.close()


@contextlib.contextmanager
def network_errors(url: str, *, advice: Advice = WASMER) -> Iterator[None]:
    """Turn exceptions of requests and the layers below into SourceUnavailable."""
    try:
        yield
    except NETWORK_ERRORS as error:
        raise connection_failure(
            error, url=url, reason=Reason.REGISTRY_UNAVAILABLE, advice=advice
        ) from error


_HUB_API: Final = "registry-1.docker.io"
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_METHOD_KEPT: Final = frozenset({307, 308})

# oras logs token exchanges at debug level, and the logger of its command line writes to standard error.
logging.getLogger("oras").setLevel(logging.WARNING)
logging.getLogger("oras.logger").handlers.clear()


class _Container(oras.container.Container):  # type: ignore[misc]
    """oras' reference, filled from ours: its own grammar is too loose (`localhost/x`, `../`)."""

    def __init__(self, *, host: str, repository: str) -> None:
        self.registry = host
        self.namespace = None
        self.repository = repository
        self.tag = None
        self.digest = None


class _Session(requests.Session):
    """A session that ignores its environment: no proxies, no `.netrc`, no cookies, no redirects."""

    def __init__(self, adapter: DialedAdapter) -> None:
        super().__init__()
        self.trust_env = False
        self.headers.clear()
        self.headers.update({"Accept-Encoding": "identity", "User-Agent": "autowasm"})
        # Some registries treat a client that keeps cookies as a browser; oras disables them, too.
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Always None: even with allow_redirects=False requests reads a redirect's whole body, to prepare the next hop."""
        return


class RegistryTransport(oras.provider.Registry):  # type: ignore[misc]
    """Exchanges for one repository, with one credential."""

    def __init__(
        self,
        reference: ImageReference,
        *,
        credential: Credential | None,
        actions: str,
        plain_http: bool,
        tls: Callable[[str, int | None], ssl.SSLContext],
        dialer: Dialer,
        limits: Limits,
        logins: LoginThrottle,
        rate_limiter: HostRateLimiter,
        on_request: Callable[[str], None],
        advice: Advice = WASMER,
    ) -> None:
        """`actions` are the token's scope: `pull` or `pull,push`; empty for none. `tls`: the context for a host."""
        super().__init__(insecure=plain_http)
        host = _HUB_API if reference.host == DOCKER_HUB else reference.host
        self._container = _Container(host=host, repository=reference.repository)
        self._name = reference.name
        self._limits = limits
        self._logins = logins
        self._rate_limiter = rate_limiter
        self._on_request = on_request
        self._advice = advice
        self._credential = credential
        self._fingerprint = fingerprint_of(credential)
        self._host = reference.host
        base = f"{self.prefix}://{host}/"
        self._origin = origin(base)
        self._authorizer = Authorizer(
            registry_url=base,
            repository=reference.repository,
            actions=actions,
            credential=credential,
            fetch_token=self._fetch_token,
        )
        self.session = _Session(DialedAdapter(dialer=dialer, tls=tls))

    def close(self) -> None:
        """Close kept connections."""
        self.session.close()

    @property
    def is_plain_http(self) -> bool:
        """Whether requests to the registry go without TLS."""
        return bool(self.prefix == "http")

    def is_own(self, url: str) -> bool:
        """Whether `url` is at the registry itself, not at a host that it redirected to."""
        return origin(url) == self._origin

    def manifest_url(self, version: str) -> str:
        """The URL of the manifest under a tag or digest."""
        return f"{self.prefix}://{self._container.manifest_url(version)}"

    def blob_url(self, digest: Digest) -> str:
        """The URL of a layer or config."""
        return f"{self.prefix}://{self._container.get_blob_url(str(digest))}"

    def upload_url(self) -> str:
        """The URL at which an upload begins."""
        return f"{self.prefix}://{self._container.upload_blob_url()}"

    def tags_url(self) -> str:
        """The URL of the list of tags."""
        return f"{self.prefix}://{self._container.tags_url()}"

    def base_url(self) -> str:
        """The URL that shows whether a login is accepted."""
        return f"{self.prefix}://{self._container.registry}/v2/"

    @contextlib.contextmanager
    def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: UploadBody | None = None,
    ) -> Iterator[RegistryResponse]:
        """One exchange; the response may have any status and is discarded at the end of the block."""
        answer = self._exchange(method, url, headers or {}, body)
        try:
            yield answer
            answer.discard()
        finally:
            answer.close()

    def do_request(  # noqa: PLR0917 - oras' signature: its own methods call this
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,  # not used
        stream: bool = False,  # not used: the body is always streamed, so an unread one is not in memory
    ) -> requests.Response:
        """Replaces oras' own method. The body is not read."""
        return cast("requests.Response", self._exchange(method, url, headers or {}, data).response)

    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: UploadBody | None
    ) -> RegistryResponse:
        """Send the request; if authorization may change the response, authorize once and send it again (ADR 30)."""
        answer = self._wrap(self._follow(method, url, headers, body))
        if not self._may_need_login(answer):
            return answer
        answer.message()  # before the token request, which may fail and which needs the connection
        answer.discard()
        if self._authorizer.shows_login():
            if answer.status == 401:
                self._refused_later()
            return answer
        with self._logins.attempt(self._host, self._credential) as login:
            challenged = self._authorizer.respond(
                answer.headers.get("WWW-Authenticate"), login=login
            )
            if not challenged and not self._authorize_unchallenged(login):
                return answer
            answer = self._wrap(self._follow(method, url, headers, body))
            if self._authorizer.shows_login() and answer.status == 401:
                login.refused()
                self._authorizer.header = None
            elif self._authorizer.shows_login() and (challenged or answer.status < 400):
                login.accepted()
        return answer

    def _may_need_login(self, answer: RegistryResponse) -> bool:
        """Whether a login, or another token, may change this response.

        Many registries hide private images: they answer 403 or 404, without a challenge, to a request without a login. A
        challenge of a redirect's target is ignored: it would name a token endpoint of its own.
        """
        if origin(answer.url) != self._origin:
            return False
        if answer.status == 401 or (answer.status == 403 and "WWW-Authenticate" in answer.headers):
            return True
        is_anonymous = self._authorizer.header is None
        return answer.status in (403, 404) and is_anonymous and self._credential is not None

    def _authorize_unchallenged(self, login: LoginAttempt) -> bool:
        """After a refusal without a usable challenge: use the challenge of `/v2/`, else send the login as crane does."""
        if self._credential is None:
            return False
        self._authorizer.header = None
        ping = self._wrap(self._follow("GET", self.base_url(), {}))
        ping.message()
        with contextlib.closing(ping):
            ping.discard()
            if ping.status in LATER or (ping.status >= 500 and ping.status != 501):
                answerer = Responder(
                    what=f"registry {self._host}",
                    not_found=Reason.IMAGE_NOT_FOUND,
                    unavailable=Reason.REGISTRY_UNAVAILABLE,
                    denied_hint="",
                )
                raise error_for(
                    ping.status, ping.headers, answerer=answerer, message=ping.message()
                )
            challenge = ping.headers.get("WWW-Authenticate")
            if challenge and origin(ping.url) == self._origin:
                return self._authorizer.respond(challenge, login=login)
        return self._authorizer.send_unchallenged()

    def _refused_later(self) -> None:
        """The registry refuses a login that it accepted before: the password was changed, or the token has expired."""
        self._authorizer.header = None
        self._logins.refused(self._host, cast(Credential, self._credential))  # it was sent

    def _fetch_token(self, request: TokenRequest, login: LoginAttempt) -> bytes:
        credential = self._credential
        answerer = Responder(
            what=f"a token for {self._name} from {redact(request.url)}",
            not_found=Reason.IMAGE_NOT_FOUND,
            unavailable=Reason.REGISTRY_UNAVAILABLE,
            denied_hint=(
                f"the login of {credential.shown} is wrong, has expired or lacks permission"
                if credential is not None
                else f"no login was sent; {self._advice.log_in(self._host)}"
            ),
        )
        response = self._follow(
            request.method,
            request.url,
            {"Accept": "application/json", **request.headers},
            UploadBody(request.form, size=len(request.form)) if request.form else None,
            token_request=request,
        )
        answer = self._wrap(response)
        with contextlib.closing(answer):
            status = answer.status
            if status == 200:
                login.accepted()
                return answer.read(limit=self._limits.token_bytes, what=answerer.what)
            if request.is_refusal(status):
                login.refused()
                status = 401 if status == 400 else status
            raise error_for(status, answer.headers, answerer=answerer, message=answer.message())

    def _follow(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: UploadBody | None = None,
        *,
        token_request: TokenRequest | None = None,
    ) -> requests.Response:
        """Send the request and follow redirects here: requests would read their whole bodies, however long.

        `token_request` holds the Authorization for a token endpoint; only that origin gets it.
        """
        authorized = self._origin if token_request is None else origin(url)
        hops = 0
        while True:
            sent = dict(headers)
            value = (
                self._authorizer.header if token_request is None else token_request.authorization
            )
            if value is not None and origin(url) == authorized:
                sent["Authorization"] = value
            response = self._send(method, url, sent, body)
            redirected = response.status_code in _REDIRECTS and (
                method in ("GET", "HEAD") or response.status_code in _METHOD_KEPT
            )
            if not redirected:
                return response
            hops += 1
            location = response.headers.get("Location")
            self._wrap(response).discard()
            url = next_hop(url, location, hops=hops, limit=self._limits.redirects)
            if token_request is not None and token_request.form and origin(url) != authorized:
                raise AddressBlocked(
                    f"the token endpoint {redact(token_request.url)} redirects to another host ({redact(url)}), to "
                    "which the token must not be sent",
                    reason=Reason.URL_NOT_ALLOWED,
                )

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: UploadBody | None
    ) -> requests.Response:
        transfer = current_transfer()
        timeout = self._limits.answer_timeout
        host = urlsplit(url).netloc.lower()
        pause = self._rate_limiter.reserve(host, self._fingerprint)
        if pause > 0:
            transfer.pause(pause)
        self._on_request(host)
        transfer.expect_answer(timeout)
        with contextlib.ExitStack() as opened, network_errors(url, advice=self._advice):
            data = (
                opened.enter_context(body.open(transfer, answer_timeout=timeout)) if body else None
            )
            response: requests.Response = self.session.request(
                method,
                url,
                headers=headers,
                data=data,
                stream=True,
                allow_redirects=False,
                # The loop ends a slow transfer with its own error; this timeout is for a loop that is stuck.
                timeout=(self._limits.connect_timeout, 2 * timeout),
            )
        try:
            transfer.expect_nothing()
        except TransferEnded:
            # The socket was shut down within the header: http.client accepts a truncated header as complete.
            response.close()
            raise
        self._rate_limiter.answered(host, self._fingerprint, response.status_code, response.headers)
        return response

    def _wrap(self, response: requests.Response) -> RegistryResponse:
        credential, header = self._credential, self._authorizer.header
        token = (header or "").partition(" ")[2]
        return RegistryResponse(
            response,
            limits=self._limits,
            advice=self._advice,
            # A token that was issued to an anonymous request is a secret, too.
            secrets=(*(credential.secrets if credential is not None else ()), token),
            with_login=credential is not None and header is not None,
        )
