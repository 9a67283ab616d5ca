"""The numbers of the Proxy-Wasm ABI 0.1.0 to 0.2.1, and of WASI preview 1 as far as Envoy has it.

Sources: github.com/proxy-wasm/spec abi-versions; proxy-wasm-cpp-sdk proxy_wasm_enums.h and proxy_wasm_common.h, which Envoy
is built with.
"""

from enum import IntEnum
from typing import Final

U32: Final = 0xFFFF_FFFF


class Result(IntEnum):
    """The result of a `proxy_*` host function (`WasmResult`)."""

    OK = 0
    NOT_FOUND = 1
    BAD_ARGUMENT = 2
    SERIALIZATION_FAILURE = 3
    PARSE_FAILURE = 4
    BAD_EXPRESSION = 5
    INVALID_MEMORY_ACCESS = 6
    EMPTY = 7
    CAS_MISMATCH = 8
    RESULT_MISMATCH = 9
    INTERNAL_FAILURE = 10
    BROKEN_CONNECTION = 11
    UNIMPLEMENTED = 12


class Errno(IntEnum):
    """The result of a WASI function (`__wasi_errno_t`); only the values that Envoy uses."""

    SUCCESS = 0
    BADF = 8
    NOTDIR = 20
    FAULT = 21
    INVAL = 28
    NOENT = 44
    NOSYS = 52
    NOTSUP = 58


class MapType(IntEnum):
    """`WasmHeaderMapType`."""

    REQUEST_HEADERS = 0
    REQUEST_TRAILERS = 1
    RESPONSE_HEADERS = 2
    RESPONSE_TRAILERS = 3
    GRPC_RECEIVE_INITIAL_METADATA = 4
    GRPC_RECEIVE_TRAILING_METADATA = 5
    HTTP_CALL_RESPONSE_HEADERS = 6
    HTTP_CALL_RESPONSE_TRAILERS = 7


class BufferType(IntEnum):
    """`WasmBufferType`."""

    HTTP_REQUEST_BODY = 0
    HTTP_RESPONSE_BODY = 1
    NETWORK_DOWNSTREAM_DATA = 2
    NETWORK_UPSTREAM_DATA = 3
    HTTP_CALL_RESPONSE_BODY = 4
    GRPC_RECEIVE_BUFFER = 5
    VM_CONFIGURATION = 6
    PLUGIN_CONFIGURATION = 7
    CALL_DATA = 8


class StreamType(IntEnum):
    """`WasmStreamType`."""

    REQUEST = 0
    RESPONSE = 1
    DOWNSTREAM = 2
    UPSTREAM = 3


class LogLevel(IntEnum):
    """`LogLevel`; the names are those of Envoy's log."""

    TRACE = 0
    DEBUG = 1
    INFO = 2
    WARNING = 3
    ERROR = 4
    CRITICAL = 5


class MetricType(IntEnum):
    """`MetricType`. The two lowest bits of a metric's id are its type."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


class HeadersStatus(IntEnum):
    """`FilterHeadersStatus`: the result of a headers callback."""

    CONTINUE = 0
    STOP_ITERATION = 1
    CONTINUE_AND_END_STREAM = 2
    """Envoy treats it as CONTINUE."""
    STOP_ALL_ITERATION_AND_BUFFER = 3
    STOP_ALL_ITERATION_AND_WATERMARK = 4


class DataStatus(IntEnum):
    """`FilterDataStatus`: the result of a body callback."""

    CONTINUE = 0
    STOP_ITERATION_AND_BUFFER = 1
    STOP_ITERATION_AND_WATERMARK = 2
    STOP_ITERATION_NO_BUFFER = 3


class TrailersStatus(IntEnum):
    """`FilterTrailersStatus`: the result of a trailers callback."""

    CONTINUE = 0
    STOP_ITERATION = 1


class CloseType(IntEnum):
    """`CloseType`: the side that closed a TCP connection."""

    UNKNOWN = 0
    LOCAL = 1
    REMOTE = 2


class GrpcStatus(IntEnum):
    """The gRPC status codes that the host itself reports."""

    OK = 0
    UNKNOWN = 2
    INTERNAL = 13
    UNAVAILABLE = 14
