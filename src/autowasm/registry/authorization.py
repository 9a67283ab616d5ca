"""What `Authorization` to send to one registry: reads its challenges, keeps its token.

Not an HTTP client: it is given a function that asks the token endpoint. Invariants: a credential goes to the registry
itself (Basic) or to the token endpoint that the registry names, and there only over https, unless the registry itself
speaks plain http; a password that was refused is not sent a second time.

Sources: RFC 9110 section 11.6.1 (challenges, quoted or not), RFC 7617 (Basic), distribution specification, "token
authentication" (`service`, `scope`, `token` or `access_token`).
"""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode, urlsplit, urlunsplit

from autowasm.errors import AddressBlocked, SourceUnavailable
from autowasm.net.urls import check_web_url, redact
from autowasm.registry.credentials import Credential

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER: Final = re.compile(rf'({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_SCHEME: Final = re.compile(rf"({_WORD})(?=\s|,|\Z)")
_SEPARATORS: Final = re.compile(r"[\s,]*")
_ESCAPE: Final = re.compile(r"\\(.)")
_LONGEST_HEADER: Final = 8192  # characters; http.client allows eight times as much


@dataclass(frozen=True, slots=True)
class Challenge:
    """One `WWW-Authenticate` challenge: scheme and parameter names in lower case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(header: str | None) -> list[Challenge]:
    """Every challenge of a header, in order. What cannot be read ends the list; nothing is raised."""
    challenges: list[Challenge] = []
    text = (header or "")[:_LONGEST_HEADER]
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
        position = _skip(text, scheme.end())
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
        ask: Callable[[str, str | None], bytes],
    ) -> None:
        """`ask(url, authorization)` gets a token endpoint's answer; it raises what the caller of `respond` shall see."""
        self._registry_url = registry_url
        self._scope = f"repository:{repository}:"
        self._actions = actions
        self._credential = credential
        self._ask = ask
        self.header: str | None = None
        """The value to send now, or None."""

    def respond(self, challenge_header: str | None) -> bool:
        """After a 401: get authorized. False: there is nothing (more) to try, the request is refused.

        Raises SourceUnavailable (`UnexpectedAnswer`), AddressBlocked (`UrlNotAllowed`) and what `ask` raises.
        """
        challenges = {found.scheme: found for found in reversed(parse_challenges(challenge_header))}
        if "bearer" in challenges:
            self.header = f"Bearer {self._token(challenges['bearer'])}"
            return True
        basic = self._basic()
        if "basic" not in challenges or basic is None or self.header == basic:
            return False
        self.header = basic
        return True

    def _basic(self) -> str | None:
        if self._credential is None:
            return None
        pair = f"{self._credential.username}:{self._credential.password}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def _token(self, challenge: Challenge) -> str:
        realm = self._check_realm(challenge.parameters.get("realm", ""))
        query = {"scope": self._scope_for(challenge.parameters.get("scope", ""))}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        parts = urlsplit(realm)
        joined = "&".join(part for part in (parts.query, urlencode(query)) if part)
        answer = self._ask(urlunsplit(parts._replace(query=joined, fragment="")), self._basic())
        try:
            document = json.loads(answer)
            token = document.get("token") or document.get("access_token")
        except (ValueError, AttributeError, RecursionError):  # from None: it would carry the token
            token = None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise SourceUnavailable(
                f"the token endpoint {redact(realm)} of {redact(self._registry_url)} gave no token",
                reason="UnexpectedAnswer",
            ) from None
        return token

    def _scope_for(self, asked: str) -> str:
        """All that we will do at once, so that a push does not need a second token after its first HEAD."""
        if asked and (" " in asked or not asked.startswith(self._scope)):
            return asked
        needed = {*self._actions.split(","), *asked.removeprefix(self._scope).split(",")} - {""}
        return self._scope + ",".join(sorted(needed))

    def _check_realm(self, realm: str) -> str:
        what = f"the token endpoint that {redact(self._registry_url)} names"
        check_web_url(realm, what=what)
        plain = realm.lower().startswith("http:")
        if plain and not self._registry_url.lower().startswith("http:"):
            raise AddressBlocked(
                f"{what} speaks plain http ({redact(realm)}): a credential would be readable on the way",
                reason="UrlNotAllowed",
            )
        return realm
