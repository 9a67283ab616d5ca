"""Host functions for streams: header maps, bodies, local replies, pause and resume.

Sources: proxy-wasm-cpp-host src/exports.cc; envoy source/extensions/common/wasm/context.cc.
"""

from collections.abc import Callable, Mapping
from typing import Final

from autowasm.sandbox.contexts import Buffer
from autowasm.sandbox.headers import HeaderMap, pack, unpack
from autowasm.sandbox.host import Call, Host, Phase
from autowasm.sandbox.protocol import BufferType, MapType, Result, StreamType

# --- header maps


def _mutable(host: Host, kind: int) -> HeaderMap | None:
    return host.context.mutable_map(MapType(kind))


def _modified(host: Host, kind: int) -> Result:
    if kind == MapType.REQUEST_HEADERS and host.context.stream is not None:
        host.context.stream.clear_route_cache()
    return Result.OK


def add_value(host: Host, kind: int, key_at: int, key_size: int, at: int, size: int) -> Result:
    """Add a header."""
    return _write_value(host, kind, (key_at, key_size), (at, size), HeaderMap.add)


def _write_value(
    host: Host,
    kind: int,
    key_at: tuple[int, int],
    value_at: tuple[int, int],
    write: Callable[[HeaderMap, bytes, bytes], None],
) -> Result:
    """`write` a header; key and value are an address and a size each."""
    if kind > MapType.HTTP_CALL_RESPONSE_TRAILERS:
        return Result.BAD_ARGUMENT
    key, value = host.read(*key_at), host.read(*value_at)
    if key is None or value is None:
        return Result.INVALID_MEMORY_ACCESS
    found = _mutable(host, kind)
    if found is None:
        return Result.BAD_ARGUMENT
    host.ledger.hold(len(key) + len(value))
    write(found, key, value)
    return _modified(host, kind)


def get_value(
    host: Host, kind: int, key_at: int, key_size: int, address_at: int, size_at: int
) -> Result:
    """The first value of a header. In ABI 0.1.0, the value of an absent header is empty."""
    if kind > MapType.HTTP_CALL_RESPONSE_TRAILERS:
        return Result.BAD_ARGUMENT
    key = host.read(key_at, key_size)
    if key is None:
        return Result.INVALID_MEMORY_ACCESS
    context = host.context
    found = context.const_map(MapType(kind), host.root_of(context))
    if found is None and context.log_maps is None:
        return Result.BAD_ARGUMENT
    value = found.get(key) if found is not None else None
    if value is None and host.abi != "0.1.0":
        return Result.NOT_FOUND
    return host.give(value or b"", address_at, size_at)


def replace_value(host: Host, kind: int, key_at: int, key_size: int, at: int, size: int) -> Result:
    """Replace a header, or add it."""
    return _write_value(host, kind, (key_at, key_size), (at, size), HeaderMap.set)


def remove_value(host: Host, kind: int, key_at: int, key_size: int) -> Result:
    """Remove a header."""
    if kind > MapType.HTTP_CALL_RESPONSE_TRAILERS:
        return Result.BAD_ARGUMENT
    key = host.read(key_at, key_size)
    if key is None:
        return Result.INVALID_MEMORY_ACCESS
    found = _mutable(host, kind)
    if found is None:
        return Result.BAD_ARGUMENT
    found.remove(key)
    return _modified(host, kind)


def get_pairs(host: Host, kind: int, address_at: int, size_at: int) -> Result:
    """The whole map; empty where there is none."""
    if kind > MapType.HTTP_CALL_RESPONSE_TRAILERS:
        return Result.BAD_ARGUMENT
    context = host.context
    found = context.const_map(MapType(kind), host.root_of(context))
    return host.give(pack(found) if found else b"", address_at, size_at)


def set_pairs(host: Host, kind: int, at: int, size: int) -> Result:
    """Replace the whole map."""
    if kind > MapType.HTTP_CALL_RESPONSE_TRAILERS:
        return Result.BAD_ARGUMENT
    data = host.read(at, size)
    if data is None:
        return Result.INVALID_MEMORY_ACCESS
    found = _mutable(host, kind)
    if found is None:
        return Result.BAD_ARGUMENT
    host.ledger.hold(len(data))
    found.clear()
    for key, value in unpack(data):
        found.add(key, value)
    return _modified(host, kind)


def get_size(host: Host, kind: int, size_at: int) -> Result:
    """Size of the names and values of a map that may be changed now, in bytes."""
    if kind > MapType.HTTP_CALL_RESPONSE_TRAILERS:
        return Result.BAD_ARGUMENT
    found = _mutable(host, kind)
    if found is None:
        return Result.BAD_ARGUMENT
    return _ok(host.write_number(size_at, found.byte_size))


# --- bodies


def _buffer(host: Host, kind: int) -> Buffer | None:
    context = host.context
    return context.buffer(
        BufferType(kind),
        host.root_of(context),
        configuring=host.configuring,
        vm=host.plugin.vm_configuration or b"",
    )


def get_bytes(
    host: Host, kind: int, start: int, length: int, address_at: int, size_at: int
) -> Result:
    """Bytes of a buffer; none, with a null pointer, beyond its end."""
    if kind > BufferType.CALL_DATA:
        return Result.BAD_ARGUMENT
    found = _buffer(host, kind)
    if found is None:
        return Result.NOT_FOUND
    length = min(length, max(0, len(found) - start))
    host.instance.charge_copy(length)
    return host.give(found.slice(start, length), address_at, size_at)


def get_buffer_status(host: Host, kind: int, length_at: int, flags_at: int) -> Result:
    """Length of a buffer, and flags, which are 0."""
    if kind > BufferType.CALL_DATA:
        return Result.BAD_ARGUMENT
    found = _buffer(host, kind)
    if found is None:
        return Result.NOT_FOUND
    return _ok(host.write_number(length_at, len(found)) and host.write_number(flags_at, 0))


def set_bytes(host: Host, kind: int, start: int, length: int, at: int, size: int) -> Result:
    """Replace bytes at the beginning of a buffer, or append."""
    if kind > BufferType.CALL_DATA:
        return Result.BAD_ARGUMENT
    found = _buffer(host, kind)
    if found is None:
        return Result.NOT_FOUND
    data = host.read(at, size)
    if data is None:
        return Result.INVALID_MEMORY_ACCESS
    host.ledger.hold(len(data))
    return found.replace(start, length, data)


# --- control


def continue_request(host: Host) -> Result:
    """Resume the request. ABI 0.1.0 only."""
    return _continue(host, StreamType.REQUEST)


def continue_response(host: Host) -> Result:
    """Resume the response. ABI 0.1.0 only."""
    return _continue(host, StreamType.RESPONSE)


def continue_stream(host: Host, kind: int) -> Result:
    """Resume a stream."""
    return Result.BAD_ARGUMENT if kind > StreamType.UPSTREAM else _continue(host, StreamType(kind))


def _continue(host: Host, kind: StreamType) -> Result:
    context, stream = host.context, host.context.stream
    if kind is StreamType.UPSTREAM:
        return Result.UNIMPLEMENTED
    if stream is not None:
        host.defer(lambda: stream.continue_stream(kind))
    if kind is not StreamType.DOWNSTREAM:
        context.release()
    return Result.OK


def close_stream(host: Host, kind: int) -> Result:
    """Reset a stream."""
    if kind > StreamType.UPSTREAM:
        return Result.BAD_ARGUMENT
    stream = host.context.stream
    if stream is not None:
        host.defer(lambda: stream.close_stream(StreamType(kind)))
    return Result.OK


_MOST_GRPC_STATUS: Final = 16


def send_local_response(
    host: Host,
    status: int,
    details_at: int,
    details_size: int,
    body_at: int,
    body_size: int,
    headers_at: int,
    headers_size: int,
    grpc_status: int,
) -> Result:
    """Answer the request in place of the service. The callback's own result is ignored then."""
    details = host.read(details_at, details_size)
    body = host.read(body_at, body_size)
    pairs = host.read(headers_at, headers_size)
    if details is None or body is None or pairs is None:
        return Result.INVALID_MEMORY_ACCESS
    stream = host.context.stream
    if stream is not None:
        host.ledger.hold(len(details) + len(body) + len(pairs))
        code = grpc_status if grpc_status <= _MOST_GRPC_STATUS else None
        headers = [(key.lower(), value) for key, value in unpack(pairs)]
        text = "_".join(details.decode(errors="replace").split(" "))
        host.defer(lambda: stream.send_local_reply(status, body, headers, code, text))
    host.stop_iteration = True
    return Result.OK


def clear_route_cache(host: Host) -> Result:
    """Choose the route again. ABI 0.1.0 only; later ones call a foreign function."""
    if host.context.stream is not None:
        host.context.stream.clear_route_cache()
    return Result.OK


def _ok(is_written: bool) -> Result:
    return Result.OK if is_written else Result.INVALID_MEMORY_ACCESS


CALLS: Final[Mapping[str, Call]] = {
    "proxy_add_header_map_value": Call(add_value, Result, Phase.RUN),
    "proxy_get_header_map_value": Call(get_value, Result, Phase.RUN),
    "proxy_replace_header_map_value": Call(replace_value, Result, Phase.RUN),
    "proxy_remove_header_map_value": Call(remove_value, Result, Phase.RUN),
    "proxy_get_header_map_pairs": Call(get_pairs, Result, Phase.RUN),
    "proxy_set_header_map_pairs": Call(set_pairs, Result, Phase.RUN),
    "proxy_get_header_map_size": Call(get_size, Result, Phase.RUN),
    "proxy_get_buffer_bytes": Call(get_bytes, Result, Phase.RUN),
    "proxy_get_buffer_status": Call(get_buffer_status, Result, Phase.RUN),
    "proxy_set_buffer_bytes": Call(set_bytes, Result, Phase.RUN),
    "proxy_continue_request": Call(continue_request, Result, Phase.RUN),
    "proxy_continue_response": Call(continue_response, Result, Phase.RUN),
    "proxy_continue_stream": Call(continue_stream, Result, Phase.RUN),
    "proxy_close_stream": Call(close_stream, Result, Phase.RUN),
    "proxy_send_local_response": Call(send_local_response, Result, Phase.RUN),
    "proxy_clear_route_cache": Call(clear_route_cache, Result, Phase.RUN),
}
