"""Plain-text responses for people, on either port, and the request log of the blob port.

Responses with blobs are in `blobs.py`. Invariants: a text states the problem and the remedy, and nothing that is not meant for
the client, such as the message of a failed fetch, which can name another tenant's registry; a request id from outside is used
only if it is well-formed; a query is never logged; a client that floods the port does not flood the log.
"""

import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Final

import structlog
from aiohttp import web

from autowasm.flowcontrol import TokenBucket

SERVER: Final = "wasmer"
"""The Server header, without versions of libraries."""
CACHE_CONTROL: Final = "public, max-age=31536000, immutable"
"""Of a response with a module, whose URL contains its digest."""
CONTENT_TYPE: Final = "application/wasm"


def text_answer(
    status: int, sentence: str, *, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A response with `sentence` as its body."""
    return web.Response(
        status=status,
        text=sentence + "\n",
        headers={
            "server": SERVER,
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            **(headers or {}),
        },
    )


_log = structlog.get_logger(__name__)
_logger: Final = logging.getLogger(__name__)

_WELL_FORMED: Final = re.compile(r"[0-9A-Za-z._-]{8,64}")
"""Envoy's are UUIDs; other proxies have hexadecimal digits of other lengths."""
_KEY: Final = web.RequestKey("request_id", str)
_QUIET: Final = frozenset({200, 304})
_MAX_PATH_LENGTH: Final = 200
"""Characters: our paths have 70, but a client can send 8 KiB."""
LINES: Final = 20.0
"""Lines a second; further ones are counted in the next line."""


def request_id(request: web.BaseRequest) -> str:
    """Envoy's `x-request-id` if there is one and it is well-formed, else a new one; the same for each call."""
    known: str | None = request.get(_KEY)
    if known is not None:
        return known
    given = request.headers.getall("x-request-id", [])
    taken = given[0] if len(given) == 1 and _WELL_FORMED.fullmatch(given[0]) else uuid.uuid4().hex
    request[_KEY] = taken
    return taken


class RequestLog:
    """The log of one port: a line for each response except 200 and 304. It is not an access log of downloads (Envoy has one)."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._bucket = TokenBucket(rate=LINES, burst=LINES, clock=now)
        self._suppressed = 0

    def answered(self, request: web.BaseRequest, status: int) -> None:
        """A response was sent, or the client disconnected during it."""
        if status in _QUIET:
            if _logger.isEnabledFor(logging.DEBUG):
                _log.debug("answered", **self._facts(request, status))
        elif not self._bucket.try_acquire():
            self._suppressed += 1
        else:
            more = {"suppressed": self._suppressed} if self._suppressed else {}
            self._suppressed = 0
            _log.info("answered", **self._facts(request, status), **more)

    @staticmethod
    def _facts(request: web.BaseRequest, status: int) -> dict[str, str | int | None]:
        return {
            "request_id": request_id(request),
            "method": request.method,
            "path": request.path[:_MAX_PATH_LENGTH],
            "status": status,
            "client": request.remote,
        }
