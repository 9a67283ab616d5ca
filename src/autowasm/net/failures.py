"""Converts failures below HTTP to our errors: names, connections, TLS, interrupted responses.

Not statuses (see `httperrors.py`). Invariants: the message comes from the operating system or TLS, at the root of the
exception, never from the text of requests or urllib3, which holds URLs with their queries; advice is given only for a
failure that it can fix.

Sources: OpenSSL `include/openssl/x509_vfy.h.in` (verify codes), `include/openssl/sslerr.h` (reasons).
"""

import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import Final

from autowasm.errors import WASMER, Advice, SourceUnavailable
from autowasm.net.urls import redact
from autowasm.reasons import Reason

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
    """The error for a failed connection, with `reason` if it may pass by itself, else `CertificateInvalid` or `TlsFailed`."""
    where = redact(url)
    links = list(chain(error))
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


def chain(error: BaseException) -> Iterator[BaseException]:
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
