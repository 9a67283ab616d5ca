"""TLS: the client contexts for registries and objects, and whether a port of this machine speaks TLS (`wasmc`).

Not a certificate store. Invariants: host names and chains are checked unless the operator named this very host as insecure,
so a token endpoint or mirror of an insecure registry is checked like any other; `--registry-ca-file` adds to the trusted
authorities, for every host or for the named host, and replaces none; the same chain gets the same verdict on every
Python, which is curl's verdict (ADR 0032); the test of a port sends one plain HTTP request and no login.

Source: RFC 8446 section 5.1 (record header: type 21 is an alert, 22 a handshake; version 3.x).
"""

import asyncio
import contextlib
import ssl
import threading
from pathlib import Path
from typing import Final

import certifi

from autowasm.errors import UsageError
from autowasm.net.errors import SPEAKS_TLS, TLS_PROBLEMS
from autowasm.net.hosts import names_host, split_port
from autowasm.settings import Outgoing

_Stamp = tuple[int, int, int]
_HTTPS_PORT: Final = 443


class Trust:
    """The context for each host. Safe in any thread; a changed CA file is read again."""

    def __init__(self, outgoing: Outgoing, *, may_be_insecure: bool = True) -> None:
        """`may_be_insecure` False: the operator's list of insecure registries is ignored."""
        self._outgoing = outgoing
        self._insecure = outgoing.insecure if may_be_insecure else frozenset()
        self._lock = threading.Lock()
        self._contexts: dict[tuple[Path, ...] | None, tuple[list[_Stamp], ssl.SSLContext]] = {}

    def context(self, host: str, port: int | None = None) -> ssl.SSLContext:
        """The context for this host. Reads files and blocks, the first time for 20 ms: call it in a thread. Raises UsageError."""
        bare_v6 = ":" in host and not host.startswith("[")
        named = f"[{host}]:{port or _HTTPS_PORT}" if bare_v6 else f"{host}:{port or _HTTPS_PORT}"
        if names_host(self._insecure, named):
            return self._get(None)
        files = [self._outgoing.ca_file] if self._outgoing.ca_file else []
        files += [path for entry, path in self._outgoing.ca_files if names_host([entry], named)]
        return self._get(tuple(files))

    def _get(self, files: tuple[Path, ...] | None) -> ssl.SSLContext:
        stamps = [_stamp(path) for path in files or ()]
        with self._lock:
            known = self._contexts.get(files)
            if known is None or known[0] != stamps:
                context = client_context(*(files or ()), verify=files is not None)
                known = self._contexts[files] = (stamps, context)
            return known[1]


def client_context(*ca_files: Path, verify: bool = True) -> ssl.SSLContext:
    """Build a context. Blocks for 20 ms (reads files): call it in a thread. Raises UsageError."""
    context = ssl.create_default_context()
    check_chains_as_curl(context)
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if not context.cert_store_stats()["x509_ca"]:  # slim images have no authorities of their own
        context.load_verify_locations(certifi.where())
    for ca_file in ca_files:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"--registry-ca-file {ca_file}: not a readable PEM file of certificates: {error}"
            ) from error
    return context


def check_chains_as_curl(context: ssl.SSLContext) -> None:
    """Set the flags of the chain check that curl, Go and Python 3.11 share, on every Python.

    Python 3.13 turned VERIFY_X509_STRICT on: RFC 5280's rules for the certificates of authorities. Private authorities of
    many clusters break them (no key identifier, basicConstraints not critical), and other clients accept these. Python 3.13
    also turned VERIFY_X509_PARTIAL_CHAIN on, which curl and Go have: an intermediate authority in the CA file is trusted
    without its root. Neither weakens the check of signature, host name, validity or the right to sign.
    """
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _stamp(path: Path) -> _Stamp:
    """A value that changes with the file. A missing file is reported when it is read."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return status.st_ino, status.st_size, status.st_mtime_ns


_MOST: Final = 2048
_BODY_WAIT: Final = 1.0
"""Seconds for the body of a 400."""
_RECORDS: Final = (b"\x15\x03", b"\x16\x03")


async def speaks_tls(host: str, *, timeout: float) -> bool:
    """Whether `host`, `HOST[:PORT]` of this machine (default port 80), speaks TLS. False if nothing answers in `timeout` seconds.

    `wasmc` uses plain HTTP for a registry on loopback unless it has TLS, as crane does. For any other host only the user
    chooses plain HTTP.
    """
    name, port = split_port(host)
    address = name.strip("[]")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            try:
                answer = await _probe(address, int(port or 80), host=host)
            except ConnectionRefusedError:
                return False
            except OSError:
                answer = b""
            if answer.startswith(_RECORDS):
                return True
            if answer:
                text = answer.decode(errors="replace").lower()
                return " 400 " in text[:20] and any(phrase in text for phrase in SPEAKS_TLS)
            return await _shakes_hands(address, int(port or 80))
    return False


async def _probe(address: str, port: int, *, host: str) -> bytes:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(f"GET /v2/ HTTP/1.0\r\nHost: {host}\r\nUser-Agent: autowasm\r\n\r\n".encode())
        await writer.drain()
        answer = await reader.read(_MOST)
        if answer.startswith(b"HTTP/") and b" 400 " in answer[:20]:
            # The body may arrive in a separate packet.
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_BODY_WAIT):
                    while len(answer) < _MOST and (more := await reader.read(_MOST)):
                        answer += more
        return answer
    finally:
        writer.close()


async def _shakes_hands(address: str, port: int) -> bool:
    """Try a TLS handshake with a server that closed the connection without a response: it expects TLS, or it is broken."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection(address, port, ssl=context)
    except ssl.SSLError as error:
        # The server speaks TLS but refuses ours: it requires a client certificate, or an older version.
        return (error.reason or "") in TLS_PROBLEMS
    except OSError:
        return False
    writer.close()
    return True
