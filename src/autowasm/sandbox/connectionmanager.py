"""The changes that Envoy's connection manager makes to headers before and after the filters, and its local replies.

The settings are a sidecar's defaults, for a client that Envoy considers external.

Sources: envoy source/common/http/conn_manager_utility.cc `mutateRequestHeaders`, `cleanInternalHeaders`,
`mutateResponseHeaders`; source/common/http/utility.cc `prepareLocalReply`.
"""

import uuid
from dataclasses import dataclass
from random import Random
from typing import Final

from autowasm.sandbox import attributes
from autowasm.sandbox.headers import HeaderMap, MapKind, Pairs
from autowasm.sandbox.message import Request, encoded

_GRPC: Final = b"application/grpc"
_HOP_BY_HOP: Final = (
    *(b"connection", b"upgrade", b"keep-alive", b"proxy-connection", b"transfer-encoding"),
)
_INTERNAL: Final = (
    *(b"x-envoy-internal", b"x-envoy-retry-on", b"x-envoy-retry-grpc-on", b"x-envoy-max-retries"),
    *(b"x-envoy-retriable-status-codes", b"x-envoy-retriable-header-names"),
    *(b"x-envoy-upstream-alt-stat-name", b"x-envoy-upstream-rq-timeout-ms"),
    *(b"x-envoy-upstream-rq-per-try-timeout-ms", b"x-envoy-upstream-rq-timeout-alt-response"),
    *(b"x-envoy-expected-rq-timeout-ms", b"x-envoy-force-trace", b"x-envoy-ip-tags"),
    *(b"x-envoy-original-url", b"x-envoy-hedge-on-per-try-timeout"),
)
"""Headers that Envoy takes from internal clients only (`ConnectionManagerUtility::cleanInternalHeaders`)."""


def arriving(request: Request, random: Random) -> HeaderMap:
    """The headers as the first filter sees them. `random` gives the request id."""
    given = HeaderMap(MapKind.REQUEST_HEADERS, encoded(request.headers))
    scheme = given.get(b"x-forwarded-proto") or b""
    made = HeaderMap(MapKind.REQUEST_HEADERS)
    for name, value in encoded(
        [(":authority", request.authority), (":path", request.path), (":method", request.method)]
    ):
        made.add(name, value)
    made.add(b":scheme", scheme if scheme in (b"http", b"https") else request.scheme.encode())
    for name, value in given:
        if name not in _HOP_BY_HOP and name not in _INTERNAL:
            made.add(name, value)
    if made.get(b"x-forwarded-proto") is None:
        made.add(b"x-forwarded-proto", request.scheme.encode())
    if made.get(b"x-request-id") is None:
        identifier = uuid.UUID(bytes=random.randbytes(16), version=4)
        made.add(b"x-request-id", str(identifier).encode())
    return made


def sent(headers: HeaderMap, time: int) -> None:
    """Change the headers of a response to those that the client gets. `time` in nanoseconds since 1970."""
    for name in (b"connection", b"upgrade", b"transfer-encoding"):
        headers.remove(name)
    if headers.get(b"date") is None:
        headers.add(b"date", attributes.http_date(time))
    headers.assign(b"server", b"envoy")


def is_grpc(headers: HeaderMap) -> bool:
    """Whether these are the headers of a gRPC request (source/common/grpc/common.cc `isGrpcRequestHeaders`)."""
    kind = headers.get(b"content-type") or b""
    return kind == _GRPC or kind.startswith(_GRPC + b"+")


def _percent_encoded(text: bytes) -> bytes:
    return b"".join(
        bytes([byte]) if 0x20 <= byte < 0x7F and byte != 0x25 else b"%%%02X" % byte for byte in text
    )


@dataclass(frozen=True, slots=True)
class LocalReply:
    """A reply that replaces the service's response."""

    headers: HeaderMap
    body: bytes


def local_reply(
    status: int,
    body: bytes,
    headers: Pairs,
    *,
    grpc_status: int | None = None,
    to_grpc: bool = False,
    to_head: bool = False,
) -> LocalReply:
    """The response to a request: for gRPC a status and a message (`to_grpc`), for HEAD without a body (`to_head`)."""
    made = HeaderMap(MapKind.RESPONSE_HEADERS, [(b":status", str(status).encode())])
    for name, value in headers:
        made.add(name, value)
    made.assign(b":status", str(status).encode())  # even if the module added one
    if to_grpc:
        made.set(b":status", b"200")
        made.set(b"content-type", _GRPC)
        if made.get(b"grpc-status") is None:
            code = grpc_status if grpc_status is not None else attributes.grpc_status(status)
            made.set(b"grpc-status", str(code).encode())
        if body and not to_head:
            made.set(b"grpc-message", _percent_encoded(body))
        made.remove(b"content-length")
        return LocalReply(made, b"")
    if body:
        made.set(b"content-length", str(len(body)).encode())
        if made.get(b"content-type") is None:
            made.add(b"content-type", b"text/plain")
    else:
        made.remove(b"content-length")
        made.remove(b"content-type")
    return LocalReply(made, b"" if to_head else body)
