"""What went wrong below HTTP, as one of our errors: names, connections, TLS, answers that broke off.

Not a table of statuses (`answers.py`). Invariant: the sentence is made from the operating system's or TLS's own words at
the root of the exception, never from the text of requests or urllib3, which holds URLs with their queries.
"""

import socket
import ssl
from collections.abc import Iterator
from typing import Final

from autowasm.errors import SourceUnavailable
from autowasm.net.urls import redact

_SPEAKS_PLAIN_HTTP: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")
_DEEPEST: Final = 12


def connection_failure(error: BaseException, *, url: str, reason: str) -> SourceUnavailable:
    """`reason` for what may pass by itself; `CertificateInvalid` and `TlsFailed` for what will not."""
    where = redact(url)
    chain = list(_chain(error))
    for found in chain:
        if isinstance(found, ssl.SSLCertVerificationError):
            return SourceUnavailable(
                f"{where}: its certificate is not trusted ({found.verify_message}); name its authority "
                "with a CA file, or the host as insecure",
                reason="CertificateInvalid",
            )
        if isinstance(found, ssl.SSLError) and not isinstance(found, ssl.SSLEOFError):
            return _tls_failure(found, where=where)
        if isinstance(found, socket.gaierror):
            return SourceUnavailable(
                f"{where}: its name cannot be resolved ({found.strerror})", reason=reason
            )
    for found in chain:
        if isinstance(found, TimeoutError):
            return SourceUnavailable(f"{where}: no answer in time", reason=reason)
        if isinstance(found, OSError) and found.strerror:
            return SourceUnavailable(f"{where}: {found.strerror}", reason=reason)
    return SourceUnavailable(
        f"{where}: the answer broke off or was not HTTP ({type(chain[-1]).__name__})", reason=reason
    )


def _tls_failure(error: ssl.SSLError, *, where: str) -> SourceUnavailable:
    if error.reason in _SPEAKS_PLAIN_HTTP:
        problem = "it does not speak TLS; if it is meant to be plain http, name the host so"
    else:
        problem = f"TLS failed ({error.reason or 'connection closed'})"
    return SourceUnavailable(f"{where}: {problem}", reason="TlsFailed")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it wraps, outermost first: causes, contexts, and what urllib3 passes as an argument."""
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
