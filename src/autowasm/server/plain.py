"""Plain requests: what Envoy sends for a module, told from everything else by one look; and the head of their answer.

Not a parser of HTTP: whatever has another form, however valid, is aiohttp's. Invariants: a request that is taken here means
the same to aiohttp; nothing that could change the answer (Range, conditions, a body, Connection) is among the fields taken.
"""

import re
import time
from email.utils import formatdate
from typing import Final

from autowasm.blobs.blob import Blob
from autowasm.digest import Sha256Hex
from autowasm.server.answers import SERVER

CACHE_CONTROL: Final = "public, max-age=31536000, immutable"
CONTENT_TYPE: Final = "application/wasm"

_LONGEST: Final = 4096
"""Bytes. aiohttp has limits of its own for longer ones, and says so to the client."""
_FIELDS: Final = (
    rb"host|user-agent|accept|accept-encoding|accept-language|cache-control|pragma|x-request-id|x-forwarded-for"
    rb"|x-forwarded-proto|x-forwarded-client-cert|x-envoy-[a-z-]{1,40}|traceparent|tracestate|b3|x-b3-[a-z]{1,20}"
)
_PLAIN: Final = re.compile(
    rb"GET /wasm/([0-9a-f]{64})(?:\?[\w=&.~-]{0,128})? HTTP/1\.1\r\n(?:(?i:"
    + _FIELDS
    + rb"):[\t\x20-\x7e]*\r\n)+\r\n"
)
_HOST: Final = re.compile(rb"\n(?i:host): *[!-~]")


def plain_request(data: bytes) -> Sha256Hex | None:
    """The digest, if `data` is one whole plain request and not a byte more."""
    if len(data) > _LONGEST:
        return None
    match = _PLAIN.fullmatch(data)
    if match is None or len(_HOST.findall(data)) != 1:  # RFC 9112 3.2: exactly one
        return None
    return Sha256Hex(match[1].decode())


class Heads:
    """Heads of answers that carry a whole blob, made once a second because of their Date."""

    def __init__(self) -> None:
        self._second: int | None = None
        self._heads: dict[Sha256Hex, bytes] = {}

    def of(self, blob: Blob) -> bytes:
        """Status line and header fields, the empty line included."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._heads.clear()
        head = self._heads.get(blob.sha256)
        if head is None:
            head = self._heads[blob.sha256] = _head(blob, second)
        return head


def _head(blob: Blob, second: int) -> bytes:
    return (
        "HTTP/1.1 200 OK\r\n"
        f"server: {SERVER}\r\n"
        f'etag: "sha256:{blob.sha256}"\r\n'
        f"cache-control: {CACHE_CONTROL}\r\n"
        "accept-ranges: bytes\r\n"
        f"content-type: {CONTENT_TYPE}\r\n"
        f"content-length: {blob.size}\r\n"
        f"Date: {formatdate(second, usegmt=True)}\r\n\r\n"
    ).encode()
