"""The oras adapter: one HTTP exchange with a registry, blocking, in a Transfer's thread (design D3).

Not the registry's verbs (`repository.py`), and no decisions about images (`client.py`). Nothing of oras, requests or
urllib3 leaves this module. Invariants: one instance serves one (registry, repository, credential) and one thread at a
time; the credential goes to the registry's own origin and to the token endpoint it names, nowhere else; no answer is
read without a cap, and no redirect followed unseen; nothing is tried twice but what a new token may change.

Why oras' own request is replaced: it waits 131 s over a refused connection or login, has no timeouts, sends its token to
whatever host it talks to, and cannot answer a Basic challenge (research, `libraries.md` section 2).
"""

import contextlib
import http.cookiejar
import logging
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import oras.container
import oras.provider
import requests

from autowasm.digest import Digest
from autowasm.errors import AddressBlocked
from autowasm.limits import Limits
from autowasm.net.answers import Answerer, error_for
from autowasm.net.threads import DialedAdapter, Dialer
from autowasm.net.transfer import TransferEnded, current_transfer
from autowasm.net.urls import next_hop, origin, redact
from autowasm.reference import DOCKER_HUB, ImageReference
from autowasm.registry.answer import Answer, network_errors
from autowasm.registry.authorization import Authorizer, TokenRequest
from autowasm.registry.budget import Budgets
from autowasm.registry.credentials import Credential, fingerprint_of
from autowasm.registry.logins import Login, Logins
from autowasm.registry.upload import Body

_HUB_API: Final = "registry-1.docker.io"
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_METHOD_KEPT: Final = frozenset({307, 308})

# oras logs what surrounds tokens at debug level, and its command line's logger writes to standard error by itself.
logging.getLogger("oras").setLevel(logging.WARNING)
logging.getLogger("oras.logger").handlers.clear()


class _Container(oras.container.Container):  # type: ignore[misc]
    """oras' idea of a reference, filled from ours: its own grammar is too loose (`localhost/x`, `../`)."""

    def __init__(self, *, host: str, repository: str) -> None:
        self.registry = host
        self.namespace = None
        self.repository = repository
        self.tag = None
        self.digest = None


class _Session(requests.Session):
    """A session that takes nothing from its environment and does nothing by itself."""

    def __init__(self, adapter: DialedAdapter) -> None:
        super().__init__()
        self.trust_env = False
        self.headers.clear()
        self.headers.update({"Accept-Encoding": "identity", "User-Agent": "autowasm"})
        # Some registries take a client that keeps cookies for a browser (as oras has it).
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: even with allow_redirects=False requests reads a redirect's body whole, to prepare the next hop."""
        return


class RegistryTransport(oras.provider.Registry):  # type: ignore[misc]
    """Exchanges about one repository, with one credential."""

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
        logins: Logins,
        budgets: Budgets,
        on_request: Callable[[str], None],
    ) -> None:
        """`actions` are what a token is asked for: `pull` or `pull,push`. `tls`: the context for a host."""
        super().__init__(insecure=plain_http)
        host = _HUB_API if reference.host == DOCKER_HUB else reference.host
        self._container = _Container(host=host, repository=reference.repository)
        self._name = reference.name
        self._limits = limits
        self._logins = logins
        self._budgets = budgets
        self._on_request = on_request
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
            ask=self._ask_token,
        )
        self.session = _Session(DialedAdapter(dialer=dialer, tls=tls))

    def close(self) -> None:
        """Close kept connections."""
        self.session.close()

    def manifest_url(self, version: str) -> str:
        """Of a tag or digest."""
        return f"{self.prefix}://{self._container.manifest_url(version)}"

    def blob_url(self, digest: Digest) -> str:
        """Of a layer or config."""
        return f"{self.prefix}://{self._container.get_blob_url(str(digest))}"

    def upload_url(self) -> str:
        """Where an upload begins."""
        return f"{self.prefix}://{self._container.upload_blob_url()}"

    @contextlib.contextmanager
    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> Iterator[Answer]:
        """One exchange; the answer has any status and is discarded at the end of the block."""
        answer = self._wrap(self.do_request(url, method, data=body, headers=headers))
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
        stream: bool = False,  # not used: always streamed: what is not read is not held
    ) -> requests.Response:
        """In place of oras' own: authorize once if asked to, look at each redirect. The answer is not read."""
        response = self._follow(method, url, headers or {}, data)
        challenge = response.headers.get("WWW-Authenticate")
        asked = response.status_code == 401 or (response.status_code == 403 and challenge)
        # A host that we were redirected to may not ask: it would name a token endpoint of its own.
        if not asked or origin(response.url) != self._origin:
            return response
        self._wrap(response).discard()  # before asking for a token, which may fail
        if self._authorizer.shows_login():
            if response.status_code == 401:
                self._refused_later()
            return response
        with self._logins.attempt(self._host, self._credential) as login:
            if not self._authorizer.respond(challenge, login=login):
                return response
            response = self._follow(method, url, headers or {}, data)
            if self._authorizer.shows_login() and response.status_code != 401:
                login.accepted()
            elif self._authorizer.shows_login():
                login.refused()
                self._authorizer.header = None
        return response

    def _refused_later(self) -> None:
        """What the registry took before it takes no more: the password was changed, or the token has ended."""
        self._authorizer.header = None
        self._logins.refused(self._host, self._credential)

    def _ask_token(self, request: TokenRequest, login: Login) -> bytes:
        answerer = Answerer(
            what=f"a token for {self._name} from {redact(request.url)}",
            not_found="ImageNotFound",
            unavailable="RegistryUnavailable",
            denied_hint="check the user name and password",
        )
        response = self._follow(
            request.method,
            request.url,
            {"Accept": "application/json", **request.headers},
            Body(request.form, size=len(request.form)) if request.form else None,
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
                status = 401
            raise error_for(status, answer.headers, answerer=answerer)

    def _follow(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body | None = None,
        *,
        token_request: TokenRequest | None = None,
    ) -> requests.Response:
        """Send, and follow redirects by hand: requests would read their bodies whole, however long.

        `token_request` holds the Authorization for a token endpoint, which then is the only host to get it.
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
                    f"the token endpoint {redact(token_request.url)} redirects to another host ({redact(url)}), which "
                    "shall not see the token that it was sent",
                    reason="UrlNotAllowed",
                )

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None
    ) -> requests.Response:
        transfer = current_transfer()
        timeout = self._limits.answer_timeout
        host = urlsplit(url).netloc.lower()
        pause = self._budgets.reserve(host, self._fingerprint)
        if pause > 0:
            transfer.pause(pause)
        self._on_request(host)
        transfer.expect_answer(timeout)
        with contextlib.ExitStack() as opened, network_errors(url):
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
                # The loop ends what takes too long, and says so; this is for a loop that is stuck itself.
                timeout=(self._limits.connect_timeout, 2 * timeout),
            )
        try:
            transfer.expect_nothing()
        except TransferEnded:
            # Shut down while the header was read: http.client takes half of one for a whole one.
            response.close()
            raise
        self._budgets.answered(host, self._fingerprint, response.status_code, response.headers)
        return response

    def _wrap(self, response: requests.Response) -> Answer:
        return Answer(response, limits=self._limits)
