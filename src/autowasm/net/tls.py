"""Trust: the TLS client contexts for registries and objects; one place that decides which certificates are trusted.

Not a certificate store. Invariants: host names and chains are checked unless the operator named this very host as
insecure, so a token endpoint or mirror of an insecure registry is checked as any other; `--registry-ca-file` adds to the
trusted authorities, for every host or for the one that it names, and replaces none; the same chain gets the same verdict on
every Python, and it is curl's (ADR 0032).
"""

import ssl
import threading
from pathlib import Path
from typing import Final

import certifi

from autowasm.errors import UsageError
from autowasm.net.hosts import names_host
from autowasm.settings import Outgoing

_Stamp = tuple[int, int, int]
_HTTPS_PORT: Final = 443


class Trust:
    """Contexts by host. Safe in any thread; a CA file that changed is read again."""

    def __init__(self, outgoing: Outgoing, *, may_be_insecure: bool = True) -> None:
        """`may_be_insecure` False: the operator's list of insecure registries does not count."""
        self._outgoing = outgoing
        self._insecure = outgoing.insecure if may_be_insecure else frozenset()
        self._lock = threading.Lock()
        self._contexts: dict[tuple[Path, ...] | None, tuple[list[_Stamp], ssl.SSLContext]] = {}

    def context(self, host: str, port: int | None = None) -> ssl.SSLContext:
        """For connections to this host. Reads files, the first time for some 20 ms: for threads. Raises UsageError."""
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
    """Build a context. Blocks for some 20 ms (reads files): call it in a thread. Raises UsageError."""
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
    """Set the flags of the chain check that curl, Go and Python 3.11 agree on, whatever this Python's default is.

    Python 3.13 turned VERIFY_X509_STRICT on: RFC 5280's rules for what an authority must write into a certificate. Private
    authorities of many clusters break them (no key identifier, basicConstraints not critical), and every client but ours
    takes them. It also turned VERIFY_X509_PARTIAL_CHAIN on, which curl and Go have: an intermediate authority in the CA
    file is trusted without its root. Neither weakens the check of signature, host name, validity or the right to sign.
    """
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _stamp(path: Path) -> _Stamp:
    """Changes when the file does; a file that is gone shows when it is read."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return status.st_ino, status.st_size, status.st_mtime_ns
