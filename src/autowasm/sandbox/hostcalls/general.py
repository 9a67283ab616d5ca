"""Host functions for logs, time, configuration, properties, metrics and foreign functions.

Sources: proxy-wasm-cpp-host src/exports.cc; envoy source/extensions/common/wasm/context.cc `getProperty`, `setProperty`,
`findValue`, source/extensions/common/wasm/foreign.cc.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Final

from autowasm.sandbox import properties, protobuf
from autowasm.sandbox.contexts import Context
from autowasm.sandbox.errors import FailureKind, ModuleFailed
from autowasm.sandbox.host import ALONE, ANY, STARTING, Call, Host, Phase
from autowasm.sandbox.protocol import LogLevel, MetricType, Result
from autowasm.text import shown


def log(host: Host, level: int, address: int, size: int) -> Result:
    """Log a line."""
    if level > LogLevel.CRITICAL:
        return Result.BAD_ARGUMENT
    message = host.read(address, size)
    if message is None:
        return Result.INVALID_MEMORY_ACCESS
    host.log.add(LogLevel(level), message, prefix=host.context.log_prefix)
    return Result.OK


def get_log_level(host: Host, level_at: int) -> Result:
    """The level of Envoy's log."""
    return _ok(host.write_number(level_at, host.environment.log_level))


def get_current_time(host: Host, time_at: int) -> Result:
    """Nanoseconds since 1970."""
    return _ok(host.write_number(time_at, host.clock.real(), 8))


def set_tick_period(host: Host, milliseconds: int) -> Result:
    """Call `proxy_on_tick` of the root context periodically; 0 ends that."""
    host.clock.set_timer(host.root_of(host.context).identifier, milliseconds)
    return Result.OK


def get_configuration(host: Host, address_at: int, size_at: int) -> Result:
    """The plugin's configuration while it is configured, else the VM's. ABI 0.1.0 only."""
    plugin = host.plugin
    value = plugin.configuration if host.configuring else plugin.vm_configuration
    return host.give(value or b"", address_at, size_at)


def get_status(host: Host, code_at: int, address_at: int, size_at: int) -> Result:
    """Status and message of the callout whose callback runs."""
    code, message = host.root_of(host.context).status
    if not host.write_number(code_at, code):
        return Result.INVALID_MEMORY_ACCESS
    return host.give(message, address_at, size_at)


def set_effective_context(host: Host, identifier: int) -> Result:
    """Let the following host functions act on another context."""
    return Result.OK if host.set_effective(identifier) else Result.BAD_ARGUMENT


def done(host: Host) -> Result:
    """The root context, whose `proxy_on_done` returned 0, is done now."""
    return host.root_done()


# --- properties

_OWN: Final = frozenset({b"plugin_name", b"plugin_root_id", b"plugin_vm_id"})


def get_property(host: Host, path_at: int, path_size: int, address_at: int, size_at: int) -> Result:
    """The value under a path, whose parts are separated by NUL."""
    path = host.read(path_at, path_size)
    if path is None:
        return Result.INVALID_MEMORY_ACCESS
    parts = properties.split(path)
    if not parts:
        return Result.SERIALIZATION_FAILURE
    value = _top(host, host.context, parts[0])
    found = value if isinstance(value, Result) else properties.find(value, parts[1:])
    if isinstance(found, Result):
        if parts[0] not in _OWN:
            host.doubts[f"the property {shown('.'.join(map(shown, parts)))}"] = None
        return found
    data = properties.encode(found)
    return Result.SERIALIZATION_FAILURE if data is None else host.give(data, address_at, size_at)


def _top(host: Host, context: Context, name: bytes) -> properties.Value | Result:
    stream = (
        context.stream.properties() if context.stream is not None else host.environment.properties
    )
    text = name.decode(errors="surrogateescape")
    if text in stream:
        return stream[text]
    if context.identifier and name == b"plugin_name":
        return host.plugin.name
    if name == b"plugin_root_id":
        return host.plugin.root_id if context.identifier else ""
    if name == b"plugin_vm_id":
        return host.plugin.vm_id
    return context.state.get(name, Result.NOT_FOUND)


def set_property(
    host: Host, path_at: int, path_size: int, value_at: int, value_size: int
) -> Result:
    """Keep a value with the stream, under a path that `get_property` finds."""
    path, value = host.read(path_at, path_size), host.read(value_at, value_size)
    if path is None or value is None:
        return Result.INVALID_MEMORY_ACCESS
    context = host.context
    if context.stream is None:
        return Result.NOT_FOUND
    present = context.state.get(path)
    if present is not None:
        host.ledger.release(len(path) + len(present))
    host.ledger.hold(len(path) + len(value))
    context.state[path] = value
    return Result.OK


# --- metrics


def define_metric(host: Host, kind: int, name_at: int, name_size: int, id_at: int) -> Result:
    """A counter, gauge or histogram."""
    name = host.read(name_at, name_size)
    if name is None:
        return Result.INVALID_MEMORY_ACCESS
    if kind > MetricType.HISTOGRAM:
        return Result.BAD_ARGUMENT
    return _ok(host.write_number(id_at, host.metrics.define(MetricType(kind), name)))


def increment_metric(host: Host, identifier: int, offset: int) -> Result:
    """Add to a counter or gauge."""
    return host.metrics.increment(identifier, _signed(offset))


def record_metric(host: Host, identifier: int, value: int) -> Result:
    """Set a gauge, add to a counter, or record a value of a histogram."""
    return host.metrics.record(identifier, value)


def get_metric(host: Host, identifier: int, value_at: int) -> Result:
    """The value of a counter or gauge."""
    value = host.metrics.get(identifier)
    if isinstance(value, Result):
        return value
    return _ok(host.write_number(value_at, value, 8))


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


# --- foreign functions


def call_foreign_function(
    host: Host,
    name_at: int,
    name_size: int,
    arguments_at: int,
    arguments_size: int,
    result_at: int,
    result_size_at: int,
) -> Result:
    """Call a function of Envoy by name."""
    name, arguments = host.read(name_at, name_size), host.read(arguments_at, arguments_size)
    if name is None or arguments is None:
        return Result.INVALID_MEMORY_ACCESS
    if name not in _FOREIGN:
        host.doubts[f'the foreign function "{shown(name)}"'] = None
        return Result.NOT_FOUND
    status, answer = _FOREIGN[name](host, arguments)
    address = 0
    if answer is not None and result_at:
        allocated = host.allocate(len(answer))
        if allocated is None or not host.write(allocated, answer):
            return Result.INVALID_MEMORY_ACCESS
        address = allocated
    size = len(answer) if answer is not None else 0
    if result_at and not host.write_number(result_at, address):
        return Result.INVALID_MEMORY_ACCESS
    if result_size_at and not host.write_number(result_size_at, size):
        return Result.INVALID_MEMORY_ACCESS
    return status


_Foreign = tuple[Result, bytes | None]


def _compress(_host: Host, arguments: bytes) -> _Foreign:
    return Result.OK, zlib.compress(arguments)


def _uncompress(host: Host, arguments: bytes) -> _Foreign:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(arguments, host.limits.copy_bytes)
    except zlib.error:
        return Result.SERIALIZATION_FAILURE, None
    host.instance.charge_copy(len(data) + len(unpacker.unconsumed_tail))
    if not unpacker.eof:
        return Result.SERIALIZATION_FAILURE, None
    return Result.OK, data


def _clear_route_cache(host: Host, _arguments: bytes) -> _Foreign:
    if host.context.stream is not None:
        host.context.stream.clear_route_cache()
    return Result.OK, None


def _declare_property(host: Host, arguments: bytes) -> _Foreign:
    fields = protobuf.fields(arguments)
    if fields is None:
        return Result.BAD_ARGUMENT, None
    name = next((value for number, value in fields if number == 1), b"")
    if not isinstance(name, bytes) or name in host.declared:
        return Result.BAD_ARGUMENT, None
    host.ledger.hold(len(name))
    host.declared.add(name)
    return Result.OK, None


def _lacking(name: str) -> Callable[[Host, bytes], _Foreign]:
    """A function of Envoy that the sandbox does not have, with a protobuf message as its argument."""

    def call(_host: Host, arguments: bytes) -> _Foreign:
        if protobuf.fields(arguments) is None:
            return Result.BAD_ARGUMENT, None
        raise ModuleFailed(
            FailureKind.UNSUPPORTED,
            f"it calls the foreign function {name}, which the sandbox does not have",
        )

    return call


def _expression(_host: Host, arguments: bytes) -> _Foreign:
    """Evaluate an expression. No module can have one: `expr_create` is not supported."""
    return (Result.BAD_ARGUMENT if len(arguments) != 4 else Result.NOT_FOUND), None


def _delete_expression(_host: Host, arguments: bytes) -> _Foreign:
    return (Result.BAD_ARGUMENT if len(arguments) != 4 else Result.OK), None


def _create_expression(_host: Host, _arguments: bytes) -> _Foreign:
    raise ModuleFailed(
        FailureKind.UNSUPPORTED, "it creates a CEL expression, which the sandbox does not have"
    )


_FOREIGN: Final = {
    b"compress": _compress,
    b"uncompress": _uncompress,
    b"clear_route_cache": _clear_route_cache,
    b"declare_property": _declare_property,
    b"expr_create": _create_expression,
    b"expr_evaluate": _expression,
    b"expr_delete": _delete_expression,
    b"set_envoy_filter_state": _lacking("set_envoy_filter_state"),
    b"sign": _lacking("sign"),
    b"verify_signature": _lacking("verify_signature"),
}


def _ok(is_written: bool) -> Result:
    return Result.OK if is_written else Result.INVALID_MEMORY_ACCESS


# --- Emscripten


def pthread_equal(_host: Host, one: int, other: int) -> int:
    """Whether two threads are the same."""
    return int(one == other)


def notify_memory_growth(_host: Host, _memory: int) -> None:
    """The memory grew."""


CALLS: Final[Mapping[str, Call]] = {
    "proxy_log": Call(log, Result, ANY),
    "proxy_get_log_level": Call(get_log_level, Result, Phase.RUN),
    "proxy_get_current_time_nanoseconds": Call(get_current_time, Result, Phase.RUN),
    "proxy_set_tick_period_milliseconds": Call(set_tick_period, Result, Phase.RUN),
    "proxy_get_configuration": Call(get_configuration, Result, Phase.RUN),
    "proxy_get_status": Call(get_status, Result, Phase.RUN),
    "proxy_set_effective_context": Call(set_effective_context, Result, Phase.RUN),
    "proxy_done": Call(done, Result, Phase.RUN),
    "proxy_get_property": Call(get_property, Result, Phase.RUN),
    "proxy_set_property": Call(set_property, Result, Phase.RUN),
    "proxy_define_metric": Call(define_metric, Result, Phase.RUN),
    "proxy_increment_metric": Call(increment_metric, Result, Phase.RUN),
    "proxy_record_metric": Call(record_metric, Result, Phase.RUN),
    "proxy_get_metric": Call(get_metric, Result, Phase.RUN),
    "proxy_call_foreign_function": Call(call_foreign_function, Result, Phase.RUN),
    "pthread_equal": Call(pthread_equal, int, Phase.RUN | ALONE),
    "emscripten_notify_memory_growth": Call(notify_memory_growth, None, STARTING | ALONE),
}
