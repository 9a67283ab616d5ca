"""Attributes of a stream, as properties: request, response, connection and so on, for a proxy with default settings.

Invariant: an attribute is present in the phases in which Envoy has it. Addresses and names are examples; the caller
of the sandbox replaces them.

Sources: envoy source/extensions/filters/common/expr/context.cc `RequestWrapper` and its like; source/docs "Attributes".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final

from autowasm.sandbox.headers import HeaderMap
from autowasm.sandbox.properties import Attributes, Proto, Uint, Value

CLIENT: Final = ("127.0.0.1", 50000)
PROXY: Final = ("127.0.0.1", 8080)
SERVICE: Final = ("127.0.0.1", 9080)
LOCAL: Final = ("127.0.0.1", 60000)
CLUSTER: Final = "service"
_CONNECT_NANOSECONDS: Final = 100_000
"""How long Envoy takes to connect to the service, and the service to answer."""


def http_date(time: int) -> bytes:
    """A date for a header, at a virtual time in nanoseconds."""
    return formatdate(time / 1e9, usegmt=True).encode()


@dataclass(frozen=True, slots=True)
class HttpFacts:
    """The state of an HTTP stream at one moment. Headers are None if the module cannot reach them.

    Sizes are bytes of bodies. `is_routed`: the request was passed on; `is_connected`: there is a connection to the service;
    `has_ended`: the stream is over. `status` is that of the response, 0 before it. `began` in nanoseconds
    since 1970, `elapsed` in nanoseconds.
    """

    request_headers: HeaderMap | None
    request_trailers: HeaderMap | None
    response_headers: HeaderMap | None
    response_trailers: HeaderMap | None
    request_body: int
    response_body: int
    status: int
    is_routed: bool
    is_connected: bool
    has_ended: bool
    details: str | None
    began: int
    elapsed: int
    state: Mapping[bytes, bytes]


def of_http(facts: HttpFacts) -> dict[str, Value]:
    """The attributes of an HTTP stream."""
    found = _of_connection(facts.state)
    found["request"] = _request(facts)
    found["response"] = _response(facts)
    found["upstream"] = _upstream(facts)
    found["xds"] = Attributes(
        cluster_name=CLUSTER,
        route_name="",
        virtual_host_name="",
        filter_chain_name="",
        listener_direction=0,
    )
    if facts.is_connected:
        found["upstream_filter_state"] = Attributes()
    return found


def of_tcp(state: Mapping[bytes, bytes], *, is_connected: bool) -> dict[str, Value]:
    """The attributes of a TCP connection. `is_connected`: Envoy is connected to the service."""
    found = _of_connection(state)
    found["request"] = found["response"] = Attributes()
    upstream = Attributes(request_attempt_count=Uint(is_connected), transport_failure_reason="")
    chain = Attributes(filter_chain_name="", listener_direction=0)
    if is_connected:
        upstream |= {"address": _address(SERVICE), "port": SERVICE[1], "locality": Proto()}
        chain["cluster_name"] = CLUSTER
        found["upstream_filter_state"] = Attributes()
    return found | {"upstream": upstream, "xds": chain}


def _of_connection(state: Mapping[bytes, bytes]) -> dict[str, Value]:
    return {
        "connection": Attributes(id=Uint(1), mtls=False, requested_server_name=""),
        "connection_id": Uint(1),
        "source": Attributes(address=_address(CLIENT), port=CLIENT[1]),
        "destination": Attributes(address=_address(PROXY), port=PROXY[1]),
        "metadata": Proto(filter_metadata={}),
        "filter_state": Attributes(
            {f"wasm.{_text(key)}": value for key, value in state.items()},
        ),
    }


def _upstream(facts: HttpFacts) -> Attributes:
    found = Attributes(request_attempt_count=Uint(facts.is_routed))
    if facts.is_routed:
        found |= {
            "address": _address(SERVICE),
            "port": SERVICE[1],
            "transport_failure_reason": "",
            "locality": Proto(),
        }
    if facts.is_connected:
        found |= {"local_address": _address(LOCAL), "cx_pool_ready_duration": _CONNECT_NANOSECONDS}
    return found


def _address(host: tuple[str, int]) -> str:
    return f"{host[0]}:{host[1]}"


def _request(facts: HttpFacts) -> Attributes:
    headers = facts.request_headers
    found = Attributes(
        time=facts.began,
        protocol="HTTP/1.1",
        size=facts.request_body,
        total_size=facts.request_body + _size(headers) + _size(facts.request_trailers),
        headers=_map(headers),
    )
    if headers is not None:
        path = _header(headers, b":path") or ""
        found["path"] = path
        found["url_path"] = path.partition("?")[0]
        found["query"] = path.partition("?")[2].partition("#")[0]
        for name, header in _FROM_HEADERS.items():
            value = _header(headers, header)
            if value is not None:
                found[name] = value
        length = _header(headers, b"content-length") or ""
        if length.isdecimal() and length.isascii() and len(length) < 19:
            found["size"] = int(length)
    if facts.has_ended:
        found["duration"] = facts.elapsed
    return found


_FROM_HEADERS: Final = {
    "host": b":authority",
    "scheme": b":scheme",
    "method": b":method",
    "referer": b"referer",
    "useragent": b"user-agent",
    "id": b"x-request-id",
}

_GRPC_OF_HTTP: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}


def grpc_status(status: int) -> int:
    """The gRPC status for an HTTP status; that is UNKNOWN (2) for 200 (source/common/grpc/common.cc `httpToGrpcStatus`)."""
    return _GRPC_OF_HTTP.get(status, 2)


def _response(facts: HttpFacts) -> Attributes:
    headers, trailers = facts.response_headers, facts.response_trailers
    found = Attributes(
        flags=0,
        size=facts.response_body,
        total_size=facts.response_body + _size(headers) + _size(trailers),
        headers=_map(headers),
        trailers=_map(trailers),
    )
    if facts.details is not None:
        found["code_details"] = facts.details
    if facts.status:
        found["code"] = facts.status
        found["grpc_status"] = grpc_status(facts.status)
        for each in (headers, trailers):
            text = _header(each, b"grpc-status") if each is not None else None
            if text is not None and text.isdecimal() and len(text) < 9:
                found["grpc_status"] = int(text)
    if facts.is_connected and facts.response_body:
        found["backend_latency"] = _CONNECT_NANOSECONDS
    return found


def _header(headers: HeaderMap, name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else _text(value)


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def _size(headers: HeaderMap | None) -> int:
    return headers.byte_size if headers is not None else 0


def _map(headers: HeaderMap | None) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in headers or ():
        present = found.get(_text(name))
        found[_text(name)] = (
            f"{present},{_text(value)}" if isinstance(present, str) else _text(value)
        )
    return found
