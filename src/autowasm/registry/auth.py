"""Authorization for one registry: challenges, tokens, and the throttle of refused logins (ADR 19).

The pause after other failures is in `artifacts/fetchlimiter.py`. This is not an HTTP client: the caller passes a function that
calls the token endpoint. Invariants: a credential is sent only to the registry itself (Basic, a registry token) or to the
token endpoint that the registry names (password, identity token), and there only over https, unless the registry itself
uses plain http; a refused login is not sent a second time; until a host has accepted a credential, one request at a time
sends it; after `limits.login_refusals` refusals in a row the credential is not sent to the host for a while, for any
repository, so that no account is locked. A rotated secret is another credential.

Sources: RFC 9110 section 11.6.1 (challenges, quoted or not), RFC 7617 (Basic), distribution specification, "token
authentication" (`service`, `scope`, `token` or `access_token`) and "OAuth2 token authentication" (`refresh_token` grant).
"""

import base64
import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode, urlsplit, urlunsplit

from cachetools import LRUCache

from autowasm.errors import AddressBlocked, SourceDenied, SourceUnavailable
from autowasm.flowcontrol import Backoff
from autowasm.limits import Limits
from autowasm.net.transfer import current_transfer
from autowasm.net.urls import check_web_url, redact
from autowasm.reasons import Reason
from autowasm.registry.credentials import Credential

_MAX_KEPT: Final = 10_000
"""Hosts with credentials that are remembered; the least recently used are evicted. Both come from tenants."""


@dataclass(slots=True)
class _State:
    refusals: int = 0
    """Consecutive refusals."""
    accepted: bool = False
    left_alone_until: float = 0.0
    trying: Future[None] | None = None
    """Done when the one request that sends the credential has its response."""


class LoginAttempt:
    """One use of a credential; the caller reports the outcome."""

    def __init__(self) -> None:
        self.outcome: bool | None = None

    def accepted(self) -> None:
        """The host accepted the credential."""
        self.outcome = True

    def refused(self) -> None:
        """The host refused the credential."""
        self.outcome = False


class LoginThrottle:
    """The outcomes of the logins of one process. Safe in any thread. `clock` in seconds, monotonic."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._backoff = Backoff(limits.login_pause, limits.max_login_pause)
        self._lock = threading.Lock()
        self._states: LRUCache[tuple[str, str], _State] = LRUCache(_MAX_KEPT)

    @contextlib.contextmanager
    def attempt(self, host: str, credential: Credential | None) -> Iterator[LoginAttempt]:
        """Context of the exchange that sends the credential, in a transfer's thread. May wait for another request's outcome.

        Raises SourceDenied while the credential is paused, and TransferEnded.
        """
        login = LoginAttempt()
        if credential is None:
            yield login
            return
        key = (host, credential.fingerprint)
        mine = self._enter(key, credential)
        try:
            yield login
        finally:
            self._leave(key, login.outcome, mine)

    def refused(self, host: str, credential: Credential) -> None:
        """Record that the host refused, outside of an attempt, a credential that it had accepted."""
        self._leave((host, credential.fingerprint), False, None)

    def _enter(self, key: tuple[str, str], credential: Credential) -> Future[None] | None:
        while True:
            with self._lock:
                state = self._states.setdefault(key, _State())
                if self._clock() < state.left_alone_until:
                    raise SourceDenied(
                        f"{key[0]} has refused the login of {credential.shown} several times: it is paused so that the "
                        "account is not locked; a changed login is tried at once"
                    )
                if state.accepted:
                    return None
                if state.trying is None:
                    state.trying = Future()
                    return state.trying
                first = state.trying
            with contextlib.suppress(TimeoutError):
                current_transfer().wait_for(_follower(first), timeout=self._limits.answer_timeout)

    def _leave(
        self, key: tuple[str, str], accepted: bool | None, mine: Future[None] | None
    ) -> None:
        with self._lock:
            state = self._states.setdefault(key, _State())
            if accepted:
                state.accepted, state.refusals, state.left_alone_until = True, 0, 0.0
            elif accepted is not None:
                state.accepted = False
                state.refusals += 1
                beyond = state.refusals - self._limits.login_refusals + 1
                if beyond > 0:
                    state.left_alone_until = self._clock() + self._backoff.delay(beyond)
            if mine is not None and state.trying is mine:
                state.trying = None
        if mine is not None:
            mine.set_result(None)


def _follower(first: Future[None]) -> Future[None]:
    """A separate future for one waiter: `Transfer.wait_for` cancels its future at a timeout, while others wait for `first`."""
    own: Future[None] = Future()

    def pass_on(_: Future[None]) -> None:
        if own.set_running_or_notify_cancel():
            own.set_result(None)

    first.add_done_callback(pass_on)
    return own


_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER: Final = re.compile(rf'({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_SCHEME: Final = re.compile(rf"({_WORD})(?=\s|,|\Z)")
_TOKEN68: Final = re.compile(r"\s+[A-Za-z0-9._~+/-]+=*\s*(?=,|\Z)")
"""The token68 that `Negotiate` sends instead of parameters."""
_SEPARATORS: Final = re.compile(r"[\s,]*")
_ESCAPE: Final = re.compile(r"\\(.)")
_MAX_HEADER_LENGTH: Final = 8192  # characters; http.client allows eight times as much


@dataclass(frozen=True, slots=True)
class Challenge:
    """One `WWW-Authenticate` challenge: scheme and parameter names in lower case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request to a token endpoint: POST with a `form` (OAuth2), else GET."""

    url: str
    authorization: str | None = field(default=None, repr=False)
    form: bytes = field(default=b"", repr=False)

    @property
    def method(self) -> str:
        """GET or POST."""
        return "POST" if self.form else "GET"

    @property
    def headers(self) -> dict[str, str]:
        """The headers for the form."""
        return {"Content-Type": "application/x-www-form-urlencoded"} if self.form else {}

    def is_refusal(self, status: int) -> bool:
        """Whether `status` means that the login is wrong: RFC 6749 section 5.2 has 400 for a refused refresh token."""
        return status in (401, 403) or (bool(self.form) and status == 400)


def parse_challenges(header: str | None) -> list[Challenge]:
    """Every challenge of a header, in order. The list ends at the first malformed one. Raises nothing."""
    challenges: list[Challenge] = []
    text = (header or "")[:_MAX_HEADER_LENGTH]
    position = _skip(text, 0)
    while position < len(text):
        parameter = _PARAMETER.match(text, position)
        if parameter is not None and challenges:
            quoted, plain = parameter[2], parameter[3]
            value = plain if quoted is None else _ESCAPE.sub(r"\1", quoted)
            challenges[-1].parameters.setdefault(parameter[1].lower(), value)
            position = _skip(text, parameter.end())
            continue
        scheme = _SCHEME.match(text, position)
        if scheme is None:
            break
        challenges.append(Challenge(scheme[1].lower()))
        data = _TOKEN68.match(text, scheme.end())
        position = _skip(text, data.end() if data else scheme.end())
    return challenges


def _skip(text: str, position: int) -> int:
    match = _SEPARATORS.match(text, position)
    return match.end() if match else position


class Authorizer:
    """The authorization of one (registry, repository, credential); used by one thread at a time."""

    def __init__(
        self,
        *,
        registry_url: str,
        repository: str,
        actions: str,
        credential: Credential | None,
        fetch_token: Callable[[TokenRequest, LoginAttempt], bytes],
    ) -> None:
        """`fetch_token` returns the response body of a token endpoint; its errors pass through `respond`."""
        self._registry_url = registry_url
        self._scope = f"repository:{repository}:"
        self._actions = actions
        self._credential = credential
        self._fetch_token = fetch_token
        self.header: str | None = None
        """The value of `Authorization` for the next request, or None."""

    def shows_login(self) -> bool:
        """Whether `header` is the login itself, not a token that was issued for it."""
        return self.header is not None and self.header in {self._basic(), self._own_token()}

    def respond(self, challenge_header: str | None, *, login: LoginAttempt) -> bool:
        """Set `header` for the challenge of a 401. False: nothing is left to try, and the request stays refused.

        Raises SourceUnavailable (`UnexpectedAnswer`), AddressBlocked (`UrlNotAllowed`) and the errors of `fetch_token`.
        """
        challenges = {found.scheme: found for found in reversed(parse_challenges(challenge_header))}
        bearer = challenges.get("bearer")
        if bearer is not None and (own := self._own_token()) is not None:
            return self._send_login(own)
        basic = self._basic()
        if bearer is not None and (bearer.parameters.get("realm") or "basic" not in challenges):
            self.header = f"Bearer {self._token(bearer, login)}"
            return True
        return "basic" in challenges and basic is not None and self._send_login(basic)

    def send_unchallenged(self) -> bool:
        """Send the login without a challenge, as crane does after a 200 from `/v2/`. False: there is no login to send."""
        value = self._own_token() or self._basic()
        return value is not None and self._send_login(value)

    def _send_login(self, value: str) -> bool:
        if self.header == value:
            return False
        self.header = value
        return True

    def _own_token(self) -> str | None:
        credential = self._credential
        if credential is None or not credential.registry_token:
            return None
        return f"Bearer {credential.registry_token}"

    def _basic(self) -> str | None:
        if self._credential is None or not self._credential.username:
            return None
        pair = f"{self._credential.username}:{self._credential.password}"
        # Python decodes a command line or standard input that is not UTF-8 this way, so the typed bytes are sent.
        data = pair.encode(errors="surrogateescape")
        return f"Basic {base64.b64encode(data).decode()}"

    def _token_request(self, realm: str, query: dict[str, str]) -> TokenRequest:
        parts = urlsplit(realm)._replace(fragment="")
        if self._credential is not None and self._credential.identity_token:
            form = {
                "grant_type": "refresh_token",
                "client_id": "autowasm",
                **query,
                "refresh_token": self._credential.identity_token,
            }
            return TokenRequest(urlunsplit(parts), form=urlencode(form).encode())
        joined = "&".join(part for part in (parts.query, urlencode(query)) if part)
        return TokenRequest(urlunsplit(parts._replace(query=joined)), self._basic())

    def _token(self, challenge: Challenge, login: LoginAttempt) -> str:
        realm = self._check_realm(challenge.parameters.get("realm", ""))
        scope = self._scope_for(challenge.parameters.get("scope", ""))
        query = {"scope": scope} if scope else {}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        answer = self._fetch_token(self._token_request(realm, query), login)
        try:
            document = json.loads(answer)
            token = document.get("token") or document.get("access_token")
        except (ValueError, AttributeError, RecursionError):  # from None: it would hold the token
            token = None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise SourceUnavailable(
                f"the token endpoint {redact(realm)} of {redact(self._registry_url)} returned no token",
                reason=Reason.UNEXPECTED_ANSWER,
            ) from None
        return token

    def _scope_for(self, requested: str) -> str:
        """The scope of all actions together, so that a push does not need a second token after its first HEAD."""
        if requested and (" " in requested or not requested.startswith(self._scope)):
            return requested
        if not self._actions and not requested:
            return ""  # only a login is tested: no access to a repository is requested
        needed = {*self._actions.split(","), *requested.removeprefix(self._scope).split(",")} - {""}
        return self._scope + ",".join(sorted(needed))

    def _check_realm(self, realm: str) -> str:
        what = f"the token endpoint of {redact(self._registry_url)}"
        check_web_url(realm, what=what)
        plain = realm.lower().startswith("http:")
        if plain and not self._registry_url.lower().startswith("http:"):
            raise AddressBlocked(
                f"{what} uses plain http ({redact(realm)}): a credential would be sent unencrypted",
                reason=Reason.URL_NOT_ALLOWED,
            )
        return realm
