"""The tables of host functions, and what each group of them does."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from autowasm.envoyversion import EnvoyVersion
from autowasm.sandbox.clusteranswers import GrpcAnswer, HttpAnswer
from autowasm.sandbox.engine import Compiled
from autowasm.sandbox.headers import pack, unpack
from autowasm.sandbox.host import Phase
from autowasm.sandbox.hostcalls import HOST_CALLS
from autowasm.sandbox.http import exchange
from autowasm.sandbox.message import Request, Response
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.protocol import BufferType, Errno, MapType, Result
from autowasm.sandbox.state import START_NANOSECONDS
from autowasm.sandbox.vm import Started, StartFailure, Vm
from autowasm.wasm import abi
from tests.unit.sandbox.calling import Call, Out, call, given, module, number, results

NEWEST = EnvoyVersion(1, 40)
A, B, C = Out(0), Out(1), Out(2)
WASI = "wasi_snapshot_preview1"


@pytest.fixture
def configured(compiled: Callable[[bytes], Compiled]) -> Callable[..., Vm]:
    """A virtual machine whose `proxy_on_configure` made the calls."""

    def start(
        calls: Sequence[Call],
        *,
        plugin: Plugin | None = None,
        version: str = "0.2.1",
        **fields: Any,
    ) -> Vm:
        text = module({"proxy_on_configure": calls}, version=version)
        vm = Vm(compiled(text), plugin or Plugin("name", "root", "vm"), envoy=NEWEST, **fields)
        started = vm.start()
        assert isinstance(started, Started), started
        return vm

    return start


def test_there_is_an_implementation_of_every_host_function_of_the_table() -> None:
    assert HOST_CALLS.keys() == abi.HOST_FUNCTIONS.keys()


def test_functions_are_allowed_at_the_start_where_envoy_allows_them() -> None:
    allowed = {name for name, call in HOST_CALLS.items() if call.phases & Phase.START}
    assert allowed == abi.ALLOWED_AT_START


def test_each_function_has_the_result_that_its_type_says() -> None:
    for name, made in HOST_CALLS.items():
        has_result = not abi.HOST_FUNCTIONS[name].signature.endswith("void")
        assert (made.result is not None) == has_result, name


_HUGE = (0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFF0, 0xFFFF_FFFF)


@pytest.mark.parametrize("name", sorted(HOST_CALLS))
def test_no_argument_makes_a_host_function_fail(
    name: str, compiled: Callable[[bytes], Compiled]
) -> None:
    function = abi.HOST_FUNCTIONS[name]
    count = len(
        [each for each in function.signature.partition(" -> ")[0].split() if each != "void"]
    )
    crashes_envoy = name in ("env.proxy_grpc_call", "env.proxy_grpc_stream")  # without a target
    calls = [call(name, *[value] * count) for value in _HUGE[crashes_envoy:]]
    text = module({"proxy_on_configure": calls}, version=function.abis[0])
    vm = Vm(compiled(text), Plugin(), envoy=NEWEST)

    assert isinstance(vm.start(), Started)

    kind = HOST_CALLS[name].result
    if kind in (Result, Errno):
        assert all(each in [int(value) for value in kind] for each in results(vm.host, len(calls)))


# --- general


def test_logs_have_their_level_and_the_prefix_of_their_context(
    configured: Callable[..., Vm],
) -> None:
    vm = configured([call("proxy_log", level, b"line") for level in range(7)])
    assert results(vm.host, 7) == [0] * 6 + [Result.BAD_ARGUMENT]
    assert [str(line) for line in vm.log.since(0)] == [
        *("trace: line", "debug: line", "info: line"),
        *("warning: line", "error: line", "critical: line"),
    ]
    assert vm.log.since(0)[0].prefix == " root vm"


def test_configurations_are_buffers(configured: Callable[..., Vm]) -> None:
    plugin = Plugin(configuration=b"for the plugin", vm_configuration=b"for the vm")
    kinds = (BufferType.PLUGIN_CONFIGURATION, BufferType.VM_CONFIGURATION)
    vm = configured(
        [call("proxy_get_buffer_bytes", kind, 4, 6, Out(kind), Out(kind, 8)) for kind in kinds]
        + [call("proxy_get_buffer_status", kinds[0], A, B)],
        plugin=plugin,
    )
    assert given(vm.host, Out(7), Out(7, 8)) == b"the pl"
    assert given(vm.host, Out(6), Out(6, 8)) == b"the vm"
    assert number(vm.host, A) == len(b"for the plugin")


def test_the_first_abi_has_a_function_for_the_configuration(configured: Callable[..., Vm]) -> None:
    plugin = Plugin(configuration=b"for the plugin")
    vm = configured([call("proxy_get_configuration", A, B)], plugin=plugin, version="0.1.0")
    assert given(vm.host, A, B) == b"for the plugin"


def test_time_is_virtual_and_passes_when_it_is_read(configured: Callable[..., Vm]) -> None:
    vm = configured([call("proxy_get_current_time_nanoseconds", cell) for cell in (A, B)])
    first, second = number(vm.host, A, 8), number(vm.host, B, 8)
    assert START_NANOSECONDS < first < second < START_NANOSECONDS + 1_000_000


def test_random_numbers_come_from_the_seed(configured: Callable[..., Vm]) -> None:
    calls = [call(f"{WASI}.random_get", A, 16), call(f"{WASI}.random_get", B, 0x10001)]
    found = [number(configured(calls, seed=seed).host, A, 16) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert results(configured(calls).host, 2) == [0, Errno.INVAL]


def test_properties_of_the_plugin_and_of_the_caller(configured: Callable[..., Vm]) -> None:
    node = {"id": "sidecar", "metadata": {"list": ["a", "b"], "number": 7, "true": True}}
    paths = [b"plugin_name", b"plugin_root_id", b"plugin_vm_id", b"xds\0node\0id"]
    paths += [b"xds\0node\0metadata\0list\x001", b"xds\0node\0metadata\0number"]
    paths += [b"xds\0node\0metadata\0true", b"xds\0node\0nope", b"xds\0node\0metadata\0list\x002"]
    vm = configured(
        [call("proxy_get_property", path, Out(at), Out(at, 8)) for at, path in enumerate(paths)],
        properties={"xds": {"node": node}},
    )
    assert results(vm.host, 9) == [0] * 7 + [Result.NOT_FOUND] * 2
    assert [given(vm.host, Out(at), Out(at, 8)) for at in range(7)] == [
        *(b"name", b"root", b"vm", b"sidecar", b"b", (7).to_bytes(8, "little"), b"\1"),
    ]
    assert list(vm.host.doubts) == [
        "the property xds.node.nope",
        "the property xds.node.metadata.list.2",
    ]


def test_metrics_are_known_by_name_and_type(configured: Callable[..., Vm]) -> None:
    vm = configured(
        [
            *(call("proxy_define_metric", kind, b"m", Out(kind)) for kind in range(3)),
            call("proxy_increment_metric", 4, 5),
            call("proxy_record_metric", 5, 9),
            call("proxy_record_metric", 6, 1),
            call("proxy_get_metric", 4, Out(3)),
        ]
    )
    assert [number(vm.host, Out(kind)) for kind in range(3)] == [4, 5, 6]
    assert number(vm.host, Out(3), 8) == 5
    assert [(m.type.name, m.value, m.recorded) for m in vm.metrics] == [
        ("COUNTER", 5, []),
        ("GAUGE", 9, []),
        ("HISTOGRAM", 0, [1]),
    ]


def test_foreign_functions_compress_and_uncompress(configured: Callable[..., Vm]) -> None:
    text = b"a" * 1000
    vm = configured([call("proxy_call_foreign_function", b"compress", text, A, B)])
    packed = given(vm.host, A, B)
    vm = configured([call("proxy_call_foreign_function", b"uncompress", packed, A, B)])
    assert len(packed) < 100
    assert given(vm.host, A, B) == text


# --- WASI


def test_the_environment_is_that_of_the_plugin(configured: Callable[..., Vm]) -> None:
    vm = configured(
        [
            call(f"{WASI}.environ_sizes_get", A, B),
            call(f"{WASI}.environ_get", C, 0x3000),
            call(f"{WASI}.args_sizes_get", Out(4), Out(5)),
        ],
        plugin=Plugin(environment={"KEY": "value", "E": ""}),
    )
    assert (number(vm.host, A), number(vm.host, B)) == (2, 13)
    assert vm.host.read(0x3000, 13) == b"KEY=value\0E=\0"
    assert (number(vm.host, C), number(vm.host, Out(2, 4))) == (0x3000, 0x300A)
    assert number(vm.host, Out(4)) == 0


def test_output_is_logged_without_its_last_newline(configured: Callable[..., Vm]) -> None:
    vector = (0x4010).to_bytes(4, "little") + (6).to_bytes(4, "little")
    calls = [
        call(f"{WASI}.fd_write", 1, 0x4000, 1, A),
        call("proxy_log", 2, vector),
        call("proxy_log", 2, b"hello\n"),
        call(f"{WASI}.fd_write", 2, 0x4000, 1, B),
        call(f"{WASI}.fd_write", 3, 0x4000, 1, C),
        call(f"{WASI}.fd_write", 1, 0xFFFF0, 1, C),
    ]
    vm = configured(calls)
    found = results(vm.host, 6)
    assert (found[0], found[3], found[4], found[5]) == (0, 0, Errno.BADF, Errno.FAULT)
    assert number(vm.host, A) == 6
    assert [str(line) for line in vm.log.since(0)][0::3] == ["info: hello", "error: hello"]


@pytest.mark.parametrize(
    ("function", "arguments", "errno"),
    [
        ("fd_prestat_get", (3, A), Errno.BADF),
        ("fd_prestat_dir_name", (3, A, 1), Errno.NOSYS),
        ("fd_fdstat_get", (0, A), Errno.BADF),
        ("fd_fdstat_get", (1, A), Errno.SUCCESS),
        ("fd_fdstat_set_flags", (1, 0), Errno.NOSYS),
        ("fd_filestat_get", (1, A), Errno.BADF),
        ("fd_read", (0, 0, 0, A), Errno.NOSYS),
        ("fd_seek", (1, 0, 0, A), Errno.SUCCESS),
        ("fd_readdir", (3, 0, 0, 0, A), Errno.NOTDIR),
        ("fd_renumber", (1, 2), Errno.NOTSUP),
        ("fd_renumber", (1, 3), Errno.BADF),
        ("fd_sync", (1,), Errno.SUCCESS),
        ("fd_sync", (3,), Errno.BADF),
        ("path_open", (3, 0, 0, 0, 0, 0, 0, 0, A), Errno.NOENT),
        ("path_readlink", (3, 0, 0, 0, 0, A), Errno.NOTSUP),
        ("sock_recv", (3, 0, 0, 0, A, B), Errno.NOTSUP),
        ("clock_time_get", (2, 0, A), Errno.NOTSUP),
        ("clock_res_get", (1, A), Errno.SUCCESS),
        ("poll_oneoff", (0, 0, 1, A), Errno.SUCCESS),
        ("sched_yield", (), Errno.SUCCESS),
    ],
)
def test_wasi_has_the_error_numbers_of_envoy(
    configured: Callable[..., Vm], function: str, arguments: tuple[Any, ...], errno: Errno
) -> None:
    assert results(configured([call(f"{WASI}.{function}", *arguments)]).host, 1) == [errno]


def test_leaving_the_program_does_nothing_after_the_start(configured: Callable[..., Vm]) -> None:
    vm = configured([call(f"{WASI}.proc_exit", 3), call("proxy_log", 2, b"still here")])
    assert [line.message for line in vm.log.since(0)] == [b"still here"]


# --- shared data and queues


def test_shared_data_has_versions(configured: Callable[..., Vm]) -> None:
    vm = configured(
        [
            call("proxy_get_shared_data", b"k", A, B, C),
            call("proxy_set_shared_data", b"k", b"one", 0),
            call("proxy_set_shared_data", b"k", b"two", 7),
            call("proxy_set_shared_data", b"k", b"three", 1),
            call("proxy_get_shared_data", b"k", A, B, C),
        ]
    )
    assert results(vm.host, 5) == [Result.NOT_FOUND, 0, Result.CAS_MISMATCH, 0, 0]
    assert given(vm.host, A, B) == b"three"
    assert number(vm.host, C) == 2


def test_queue_entries_are_announced_to_the_root_context(
    compiled: Callable[[bytes], Compiled],
) -> None:
    text = module(
        {
            "proxy_on_configure": [
                call("proxy_register_shared_queue", b"q", A),
                call("proxy_resolve_shared_queue", b"", b"q", B),
                call("proxy_resolve_shared_queue", b"other", b"q", B),
                call("proxy_dequeue_shared_queue", 1, B, C),
                call("proxy_enqueue_shared_queue", 1, b"entry"),
                call("proxy_enqueue_shared_queue", 9, b"entry"),
            ],
            "proxy_on_queue_ready": [call("proxy_dequeue_shared_queue", 1, B, C)],
        }
    )
    vm = Vm(compiled(text), Plugin(vm_id="vm"))
    vm.start()
    assert results(vm.host, 6) == [0, 0, Result.NOT_FOUND, Result.EMPTY, 0, Result.NOT_FOUND]

    exchange(vm, Request(), Response())

    assert results(vm.host, 7)[6] == 0
    assert given(vm.host, B, C) == b"entry"


# --- streams


def _stream(
    compiled: Callable[[bytes], Compiled], calls: dict[str, list[Call]], **fields: Any
) -> Vm:
    vm = Vm(compiled(module(calls, **fields)), Plugin("name", "root", "vm"))
    assert isinstance(vm.start(), Started)
    return vm


def test_header_maps_are_read_and_changed(compiled: Callable[[bytes], Compiled]) -> None:
    kind = MapType.REQUEST_HEADERS
    vm = _stream(
        compiled,
        {
            "proxy_on_request_headers": [
                call("proxy_get_header_map_value", kind, b"X-One", A, B),
                call("proxy_add_header_map_value", kind, b"x-new", b"1"),
                call("proxy_replace_header_map_value", kind, b"x-one", b"2"),
                call("proxy_remove_header_map_value", kind, b"x-two"),
                call("proxy_get_header_map_size", kind, C),
                call("proxy_get_header_map_pairs", kind, Out(3), Out(4)),
            ]
        },
    )
    found = exchange(vm, Request(headers=(("x-one", "1"), ("x-two", "2"))), Response())
    assert results(vm.host, 6) == [0] * 6
    assert given(vm.host, A, B) == b"1"
    pairs = unpack(given(vm.host, Out(3), Out(4)))
    assert number(vm.host, C) == sum(len(name) + len(value) for name, value in pairs)
    assert found.request is not None
    assert (b"x-new", b"1") in pairs
    assert [found.request.values(name) for name in ("x-new", "x-one", "x-two")] == [
        ["1"],
        ["2"],
        [],
    ]


def test_a_local_reply_has_its_headers_and_the_details(
    compiled: Callable[[bytes], Compiled],
) -> None:
    headers = pack([(b"X-A", b"b")])
    vm = _stream(
        compiled,
        {
            "proxy_on_request_headers": [
                call("proxy_send_local_response", 418, b"a teapot", b"body", headers, 0xFFFF_FFFF)
            ]
        },
    )
    found = exchange(vm, Request(), Response())
    assert (found.status, found.is_local_reply, found.details) == (418, True, "a_teapot")
    assert found.request is None
    assert found.response is not None
    assert found.response.body == b"body"
    assert found.response.values("x-a") == ["b"]


def test_bodies_are_replaced(compiled: Callable[[bytes], Compiled]) -> None:
    vm = _stream(
        compiled,
        {
            "proxy_on_request_body": [
                call("proxy_set_buffer_bytes", BufferType.HTTP_REQUEST_BODY, 0, 1000, b"new")
            ]
        },
    )
    found = exchange(vm, Request("POST", body=(b"old",), is_http2=True), Response())
    assert found.request is not None
    assert found.request.body == b"new"


def test_an_http_call_is_answered(compiled: Callable[[bytes], Compiled]) -> None:
    headers = pack([(b":method", b"GET"), (b":path", b"/"), (b":authority", b"a")])
    made = call("proxy_http_call", b"auth", headers, b"", b"", 1000, A)
    callback = [
        call("proxy_get_header_map_value", MapType.HTTP_CALL_RESPONSE_HEADERS, b":status", A, B),
        call("proxy_set_effective_context", 2),
        call("proxy_continue_stream", 0),
    ]
    text = module(
        {"proxy_on_request_headers": [made], "proxy_on_http_call_response": callback},
        returns={"proxy_on_request_headers": 1},
    )
    vm = Vm(compiled(text), Plugin(), clusters={"auth": HttpAnswer(207)})
    vm.start()

    found = exchange(vm, Request(), Response(204))

    assert results(vm.host, 4) == [0] * 4
    assert given(vm.host, A, B) == b"207"
    assert found.status == 204
    assert [each.cluster for each in found.callouts] == ["auth"]


def test_a_call_that_takes_too_long_is_answered_with_504(
    compiled: Callable[[bytes], Compiled],
) -> None:
    headers = pack([(b":method", b"GET"), (b":path", b"/"), (b":authority", b"a")])
    made = call("proxy_http_call", b"slow", headers, b"", b"", 100, A)
    callback = [call("proxy_get_header_map_value", 6, b":status", A, B)]
    text = module({"proxy_on_configure": [made], "proxy_on_http_call_response": callback})
    vm = Vm(compiled(text), Plugin(), clusters={"slow": HttpAnswer(delay=5)})
    vm.start()
    exchange(vm, Request(), Response())
    assert given(vm.host, A, B) == b"504"


def test_grpc_calls_and_streams_are_answered(compiled: Callable[[bytes], Compiled]) -> None:
    text = module(
        {
            "proxy_on_configure": [
                call("proxy_grpc_call", b"good", b"s", b"m", b"", b"question", 1000, A),
                call("proxy_grpc_call", b"bad", b"s", b"m", b"", b"question", 1000, B),
                call("proxy_grpc_stream", b"good", b"s", b"m", b"", C),
                call("proxy_grpc_send", 6, b"more", 0),
                call("proxy_grpc_send", 5, b"more", 0),
            ],
            "proxy_on_grpc_receive": [
                call(
                    "proxy_get_buffer_bytes", BufferType.GRPC_RECEIVE_BUFFER, 0, 99, Out(3), Out(4)
                )
            ],
            "proxy_on_grpc_close": [call("proxy_get_status", Out(5), Out(6), Out(7))],
        }
    )
    clusters = {
        "good": GrpcAnswer((b"answer",)),
        "bad": GrpcAnswer(status=7, status_message="no", delay=0.5),
    }
    vm = Vm(compiled(text), Plugin(), clusters=clusters)
    vm.start()
    assert results(vm.host, 5) == [0, 0, 0, 0, Result.BAD_ARGUMENT]
    assert [number(vm.host, cell) for cell in (A, B, C)] == [5, 9, 6]

    found = exchange(vm, Request(), Response())

    assert found.failure is None
    assert given(vm.host, Out(3), Out(4)) == b"answer"
    assert number(vm.host, Out(5)) == 7
    assert given(vm.host, Out(6), Out(7)) == b"no{via_upstream}"
    assert vm.host.callouts[2].messages == [b"more"]


def test_ticks_come_on_the_virtual_clock(compiled: Callable[[bytes], Compiled]) -> None:
    text = module(
        {
            "proxy_on_configure": [call("proxy_set_tick_period_milliseconds", 100)],
            "proxy_on_tick": [call("proxy_log", 2, b"tick")],
            "proxy_on_request_headers": [],
        },
        returns={"proxy_on_request_headers": 1},
    )
    vm = Vm(compiled(text), Plugin())
    vm.start()
    found = exchange(vm, Request(), Response(), idle_seconds=1.05)
    assert len(found.log) == 10
    assert found.has_timed_out
    assert (found.status, found.details) == (504, "stream_idle_timeout")


def test_the_root_context_ends_when_it_says_so(compiled: Callable[[bytes], Compiled]) -> None:
    text = module(
        {
            "proxy_on_done": [],
            "proxy_on_configure": [
                call("proxy_set_tick_period_milliseconds", 10),
                call("proxy_done"),
            ],
            "proxy_on_tick": [call("proxy_done")],
            "proxy_on_delete": [call("proxy_log", 2, b"deleted")],
        }
    )
    vm = Vm(compiled(text), Plugin())
    vm.start()
    assert results(vm.host, 2)[1] == Result.NOT_FOUND
    vm.stop()
    assert vm.log.last() == ()
    vm.host.run_until(lambda: vm.log.written > 0, deadline=10**9)
    assert vm.log.last() == ("info: deleted",)


def test_functions_of_extensions_end_the_module_only_when_it_calls_them(
    compiled: Callable[[bytes], Compiled],
) -> None:
    text = module({"proxy_on_configure": [call("env.envoy_special")]})
    allowed = frozenset({"env.envoy_special"})
    refused = Vm(compiled(text), Plugin()).start()
    called = Vm(compiled(text), Plugin(), extra_imports=allowed).start()
    assert isinstance(refused, StartFailure)
    assert isinstance(called, StartFailure)
    assert (refused.phase, refused.kind) == ("instantiate", "link")
    assert (called.phase, called.kind) == ("configure", "unsupported")


def test_functions_of_later_envoys_are_offered_by_those(
    compiled: Callable[[bytes], Compiled],
) -> None:
    text = compiled(module({"proxy_on_configure": [call(f"{WASI}.fd_sync", 1)]}))
    assert isinstance(Vm(text, Plugin(), envoy=EnvoyVersion(1, 36)).start(), StartFailure)
    assert isinstance(Vm(text, Plugin(), envoy=EnvoyVersion(1, 39)).start(), Started)


def test_equal_runs_are_equal(compiled: Callable[[bytes], Compiled]) -> None:
    text = compiled(
        module(
            {
                "proxy_on_request_headers": [
                    call(f"{WASI}.random_get", 0x4000, 8),
                    call("proxy_log", 2, b"12345678"),
                    call("proxy_get_current_time_nanoseconds", A),
                ]
            }
        )
    )

    def run() -> object:
        vm = Vm(text, Plugin())
        vm.start()
        found = exchange(vm, Request(), Response())
        return replace(found, metrics=()), number(vm.host, A, 8)

    assert run() == run()
