"""Errors below HTTP, in one sentence without the URL's query."""

import socket
import ssl

import pytest

from autowasm.net.errors import connection_failure

URL = "https://r.example/v2/x?sig=secret"


class Wrapped(Exception):
    """As urllib3 wraps: the cause is an argument, and the text holds the URL."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(f"Max retries exceeded with url: {URL}", reason)
        self.reason = reason


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] (_ssl.c:1)")
    error.reason = reason
    return error


def certificate_error(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, message
    return error


@pytest.mark.parametrize(
    ("error", "reason", "text"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Later", "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "Later", "cannot be resolved"),
        (TimeoutError("timed out"), "Later", "no answer in time"),
        (ValueError(URL), "Later", "was cut off"),
        (tls_error("WRONG_VERSION_NUMBER"), "TlsFailed", "plain http"),
        (tls_error("TLSV1_ALERT_PROTOCOL_VERSION"), "TlsFailed", "TLSV1_ALERT_PROTOCOL_VERSION"),
        (tls_error("BAD_EXTENSION"), "TlsFailed", "TLS failed (BAD_EXTENSION)"),
        (certificate_error(23, "revoked"), "CertificateInvalid", "is revoked (revoked)"),
        (certificate_error(66, "EE key too small"), "CertificateInvalid", "is too weak"),
    ],
)
def test_the_root_cause_is_named(error: Exception, reason: str, text: str) -> None:
    for wrapped in (error, Wrapped(error), Wrapped(Wrapped(error))):
        failure = connection_failure(wrapped, url=URL, reason="Later")
        assert failure.reason == reason
        assert text in str(failure)
        assert "r.example" in str(failure)
        assert "secret" not in str(failure)


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert connection_failure(first, url=URL, reason="Later").reason == "Later"
