"""Failed requests as our errors: the meaning of a status for a fetch, and failures below HTTP, for registries and objects.

Invariants: every unexpected status becomes one of our errors, chosen by the next step of the caller; the message has the status, the
server's message, and advice only if it can help; an error body is cut before it is parsed; no XML entity is expanded; a ServerMessage
has no line break, no control character, no query of a URL and no credential that `parse_message` receives. The message of a failed
connection comes from the operating system or TLS, at the root of the exception, never from the text of requests or urllib3, which
holds URLs with their queries.

Sources: RFC 9110 section 15, RFC 6585, RFC 4918 (507); nginx `ngx_http_request.h` (494 to 499); the OCI distribution
specification, "Error Codes"; RFC 6749 section 5.2 (`error`, `error_description`); Amazon S3 "Error responses"; Azure Storage
"Status and error codes"; OpenSSL `include/openssl/x509_vfy.h.in` (verify codes), `include/openssl/sslerr.h` (reasons).
"""

import contextlib
import datetime
import email.utils
import enum
import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from xml.parsers import expat

from autowasm.errors import (
    WASMER,
    Advice,
    AutoWasmError,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
)
from autowasm.net.urls import redact
from autowasm.reasons import Reason

BODY_LIMIT: Final = 16 * 1024
"""Bytes of a body that are read. Real messages are shorter than 2 KiB."""

_LONGEST: Final = 300
_ERRORS_SHOWN: Final = 3
_MIN_SECRET_LENGTH: Final = 4
_URL: Final = re.compile(r"https?://[^\s\"'<>\\]+", re.IGNORECASE)
_QUERY: Final = re.compile(r"\?[^\s\"'<>?]*=[^\s\"'<>]*")
_AUTHORIZATION: Final = re.compile(r"\b(Basic|Bearer)\s+[A-Za-z0-9+/._~=-]{8,}", re.IGNORECASE)
_TITLE: Final = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_TAG: Final = re.compile(r"<[^>]*>")
_NOT_SHOWN: Final = re.compile(r"<(script|style|head)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_XML_FIELDS: Final = frozenset({"Code", "Message", "AuthenticationErrorDetail", "Details"})
_MESSAGES: Final = (
    "message",
    "error_description",
    "error",
    "details",
    "detail",
    "title",
    "msg",
    "description",
)
"""Fields, in any case, with the message in JSON APIs: ECR and Harbor, RFC 6749, Docker Hub, RFC 9457, AWS."""
_CONFIDENTIAL: Final = re.compile(r"token|secret|passw|auth|key|signature", re.IGNORECASE)
"""Names of JSON values that messages leave out."""


@dataclass(frozen=True, slots=True)
class ServerMessage:
    """The message in an error body, on one short line: OCI distribution, S3 and similar, Azure, token endpoints; else the first line.

    `code` is the server's own (`DENIED`, `ExpiredToken`), empty if it has none; `text` is for people.
    """

    code: str = ""
    text: str = ""
    is_page: bool = False
    """The body is a web page, of a proxy or a login page, not a response of the API."""
    is_data: bool = False
    """The body is JSON or XML: an API processed the request."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.code, self.text) if part)

    def mentions(self, *words: str) -> bool:
        """Whether code or text contains one of `words`, in any case."""
        message = str(self).lower()
        return any(word in message for word in words)


NO_MESSAGE: Final = ServerMessage()


def parse_message(
    data: bytes, content_type: str = "", *, secrets: Iterable[str] = ()
) -> ServerMessage:
    """The message in `data`, the beginning of an error body. Never raises. `secrets` are removed from the text."""
    text = data[:BODY_LIMIT].decode(errors="replace").lstrip("\ufeff \t\r\n")
    found = _from_json(text) or _from_xml(text) or _from_text(text, content_type)
    hidden = [secret for secret in secrets if len(secret) >= _MIN_SECRET_LENGTH]
    return ServerMessage(
        _clean(found.code, hidden),
        _clean(found.text, hidden),
        is_page=found.is_page,
        is_data=found.is_data,
    )


def _from_json(text: str) -> ServerMessage | None:
    if not text.startswith(("{", "[")):
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    errors = document if isinstance(document, list) else document.get("errors")
    found = NO_MESSAGE
    if isinstance(errors, list):
        message = [
            _one_error(error) for error in errors[:_ERRORS_SHOWN] if isinstance(error, Mapping)
        ]
        if message:
            rest = "; ".join(filter(None, (message[0].text, *map(str, message[1:]))))
            found = ServerMessage(message[0].code, rest)
    else:
        found = _one_error(document)
    if not str(found):
        found = ServerMessage("", _as_it_is(document))
    return replace(found, is_data=True)


def _as_it_is(document: Any) -> str:
    """A document of an unknown form on one line, without values under confidential names; empty if it has no text."""
    with contextlib.suppress(RecursionError):
        shown, texts = _shown(document)
        return json.dumps(shown, ensure_ascii=False) if texts else ""
    return ""


def _shown(value: Any) -> tuple[Any, int]:
    """The value, and the number of texts in it."""
    if isinstance(value, Mapping):
        pairs = {
            name: ("…", 0) if _CONFIDENTIAL.search(name) else _shown(inner)
            for name, inner in value.items()
        }
        return {name: shown for name, (shown, _) in pairs.items()}, sum(
            texts for _, texts in pairs.values()
        )
    if isinstance(value, list):
        items = [_shown(inner) for inner in value]
        return [shown for shown, _ in items], sum(texts for _, texts in items)
    return value, isinstance(value, str) and bool(value.strip())


def _one_error(written: Mapping[str, Any]) -> ServerMessage:
    error = {name.lower(): value for name, value in written.items()}
    code, detail = error.get("code"), error.get("detail")
    if isinstance(detail, Mapping):  # Artifactory: {"detail": {"description": …}}
        error["detail"] = detail.get("description", detail.get("message"))
    texts = [
        value
        for value in (error.get(name) for name in _MESSAGES)
        if isinstance(value, str) and value.strip()
    ]
    inner = error.get("error")
    if isinstance(inner, Mapping) and not texts:  # {"error": {"code": …, "message": …}}
        return _one_error({key: value for key, value in inner.items() if key.lower() != "error"})
    unique = [text for text in dict.fromkeys(texts) if text != code][:2]
    return ServerMessage(code if isinstance(code, str) else "", ", ".join(unique))


def _from_xml(text: str) -> ServerMessage | None:
    """Parse `<Error><Code/><Message/></Error>`, whole or cut. A document type, and so every entity, ends the parsing."""
    if not text.startswith("<") or "<Code" not in text:
        return None
    fields: dict[str, str] = {}
    path: list[str] = []

    def start(name: str, _attributes: object) -> None:
        path.append(name.rpartition(":")[2])

    def end(_name: str) -> None:
        path.pop()

    def characters(data: str) -> None:
        if len(path) > 1 and path[-1] in _XML_FIELDS:
            fields[path[-1]] = fields.get(path[-1], "") + data

    def doctype(*_: object) -> None:
        raise ValueError("document types are not read")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = doctype
    # In a cut or malformed document the fields before the defect count.
    with contextlib.suppress(expat.ExpatError, ValueError):
        parser.Parse(text.partition("?>")[2] if text.startswith("<?xml") else text, False)
    if not fields.get("Code"):
        return None
    parts = [fields.get(name, "") for name in ("Message", "AuthenticationErrorDetail", "Details")]
    # Azure writes a request id and a time on separate lines.
    firsts = [part.strip().splitlines()[0] for part in parts if part.strip()]
    return ServerMessage(fields["Code"], ", ".join(dict.fromkeys(firsts)), is_data=True)


def _from_text(text: str, content_type: str) -> ServerMessage:
    kind = content_type.partition(";")[0].strip().lower()
    is_page = kind in {"text/html", "application/xhtml+xml"} or bool(
        re.match(r"<(!doctype html|html)\b", text, re.IGNORECASE)
    )
    if is_page:
        title = _TITLE.search(text)
        text = title[1] if title and title[1].strip() else _TAG.sub(" ", _NOT_SHOWN.sub(" ", text))
    elif text.count("\ufffd") > len(text) // 10 or "\0" in text:
        return NO_MESSAGE  # not text: compressed, a module, …
    is_xml = not is_page and text.startswith("<") and (text.startswith("<?xml") or "xml" in kind)
    if is_xml:  # of an unknown form: its text
        text = " ".join(_TAG.sub(" ", text).split())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if is_page or is_xml:
        import html  # noqa: PLC0415 - loads in a millisecond, and is rarely needed

        return ServerMessage(
            "", html.unescape(" ".join(lines[:1])), is_page=is_page, is_data=is_xml
        )
    return ServerMessage("", lines[0] if lines else "")


def _clean(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "…")
    text = " ".join(text[: 10 * _LONGEST].split())
    text = _URL.sub(lambda found: redact(found[0]), text)
    text = _QUERY.sub("?…", text)
    text = _AUTHORIZATION.sub(r"\1 …", text)
    text = "".join(character if character.isprintable() else "�" for character in text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


LATER: Final = frozenset({408, 425, 429})
"""Besides 5xx: statuses that mean "try again later"."""

MAX_RETRY_AFTER: Final = 24 * 3600.0
"""Seconds. A longer `Retry-After` is reduced to this, so that a server's typo does not block a source for a year."""

SPEAKS_TLS: Final = (
    "http request to an https server",  # Go
    "plain http request was sent to https port",  # nginx
    "speaking plain http to an ssl-enabled server port",  # Apache
    "requires tls",  # Tomcat
)
"""Parts of the bodies with status 400 that servers send for plain HTTP on a TLS port."""


class Operation(enum.Enum):
    """The kind of request: a status means different things for a download and for an upload."""

    READ = "read"
    UPLOAD = "upload"
    UPLOAD_MANIFEST = "upload of a manifest"
    DELETE = "deletion"


@dataclass(frozen=True, slots=True)
class Responder:
    """The texts of one kind of source: `what` in messages, its condition reasons, and its advice."""

    what: str
    not_found: Reason
    unavailable: Reason
    denied_hint: str
    not_found_hint: str = ""
    unexpected_hint: str = ""
    """Replaces the usual meaning of a status."""
    doing: Operation = Operation.READ
    tls_hint: str = ""
    """Set for requests in plain http: the advice if the server requires TLS."""


def error_for(
    status: int,
    headers: Mapping[str, str],
    *,
    answerer: Responder,
    message: ServerMessage = NO_MESSAGE,
    now: datetime.datetime | None = None,
) -> AutoWasmError:
    """The error for an unexpected response.

    404, 410 → SourceNotFound; 401, 403 → SourceDenied; 408, 425, 429, 5xx but 501 → SourceUnavailable with `Retry-After`;
    any other → SourceUnavailable (`UnexpectedAnswer`, `TlsFailed`).
    """
    shown = f"status {status}" + (f" ({message})" if str(message) else "")
    if status in (404, 410):
        is_upload = answerer.doing in {Operation.UPLOAD, Operation.UPLOAD_MANIFEST}
        missing = "does not exist" if answerer.doing is Operation.READ else "is not possible"
        hint = answerer.not_found_hint
        if answerer.doing is Operation.DELETE:
            hint = _joined("it does not exist", hint)
        if is_upload:
            hint = _joined(
                "the repository may have to be created first, or its name is wrong", hint
            )
        return SourceNotFound(
            _joined(f"{answerer.what} {missing}: {shown}", hint), reason=answerer.not_found
        )
    if status in (401, 403):
        hint = _page_hint(message) or answerer.denied_hint
        return SourceDenied(_joined(f"{answerer.what} is refused: {shown}", hint))
    if status == 400 and message.mentions(*SPEAKS_TLS):
        return SourceUnavailable(
            _joined(
                f"{answerer.what}: {shown}; the request used plain http, and this port speaks TLS (https)",
                answerer.tls_hint,
            ),
            reason=Reason.TLS_FAILED,
        )
    meaning = answerer.unexpected_hint or usual_meaning(status, doing=answerer.doing)
    meaning = meaning or _page_hint(message)
    if status in LATER or (status >= 500 and status != 501):
        return SourceUnavailable(
            _joined(f"{answerer.what} is not available now: {shown}", meaning),
            reason=answerer.unavailable,
            retry_after=retry_after(headers.get("Retry-After"), now=now),
        )
    if status == 400 and answerer.tls_hint and not meaning and not message.is_data:
        meaning = (
            f"the request used plain http; the port may speak TLS (https): {answerer.tls_hint}"
        )
    if 300 <= status < 400 and headers.get("Location"):
        meaning = _joined(f"it redirects to {redact(headers['Location'])}", meaning)
    return SourceUnavailable(
        _joined(f"{answerer.what}: {_unexpected(status, message)}", meaning),
        reason=Reason.UNEXPECTED_ANSWER,
    )


def usual_meaning(status: int, *, doing: Operation) -> str:
    """The usual meaning of a status of a registry or an object; empty if there is none."""
    if doing is Operation.UPLOAD_MANIFEST and status in _OF_MANIFESTS:
        return _OF_MANIFESTS[status]
    if doing is Operation.DELETE:
        return _OF_DELETIONS.get(status, _OF_ALL.get(status, ""))
    if doing is not Operation.READ and status in _OF_UPLOADS:
        return _OF_UPLOADS[status]
    return _OF_ALL.get(status, "")


_OF_MANIFESTS: Final = {
    400: "the registry does not accept this manifest; the cause may also be an immutable or invalid tag",
    409: "an immutable tag cannot be pushed again: push under another tag",
    412: "an immutable tag cannot be pushed again: push under another tag",
    415: "the registry does not accept manifests of this type: try another --format",
}
_OF_DELETIONS: Final = {
    400: "the registry cannot delete a tag alone: delete NAME@DIGEST, which deletes all of its tags",
    405: "the registry does not allow deletion, or cannot delete a tag alone: delete NAME@DIGEST, which deletes all of its tags",
}
_OF_UPLOADS: Final = {
    200: "this is not a registry's response to an upload; a proxy may have answered",
    405: "a read-only mirror or a pull-through cache does not accept uploads",
    409: "another upload is in progress, or the repository is read-only",
    413: "too large: a proxy in front of the registry limits the size of a request (nginx: client_max_body_size)",
    416: "a part of the upload is missing: another proxy or replica may have answered; try again",
}
_OF_ALL: Final = {
    204: "the response has no content; this may not be a registry",
    301: "it has moved, or requires https",
    302: "it has moved, or requires https or a login in a browser",
    303: "it has moved, or requires https or a login in a browser",
    307: "it has moved, or requires https",
    308: "it has moved, or requires https",
    402: "the account requires a payment, or its quota is used up",
    405: "this may not be a registry, or its API is at another host or port",
    406: "the server has no supported representation of it",
    407: "a proxy in between requires a login",
    413: "a proxy in between limits the size of a request",
    414: "a proxy in between limits the length of a URL",
    421: "the server does not answer for this host name: a proxy may be misconfigured",
    426: "the server requires another protocol, often https",
    429: "too many requests",
    431: "the request header is too large, often because of a long token",
    451: "it is withheld for legal reasons",
    494: "the request header is too large, often because of a long token",
    495: "the server requires another client certificate",
    496: "the server requires a client certificate, which is not supported",
    497: "the request used plain http, and this port speaks TLS (https)",
    500: "the server had an internal error",
    501: "the server does not support this kind of request",
    502: "a proxy got no valid response from its upstream server",
    503: "overloaded or under maintenance, or a proxy has no upstream server",
    504: "a proxy got no response in time from its upstream server",
    507: "its storage is full",
    511: "this network requires a login first",
    521: "a proxy cannot connect to its upstream server",
    522: "a proxy cannot connect in time to its upstream server",
    523: "a proxy cannot reach its upstream server",
    524: "a proxy got no response in time from its upstream server",
    525: "TLS fails between a proxy and its upstream server",
    526: "the certificate of a proxy's upstream server is not valid",
}


def _unexpected(status: int, message: ServerMessage) -> str:
    return f"unexpected answer: status {status}" + (f" ({message})" if str(message) else "")


def _page_hint(message: ServerMessage) -> str:
    return (
        "the answer is a web page: a proxy or a login page may have answered"
        if message.is_page
        else ""
    )


def _joined(problem: str, hint: str) -> str:
    return f"{problem}; {hint}" if hint else problem


def retry_after(value: str | None, *, now: datetime.datetime | None = None) -> float | None:
    """Seconds from now, for both forms of RFC 9110 section 10.2.3; None if absent or malformed."""
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), MAX_RETRY_AFTER)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    seconds = (when - (now or datetime.datetime.now(datetime.UTC))).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


_SPEAKS_PLAIN_HTTP: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")
_DEEPEST: Final = 12

_EXPIRED: Final = frozenset({10, 12})
_NOT_YET_VALID: Final = frozenset({9, 11})
_REVOKED: Final = 23
_WRONG_NAME: Final = frozenset({62, 63, 64})
_UNKNOWN_AUTHORITY: Final = frozenset({2, 18, 19, 20, 21, 27})
_TOO_WEAK: Final = frozenset({66, 67, 68})

TLS_PROBLEMS: Final = {
    "TLSV1_ALERT_PROTOCOL_VERSION": "the server supports no accepted version of TLS (1.2 or later)",
    "UNSUPPORTED_PROTOCOL": "the server supports no accepted version of TLS (1.2 or later)",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the server accepts none of the offered ciphers, or requires a client certificate, which is not supported",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server requires a client certificate, which is not supported",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the server requires a client certificate, which is not supported",
    "TLSV1_UNRECOGNIZED_NAME": "the server has no certificate for this host name",
    "DH_KEY_TOO_SMALL": "the key of the server is too weak",
    "EE_KEY_TOO_SMALL": "the key of the server is too weak",
}
"""Causes of a handshake that a TLS server ends, by OpenSSL's reasons."""


WANTS_CERTIFICATE: Final = "; a server that requires a client certificate, which is not supported, may also close it like this"


def connection_failure(
    error: BaseException, *, url: str, reason: Reason, advice: Advice = WASMER
) -> SourceUnavailable:
    """The error for a failed connection, with `reason` if it may be temporary, else `CertificateInvalid` or `TlsFailed`."""
    where = redact(url)
    links = list(causes_of(error))
    for found in links:
        if isinstance(found, ssl.SSLCertVerificationError):
            return certificate_failure(found, where=where, advice=advice)
        if isinstance(found, ssl.SSLError) and not isinstance(found, ssl.SSLEOFError):
            return tls_failure(found, where=where, plain_http=advice.plain_http)
        if isinstance(found, socket.gaierror):
            return SourceUnavailable(
                f"{where}: the host name cannot be resolved ({found.strerror})", reason=reason
            )
    hint = ""
    if url.lower().startswith("http:") and any(may_be_tls(found) for found in links):
        hint = (
            "; the request used plain http, and a port that speaks TLS (https) often ends it like this: if it does, "
            f"{advice.no_plain_http}"
        )
    if url.lower().startswith("https:") and any(map(_may_want_certificate, links)):
        hint = WANTS_CERTIFICATE
    for found in links:
        if isinstance(found, ssl.SSLEOFError):
            return SourceUnavailable(
                f"{where}: the server closed the connection{hint}", reason=reason
            )
        if isinstance(found, TimeoutError):
            return SourceUnavailable(f"{where}: no answer in time", reason=reason)
        if isinstance(found, OSError) and found.strerror:
            return SourceUnavailable(f"{where}: {found.strerror}{hint}", reason=reason)
    return SourceUnavailable(
        f"{where}: the response was cut off or was not HTTP ({type(links[-1]).__name__}){hint}",
        reason=reason,
    )


def certificate_failure(
    error: ssl.SSLCertVerificationError, *, where: str, advice: Advice, may_be_insecure: bool = True
) -> SourceUnavailable:
    """The error for a rejected certificate, with advice for this problem."""
    code = getattr(error, "verify_code", 0)
    problem = getattr(error, "verify_message", "") or "not valid"
    if code in _EXPIRED:
        message = f"its certificate has expired ({problem}); it must be renewed, or this machine's clock is wrong"
    elif code in _NOT_YET_VALID:
        message = f"its certificate is not valid yet ({problem}); check the clocks of the server and of this machine"
    elif code in _WRONG_NAME:
        message = f"its certificate is for another host ({problem}); use a host name that it contains, or issue one for this host"
    elif code == _REVOKED:
        message = f"its certificate is revoked ({problem}); it must be replaced on the server"
    elif code in _TOO_WEAK:
        message = f"its certificate is too weak ({problem}); it must be replaced on the server"
    elif code in _UNKNOWN_AUTHORITY:
        message = f"its certificate is not trusted ({problem}); trust its CA with {advice.ca_file}"
        if may_be_insecure:
            message += f", or skip verification with {advice.insecure}"
    else:
        message = (
            f"its certificate is not accepted ({problem}); it, or that of its CA, must be reissued"
        )
    return SourceUnavailable(f"{where}: {message}", reason=Reason.CERTIFICATE_INVALID)


def tls_failure(error: OSError, *, where: str, plain_http: str) -> SourceUnavailable:
    """The error for failed TLS. `plain_http`: the setting that names a host without TLS."""
    reason = getattr(error, "reason", None)
    if reason in _SPEAKS_PLAIN_HTTP:
        problem = f"the server does not speak TLS; if plain http is intended, use {plain_http}"
    elif reason in TLS_PROBLEMS:
        problem = f"TLS failed ({reason}): {TLS_PROBLEMS[reason]}"
    else:
        problem = f"TLS failed ({reason or 'connection closed'})"
    return SourceUnavailable(f"{where}: {problem}", reason=Reason.TLS_FAILED)


def _may_want_certificate(error: BaseException) -> bool:
    """In TLS 1.3 the handshake ends before the server checks for a client certificate; its alert may get lost."""
    return isinstance(error, ConnectionResetError | BrokenPipeError | ssl.SSLEOFError)


def may_be_tls(error: BaseException) -> bool:
    """Whether a TLS server may end a plain request like this: with a reset, a silent end, or a TLS alert instead of HTTP."""
    return isinstance(
        error, ConnectionResetError | BrokenPipeError | http.client.BadStatusLine
    )  # RemoteDisconnected is a BadStatusLine


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that it wraps, outermost first: causes, contexts, and urllib3's arguments."""
    current: BaseException | None = error
    for _ in range(_DEEPEST):
        if current is None:
            return
        yield current
        wrapped = [value for value in current.args if isinstance(value, BaseException)]
        reason = getattr(current, "reason", None)
        if isinstance(reason, BaseException):
            wrapped.append(reason)
        current = current.__cause__ or (wrapped[0] if wrapped else current.__context__)
