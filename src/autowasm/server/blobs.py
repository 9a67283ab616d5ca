"""BlobHandler: `/wasm/<sha256>` and `/seen` on the blob port.

Blobs come from `ondemand.py`; `response.py` sends them; `ranges.py` evaluates a Range. Invariant: a plain GET, as Envoy sends
it, is answered with 200 and every byte, 404, or 503, and nothing else.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
from aiohttp import web

from autowasm.artifacts.peers import PEER_HEADER
from autowasm.blobs.blob import Blob
from autowasm.digest import Sha256Hex
from autowasm.limits import ServeLimits
from autowasm.performance.sendfile import SendScheduler
from autowasm.server.aiohttpconnection import Connection
from autowasm.server.downloadlog import DownloadLog
from autowasm.server.http import CACHE_CONTROL, CONTENT_TYPE, SERVER, request_id, text_answer
from autowasm.server.ondemand import BlobAbsent, OnDemandBlobs
from autowasm.server.ranges import Conditions, Decision, decide
from autowasm.server.response import BlobResponse
from autowasm.telemetry.metrics import Metrics

_PATH: Final = re.compile(r"/wasm/([0-9a-f]{64})")
_SEEN_PATH: Final = re.compile(r"/seen/([0-9a-f]{64})")
_MILLISECONDS: Final = re.compile(r"[0-9]{1,9}")
_SENTENCES: Final = {
    412: "If-Match does not list the module's ETag, which is its digest.",
    416: "The Range starts after the module's last byte.",
}


class BlobHandler:
    """Answers requests on `Connection`s."""

    def __init__(
        self,
        on_demand: OnDemandBlobs,
        *,
        instance: str,
        download_log: DownloadLog,
        limits: ServeLimits,
        metrics: Metrics,
    ) -> None:
        """`instance`: our name for the other replicas."""
        self._on_demand = on_demand
        self._instance = instance
        self._download_log = download_log
        self._limits = limits
        self._metrics = metrics
        self._pacing = SendScheduler(copies=limits.copies)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """The response to `request`."""
        match = _PATH.fullmatch(request.path)
        if match is None and request.path == "/seen":
            return self._log_document(self._download_log.summary())
        if match is None and (log_path := _SEEN_PATH.fullmatch(request.path)):
            return self._log_document(await self._download_log.document(Sha256Hex(log_path[1])))
        if match is None:
            return text_answer(
                404,
                "Unknown path; modules are at /wasm/<sha256>, with 64 lower-case hexadecimal digits.",
            )
        if request.method not in {"GET", "HEAD"}:
            return text_answer(
                405, "Method not allowed; use GET or HEAD.", headers={"allow": "GET, HEAD"}
            )
        sha256 = Sha256Hex(match[1])
        if PEER_HEADER in request.headers:
            answer = self._outcome(request, await self._on_demand.stored(sha256))
            answer.headers[PEER_HEADER] = self._instance
            return answer
        with structlog.contextvars.bound_contextvars(
            request_id=request_id(request)
        ):  # fills inherit it
            found = await self._on_demand.find(sha256, patience=_patience(request))
        if isinstance(found, BlobAbsent):
            known = found.status != 404
            self._download_log.failed(sha256, request.remote, found.status, known=known)
        return self._outcome(
            request, found, on_sent=partial(self._download_log.served, sha256, request.remote)
        )

    def ready(self, sha256: Sha256Hex) -> Blob | None:
        """The blob if it can be sent at once. It is then counted as a hit."""
        return self._on_demand.ready(sha256)

    def served(self, sha256: Sha256Hex, address: str) -> None:
        """All of the blob was sent to `address`."""
        self._download_log.served(sha256, address)

    def _log_document(self, document: bytes) -> web.Response:
        """An answer of the download log, for peers and for clients that know the digest."""
        return web.Response(
            body=document,
            content_type="application/json",
            headers={"server": SERVER, "cache-control": "no-store", PEER_HEADER: self._instance},
        )

    def _outcome(
        self,
        request: web.BaseRequest,
        found: Blob | BlobAbsent,
        *,
        on_sent: Callable[[], None] = lambda: None,
    ) -> web.StreamResponse:
        if isinstance(found, Blob):
            return self._answer(request, found, on_sent)
        headers = {"retry-after": str(found.retry_after)} if found.status == 503 else None
        return text_answer(found.status, found.sentence, headers=headers)

    def _answer(
        self, request: web.BaseRequest, blob: Blob, on_sent: Callable[[], None]
    ) -> web.StreamResponse:
        etag = f'"sha256:{blob.sha256}"'
        decision = decide(request.method, _conditions(request), etag=etag, size=blob.size)
        headers = {
            "server": SERVER,
            "etag": etag,
            "cache-control": CACHE_CONTROL,
            "accept-ranges": "bytes",
        }
        if decision.status == 304:
            return web.StreamResponse(status=304, headers=headers)
        if decision.status == 416:
            return _refusal(416, {**headers, "content-range": f"bytes */{blob.size}"})
        if decision.status == 412:
            return _refusal(412, headers)
        headers["content-type"] = CONTENT_TYPE
        headers["content-length"] = str(decision.count)
        if decision.status == 206:
            headers["content-range"] = _content_range(decision, blob.size)
        connection = request.protocol
        if request.method == "HEAD" or not isinstance(connection, Connection):
            return web.StreamResponse(status=decision.status, headers=headers)
        return BlobResponse(
            blob,
            decision,
            connection=connection,
            headers=headers,
            limits=self._limits,
            metrics=self._metrics,
            pacing=self._pacing,
            on_sent=on_sent if decision.status == 200 else lambda: None,
        )


def _refusal(status: int, headers: dict[str, str]) -> web.Response:
    return text_answer(status, _SENTENCES[status], headers={**headers, "cache-control": "no-store"})


def _content_range(decision: Decision, size: int) -> str:
    return f"bytes {decision.offset}-{decision.offset + decision.count - 1}/{size}"


def _conditions(request: web.BaseRequest) -> Conditions:
    headers = request.headers
    return Conditions(
        if_match=_joined(request, "If-Match") if "If-Match" in headers else None,
        if_none_match=_joined(request, "If-None-Match") if "If-None-Match" in headers else None,
        if_range=_joined(request, "If-Range") if "If-Range" in headers else None,
        range=_joined(request, "Range") if "Range" in headers else None,
    )


def _joined(request: web.BaseRequest, name: str) -> str:
    """Combine several lines of one field to one list (RFC 9110 5.3)."""
    return ", ".join(request.headers.getall(name))


def _patience(request: web.BaseRequest) -> float | None:
    """Seconds that Envoy waits for this response, from its header `x-envoy-expected-rq-timeout-ms`."""
    value = request.headers.get("x-envoy-expected-rq-timeout-ms")
    if value is None or not _MILLISECONDS.fullmatch(value):
        return None
    # Envoy sends 0 for "no limit".
    return int(value) / 1000 or None
