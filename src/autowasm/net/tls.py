"""The TLS client context for registries and objects: one place that decides which certificates are trusted.

Not a certificate store. Invariant: host names and chains are checked unless the operator named the host as insecure;
`--registry-ca-file` adds to the trusted authorities, it does not replace them.
"""

import ssl
from pathlib import Path

import certifi

from autowasm.errors import UsageError


def client_context(*, ca_file: Path | None = None, verify: bool = True) -> ssl.SSLContext:
    """Build a context. Blocks for some 20 ms (reads files): call it in a thread. Raises UsageError."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if not context.cert_store_stats()["x509_ca"]:  # slim images have no authorities of their own
        context.load_verify_locations(certifi.where())
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"--registry-ca-file {ca_file}: not a readable PEM file of certificates: {error}"
            ) from error
    return context
