"""Host functions for HTTP and gRPC calls to clusters, and the callbacks with the answers.

The caller of the sandbox answers (`callouts.Clusters`). Sources: proxy-wasm-cpp-host src/exports.cc; envoy
source/extensions/common/wasm/context.cc `httpCall`, `grpcCall`, `grpcStream`, `onHttpCallSuccess`, `onGrpcReceiveWrapper`,
`onGrpcCloseWrapper`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from autowasm.sandbox import attributes, protobuf
from autowasm.sandbox.clusteranswers import (
    Answer,
    Broken,
    Callout,
    CalloutKind,
    GrpcAnswer,
    Headers,
    HttpAnswer,
)
from autowasm.sandbox.contexts import CallResponse, Context, GrpcStream
from autowasm.sandbox.errors import FailureKind, ModuleFailed
from autowasm.sandbox.headers import HeaderMap, MapKind, unpack
from autowasm.sandbox.host import Call, Host, Phase
from autowasm.sandbox.protocol import GrpcStatus, Result
from autowasm.text import shown

_HTTP, _GRPC_CALL, _GRPC_STREAM = 0, 1, 2
_REQUIRED: Final = (b":path", b":method", b":authority")
_TIMED_OUT: Final = HttpAnswer(
    504,
    (("content-length", "24"), ("content-type", "text/plain")),
    b"upstream request timeout",
)


def http_call(
    host: Host,
    cluster_at: int,
    cluster_size: int,
    headers_at: int,
    headers_size: int,
    body_at: int,
    body_size: int,
    trailers_at: int,
    trailers_size: int,
    milliseconds: int,
    token_at: int,
) -> Result:
    """Send a request to a cluster; `proxy_on_http_call_response` of the root context follows."""
    root = host.root_of(host.context)
    cluster, body = host.read(cluster_at, cluster_size), host.read(body_at, body_size)
    pairs, trailers = host.read(headers_at, headers_size), host.read(trailers_at, trailers_size)
    if cluster is None or body is None or pairs is None or trailers is None:
        return Result.INVALID_MEMORY_ACCESS
    if not host.write_number(token_at, 0):
        return Result.INVALID_MEMORY_ACCESS
    callout = Callout(
        CalloutKind.HTTP,
        cluster.decode(errors="replace"),
        [*HeaderMap(MapKind.REQUEST_HEADERS, unpack(pairs))],
        body,
        unpack(trailers),
        milliseconds,
    )
    _recorded(host, callout)
    if milliseconds >> 31 or callout.cluster not in host.environment.clusters:
        return Result.BAD_ARGUMENT
    present = {name for name, _ in callout.headers}
    if not present.issuperset(_REQUIRED):
        return Result.BAD_ARGUMENT
    if body:
        callout.headers = [
            *(pair for pair in callout.headers if pair[0] != b"content-length"),
            (b"content-length", str(len(body)).encode()),
        ]
    token = host.next_callout_id(_HTTP)
    answer = callout.answer = host.environment.clusters.answer(callout)
    seconds = milliseconds / 1000
    if milliseconds and answer.delay >= seconds:
        answer = _TIMED_OUT
    else:
        seconds = answer.delay
    root.http_callouts[token] = callout
    host.schedule(seconds, partial(_http_answered, host, root, token, answer))
    host.write_number(token_at, token)
    return Result.OK


def _http_answered(host: Host, root: Context, token: int, answer: Answer) -> None:
    if root.http_callouts.pop(token, None) is None:
        return
    if not isinstance(answer, HttpAnswer):
        root.status = (Result.BROKEN_CONNECTION, b"reset")
        _called(host, root, "proxy_on_http_call_response", token, 0, 0, 0)
        return
    headers = HeaderMap(MapKind.RESPONSE_HEADERS, [(b":status", str(answer.status).encode())])
    _fill(headers, answer.headers)
    if answer is not _TIMED_OUT:
        headers.assign(b"x-envoy-upstream-service-time", b"%d" % round(answer.delay * 1000))
    trailers = None
    if answer.trailers:
        trailers = HeaderMap(MapKind.RESPONSE_TRAILERS)
        _fill(trailers, answer.trailers)
    root.http_response = CallResponse(headers, answer.body, trailers)
    sizes = len(headers), len(answer.body), len(trailers) if trailers is not None else 0
    _called(host, root, "proxy_on_http_call_response", token, *sizes)


def _called(host: Host, root: Context, name: str, *arguments: int) -> None:
    """Call a callback with the answer of a cluster, which is dropped before the actions that the callback requested run."""

    def forget() -> None:
        root.http_response = root.grpc_message = None
        root.status = (root.status[0], b"")

    if host.exports(name) and not host.has_failed:
        host.defer(forget)
        host.callback(root, name, root.identifier, *arguments)
    forget()


def _fill(headers: HeaderMap, given: Headers) -> None:
    for name, value in given:
        headers.add(name.encode("latin-1"), value.encode("utf-8", "surrogateescape"))


def _recorded(host: Host, callout: Callout) -> None:
    host.ledger.hold(len(callout.body) + sum(len(n) + len(v) for n, v in callout.headers))
    host.callouts.append(callout)
    host.doubts[f'the cluster "{shown(callout.cluster)}"'] = None


# --- gRPC


def grpc_call(
    host: Host,
    target_at: int,
    target_size: int,
    service_at: int,
    service_size: int,
    method_at: int,
    method_size: int,
    metadata_at: int,
    metadata_size: int,
    message_at: int,
    message_size: int,
    milliseconds: int,
    token_at: int,
) -> Result:
    """Call a gRPC method; `proxy_on_grpc_receive` or `proxy_on_grpc_close` of the root context follows."""
    message = host.read(message_at, message_size)
    where = (target_at, target_size, service_at, service_size, method_at, method_size)
    callout = _grpc_callout(
        host, CalloutKind.GRPC_CALL, *where, metadata_at, metadata_size, message or b""
    )
    if message is None or callout is None:
        return Result.INVALID_MEMORY_ACCESS
    callout.timeout_milliseconds = milliseconds
    root = host.root_of(host.context)
    result, token = _open(host, root, callout, _GRPC_CALL)
    if result is not Result.OK:
        return result
    root.grpc_calls[token] = callout
    answer = callout.answer = host.environment.clusters.answer(callout)
    if milliseconds and answer.delay >= milliseconds / 1000:
        host.schedule(
            milliseconds / 1000, partial(_call_failed, host, root, token, *_CALL_TIMED_OUT)
        )
    else:
        host.schedule(answer.delay, partial(_call_answered, host, root, token, answer))
    return _ok(host.write_number(token_at, token))


def grpc_stream(
    host: Host,
    target_at: int,
    target_size: int,
    service_at: int,
    service_size: int,
    method_at: int,
    method_size: int,
    metadata_at: int,
    metadata_size: int,
    token_at: int,
) -> Result:
    """Open a gRPC stream."""
    where = (target_at, target_size, service_at, service_size, method_at, method_size)
    callout = _grpc_callout(host, CalloutKind.GRPC_STREAM, *where, metadata_at, metadata_size, b"")
    if callout is None:
        return Result.INVALID_MEMORY_ACCESS
    root = host.root_of(host.context)
    result, token = _open(host, root, callout, _GRPC_STREAM)
    if result is not Result.OK:
        return result
    root.grpc_streams[token] = GrpcStream(callout)
    answer = callout.answer = host.environment.clusters.answer(callout)
    host.schedule(answer.delay, partial(_stream_answered, host, root, token, answer))
    return _ok(host.write_number(token_at, token))


def grpc_send(host: Host, token: int, message_at: int, message_size: int, _end: int) -> Result:
    """Send a message on a stream."""
    message = host.read(message_at, message_size)
    if message is None:
        return Result.INVALID_MEMORY_ACCESS
    if token & 3 != _GRPC_STREAM:
        return Result.BAD_ARGUMENT
    stream = host.root_of(host.context).grpc_streams.get(token)
    if stream is None:
        return Result.NOT_FOUND
    host.ledger.hold(len(message))
    stream.callout.messages.append(message)
    return Result.OK


def grpc_close(host: Host, token: int) -> Result:
    """Cancel a call, or end our side of a stream."""
    root = host.root_of(host.context)
    if token & 3 == _GRPC_CALL:
        return _found(root.grpc_calls.pop(token, None))
    if token & 3 != _GRPC_STREAM:
        return Result.BAD_ARGUMENT
    stream = root.grpc_streams.get(token)
    if stream is None:
        return Result.NOT_FOUND
    if stream.is_remote_closed:
        del root.grpc_streams[token]
    stream.is_local_closed = True
    return Result.OK


def grpc_cancel(host: Host, token: int) -> Result:
    """Cancel a call, or reset a stream."""
    root = host.root_of(host.context)
    if token & 3 == _GRPC_CALL:
        return _found(root.grpc_calls.pop(token, None))
    if token & 3 != _GRPC_STREAM:
        return Result.BAD_ARGUMENT
    return _found(root.grpc_streams.pop(token, None))


def _found(entry: Callout | GrpcStream | None) -> Result:
    return Result.NOT_FOUND if entry is None else Result.OK


def _grpc_callout(
    host: Host,
    kind: CalloutKind,
    target_at: int,
    target_size: int,
    service_at: int,
    service_size: int,
    method_at: int,
    method_size: int,
    metadata_at: int,
    metadata_size: int,
    message: bytes,
) -> Callout | None:
    target, service = host.read(target_at, target_size), host.read(service_at, service_size)
    method, metadata = host.read(method_at, method_size), host.read(metadata_at, metadata_size)
    if target is None or service is None or method is None or metadata is None:
        return None
    names = service.decode(errors="replace"), method.decode(errors="replace")
    callout = Callout(kind, "", unpack(metadata), message, service=names[0], method=names[1])
    callout.cluster = target.decode(errors="replace")
    fields = protobuf.fields(target)
    callout.is_parsed = fields is not None
    if fields is not None:
        cluster = _cluster_of(fields)
        if cluster is None:
            raise ModuleFailed(
                FailureKind.CRASH, f"its {kind} names no cluster, which crashes Envoy"
            )
        callout.cluster = cluster.decode(errors="replace")
    return callout


def _open(host: Host, root: Context, callout: Callout, kind: int) -> tuple[Result, int]:
    """Envoy reads the target as a `GrpcService`, and as the name of a cluster if it is not one."""
    _recorded(host, callout)
    is_known = callout.cluster in host.environment.clusters
    if not callout.is_parsed and not is_known:
        return Result.PARSE_FAILURE, 0
    token = host.next_callout_id(kind)
    if not is_known:
        closed = partial(
            _closed, host, root, token, GrpcStatus.UNAVAILABLE, b"Cluster not available"
        )
        host.defer(closed)
        return Result.INTERNAL_FAILURE, token
    return Result.OK, token


def _call_answered(host: Host, root: Context, token: int, answer: Answer) -> None:
    if token not in root.grpc_calls:
        return
    status, message = _grpc_end(answer)
    if isinstance(answer, GrpcAnswer) and status == GrpcStatus.OK:
        _received(host, root, token, answer.messages[0] if answer.messages else b"")
        root.grpc_calls.pop(token, None)
    else:
        _call_failed(host, root, token, status, message)


def _call_failed(host: Host, root: Context, token: int, status: int, message: bytes) -> None:
    if root.grpc_calls.pop(token, None) is not None:
        _closed(host, root, token, status, message)


def _stream_answered(host: Host, root: Context, token: int, answer: Answer) -> None:
    stream = root.grpc_streams.get(token)
    if stream is None:
        return
    if not isinstance(answer, Broken):
        grpc = answer if isinstance(answer, GrpcAnswer) else GrpcAnswer()
        root.grpc_initial_metadata = _metadata(grpc.initial_metadata)
        _metadata_callback(host, root, token, "initial", root.grpc_initial_metadata)
        root.grpc_initial_metadata = None
        for message in grpc.messages:
            if token not in root.grpc_streams:
                return
            _received(host, root, token, message)
        if token not in root.grpc_streams:
            return
        root.grpc_trailing_metadata = _metadata(grpc.trailing_metadata)
        _metadata_callback(host, root, token, "trailing", root.grpc_trailing_metadata)
        root.grpc_trailing_metadata = None
    if token not in root.grpc_streams:
        return
    stream.is_remote_closed = True
    _closed(host, root, token, *_grpc_end(answer))
    if stream.is_local_closed:
        root.grpc_streams.pop(token, None)


def _grpc_end(answer: Answer) -> tuple[int, bytes]:
    match answer:
        case GrpcAnswer():
            return _ended(answer.status, answer.status_message)
        case HttpAnswer():
            return _http_end(answer)
        case Broken():
            return GrpcStatus.UNAVAILABLE, b"reset"


def _http_end(answer: HttpAnswer) -> tuple[int, bytes]:
    """The meaning of an HTTP response for a gRPC client (`AsyncStreamImpl::onHeaders` and `onData`)."""
    headers = dict(answer.headers)
    status = headers.get("grpc-status", "")
    if not answer.body and not answer.trailers and status.isdecimal() and status.isascii():
        return _ended(int(status), headers.get("grpc-message", ""))
    if answer.status != _HTTP_OK:
        return _ended(attributes.grpc_status(answer.status))
    return _ended(GrpcStatus.UNKNOWN if _is_framed(answer.body) else GrpcStatus.INTERNAL)


def _is_framed(body: bytes) -> bool:
    """Whether these are gRPC messages; the last one may be incomplete."""
    while body:
        size = int.from_bytes(body[1:_FRAME_HEADER], "big")
        if body[0] > 1 or (body[0] and size):
            return False
        body = body[_FRAME_HEADER + size :]
    return True


def _ended(status: int, message: str = "") -> tuple[int, bytes]:
    """With the details of the response, as Envoy reports the end of a call that failed."""
    if status == GrpcStatus.OK:
        return status, message.encode()
    return status, (f"{message}{{{_DETAILS}}}" if message else _DETAILS).encode()


_HTTP_OK: Final = 200
_FRAME_HEADER: Final = 5
_DETAILS: Final = "via_upstream"
_CALL_TIMED_OUT: Final = (
    GrpcStatus.UNAVAILABLE,
    b"upstream request timeout{response_timeout}",
)


def _metadata(given: Headers) -> HeaderMap:
    made = HeaderMap(MapKind.RESPONSE_TRAILERS)
    _fill(made, given)
    return made


def _metadata_callback(host: Host, root: Context, token: int, which: str, found: HeaderMap) -> None:
    name = f"proxy_on_grpc_receive_{which}_metadata"
    host.callback(root, name, root.identifier, token, len(found))


def _received(host: Host, root: Context, token: int, message: bytes) -> None:
    root.grpc_message = message
    _called(host, root, "proxy_on_grpc_receive", token, len(message))


def _closed(host: Host, root: Context, token: int, status: int, message: bytes) -> None:
    root.status = (status, message)
    _called(host, root, "proxy_on_grpc_close", token, status)


# --- the name of the cluster in a GrpcService in protobuf


_ENVOY_GRPC, _GOOGLE_GRPC = 1, 2


def _cluster_of(fields: Sequence[tuple[int, int | bytes]]) -> bytes | None:
    """The cluster in a `GrpcService` (`cluster_name`, `target_uri`); None for one that names no target."""
    cluster = None
    for number, value in fields:
        if number in (_ENVOY_GRPC, _GOOGLE_GRPC) and isinstance(value, bytes):
            inner = protobuf.fields(value) or []
            cluster = next((v for n, v in inner if n == 1 and isinstance(v, bytes)), b"")
    return cluster


def _ok(is_written: bool) -> Result:
    return Result.OK if is_written else Result.INVALID_MEMORY_ACCESS


CALLS: Final[Mapping[str, Call]] = {
    "proxy_http_call": Call(http_call, Result, Phase.RUN),
    "proxy_grpc_call": Call(grpc_call, Result, Phase.RUN),
    "proxy_grpc_stream": Call(grpc_stream, Result, Phase.RUN),
    "proxy_grpc_send": Call(grpc_send, Result, Phase.RUN),
    "proxy_grpc_close": Call(grpc_close, Result, Phase.RUN),
    "proxy_grpc_cancel": Call(grpc_cancel, Result, Phase.RUN),
}
