"""What an HTTP status, the body of an error and `Retry-After` mean for a fetch: one table for registries and objects.

Not a retry loop. Invariants: every status that is not the wanted one becomes one of our errors, chosen by what the caller
should do next; the message has the number, what the server said, and an advice only where it can help.

Sources: RFC 9110 section 15, RFC 6585, RFC 4918 (507); nginx `ngx_http_request.h` (494 to 499); the OCI distribution
specification, "Error Codes".
"""

import datetime
import email.utils
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from autowasm.errors import AutoWasmError, SourceDenied, SourceNotFound, SourceUnavailable
from autowasm.net.servermessage import NOTHING_SAID, ServerMessage
from autowasm.net.urls import redact

LATER: Final = frozenset({408, 425, 429})
"""Besides 5xx: the server says, or means, "try again later"."""

LONGEST_RETRY_AFTER: Final = 24 * 3600.0
"""Seconds. A server that asks for more is read as this much: nobody waits a year because of a typo."""

SPEAKS_TLS: Final = (
    "http request to an https server",  # Go
    "plain http request was sent to https port",  # nginx
    "speaking plain http to an ssl-enabled server port",  # Apache
    "requires tls",  # Tomcat
)
"""What servers answer with status 400 to plain HTTP on a port that has TLS."""


class Doing(enum.Enum):
    """What was asked for: the same status means another thing of a download and of an upload."""

    READ = "read"
    UPLOAD = "upload"
    UPLOAD_MANIFEST = "upload of a manifest"


@dataclass(frozen=True, slots=True)
class Answerer:
    """How one kind of source names itself: `what` in messages, and its condition reasons."""

    what: str
    not_found: str
    unavailable: str
    denied_hint: str
    not_found_hint: str = ""
    unexpected_hint: str = ""
    """Takes the place of the usual meaning of a status."""
    doing: Doing = Doing.READ
    tls_hint: str = ""
    """Given where plain http was spoken: what to do if the server wants TLS."""


def error_for(
    status: int,
    headers: Mapping[str, str],
    *,
    answerer: Answerer,
    said: ServerMessage = NOTHING_SAID,
    now: datetime.datetime | None = None,
) -> AutoWasmError:
    """The error for an answer that was not the wanted one.

    404, 410 → SourceNotFound; 401, 403 → SourceDenied; 408, 425, 429, 5xx but 501 → SourceUnavailable with `Retry-After`;
    any other → SourceUnavailable (`UnexpectedAnswer`, `TlsFailed`).
    """
    shown = f"status {status}" + (f" ({said})" if str(said) else "")
    if status in (404, 410):
        missing = "does not exist" if answerer.doing is Doing.READ else "is not possible"
        hint = answerer.not_found_hint
        if answerer.doing is not Doing.READ:
            hint = _joined(
                "the repository may have to be created first, or its name is wrong", hint
            )
        return SourceNotFound(
            _joined(f"{answerer.what} {missing}: {shown}", hint), reason=answerer.not_found
        )
    if status in (401, 403):
        hint = _page_hint(said) or answerer.denied_hint
        return SourceDenied(_joined(f"{answerer.what} is refused: {shown}", hint))
    if status == 400 and said.mentions(*SPEAKS_TLS):
        return SourceUnavailable(
            _joined(
                f"{answerer.what}: {shown}; it was asked in plain http, and this port speaks TLS (https)",
                answerer.tls_hint,
            ),
            reason="TlsFailed",
        )
    meaning = answerer.unexpected_hint or usual_meaning(status, doing=answerer.doing)
    meaning = meaning or _page_hint(said)
    if status in LATER or (status >= 500 and status != 501):
        return SourceUnavailable(
            _joined(f"{answerer.what} is not available now: {shown}", meaning),
            reason=answerer.unavailable,
            retry_after=retry_after(headers.get("Retry-After"), now=now),
        )
    if status == 400 and answerer.tls_hint and not meaning and not said.is_data:
        meaning = f"it was asked in plain http; it may speak TLS (https): {answerer.tls_hint}"
    if 300 <= status < 400 and headers.get("Location"):
        meaning = _joined(f"it redirects to {redact(headers['Location'])}", meaning)
    return SourceUnavailable(
        _joined(f"{answerer.what}: {_unexpected(status, said)}", meaning), reason="UnexpectedAnswer"
    )


def usual_meaning(status: int, *, doing: Doing) -> str:
    """What the status usually means where a registry or an object is asked; empty if there is no usual meaning."""
    if doing is Doing.UPLOAD_MANIFEST and status in _OF_MANIFESTS:
        return _OF_MANIFESTS[status]
    if doing is not Doing.READ and status in _OF_UPLOADS:
        return _OF_UPLOADS[status]
    return _OF_ALL.get(status, "")


_OF_MANIFESTS: Final = {
    400: "the registry does not take this manifest; an immutable tag and a wrong tag are refused so, too",
    409: "a tag that is immutable cannot be pushed again: push under another tag",
    412: "a tag that is immutable cannot be pushed again: push under another tag",
    415: "the registry does not take manifests of this type: try another --format",
}
_OF_UPLOADS: Final = {
    200: "this is not the answer of a registry to an upload; a proxy may have answered",
    405: "a read-only mirror or a pull-through cache takes no uploads",
    409: "another upload is under way, or the repository is read-only",
    413: "too large: a proxy in front of the registry limits the size of a request (nginx: client_max_body_size)",
    416: "a part of the upload is missing: another proxy or replica may have answered; try again",
}
_OF_ALL: Final = {
    204: "there is no content; this may not be a registry",
    301: "it has moved, or wants https",
    302: "it has moved, wants https or a login in a browser",
    303: "it has moved, wants https or a login in a browser",
    307: "it has moved, or wants https",
    308: "it has moved, or wants https",
    402: "the account has to be paid for, or its quota is used up",
    405: "this may not be a registry, or its API is at another host or port",
    406: "the server has no form of it that is read here",
    407: "a proxy on the way wants a login",
    413: "a proxy on the way limits the size of a request",
    414: "a proxy on the way limits the length of a URL",
    421: "the server does not answer for this host name: a proxy may be set up wrongly",
    426: "the server wants another protocol, often https",
    429: "too many requests",
    431: "the request header is too large, often because of a long token",
    451: "it is not given out for legal reasons",
    494: "the request header is too large, often because of a long token",
    495: "the server wants another client certificate",
    496: "the server wants a client certificate, which is not supported",
    497: "it was asked in plain http, and this port speaks TLS (https)",
    500: "the server failed",
    501: "the server does not know this kind of request",
    502: "a proxy gets no good answer from the server behind it",
    503: "overloaded or under maintenance, or a proxy has no server behind it",
    504: "a proxy gets no answer in time from the server behind it",
    507: "its storage is full",
    511: "this network wants a login first",
    521: "a proxy cannot connect to the server behind it",
    522: "a proxy cannot connect in time to the server behind it",
    523: "a proxy cannot reach the server behind it",
    524: "a proxy gets no answer in time from the server behind it",
    525: "TLS fails between a proxy and the server behind it",
    526: "the certificate of the server behind a proxy is not valid",
}


def _unexpected(status: int, said: ServerMessage) -> str:
    return f"unexpected answer: status {status}" + (f" ({said})" if str(said) else "")


def _page_hint(said: ServerMessage) -> str:
    return (
        "the answer is a web page: a proxy or a login page may have answered"
        if said.is_page
        else ""
    )


def _joined(problem: str, hint: str) -> str:
    return f"{problem}; {hint}" if hint else problem


def retry_after(value: str | None, *, now: datetime.datetime | None = None) -> float | None:
    """Seconds from now for both forms of RFC 9110 section 10.2.3; None if absent or not understood."""
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), LONGEST_RETRY_AFTER)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    seconds = (when - (now or datetime.datetime.now(datetime.UTC))).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
