"""HTTP streams: what the comparison with Envoy cannot show, such as crashes, warnings, HTTP/2 and answers of clusters."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from autowasm.sandbox.clusteranswers import Answer, Broken, Callout, HttpAnswer
from autowasm.sandbox.engine import Compiled
from autowasm.sandbox.errors import FailureKind, UsageError
from autowasm.sandbox.headers import pack
from autowasm.sandbox.http import exchange
from autowasm.sandbox.message import Request, Response
from autowasm.sandbox.plugin import FailurePolicy, Plugin
from autowasm.sandbox.protocol import MapType
from autowasm.sandbox.vm import Started, StartFailure, Vm
from tests.parts import wat
from tests.unit.sandbox.calling import Call, Out, call, given, module, number

_REPLY = call("proxy_send_local_response", 200, b"", b"", b"", 0xFFFF_FFFF)
_A, _B, _C = Out(0), Out(1), Out(2)


def _vm(
    compiled: Callable[[bytes], Compiled],
    calls: dict[str, Sequence[Call]],
    *,
    returns: dict[str, int] | None = None,
    extra: str = "",
    plugin: Plugin | None = None,
    **fields: Any,
) -> Vm:
    vm = Vm(compiled(module(calls, returns=returns, extra=extra)), plugin or Plugin(), **fields)
    assert isinstance(vm.start(), Started)
    return vm


@pytest.mark.parametrize(
    ("callback", "made", "what"),
    [
        ("proxy_on_log", _REPLY, "answers a request that has ended"),
        ("proxy_on_done", _REPLY, "answers a request that has ended"),
        ("proxy_on_delete", call("proxy_close_stream", 0), "closes a stream that has ended"),
        ("proxy_on_request_headers", call("proxy_continue_stream", 1), "does not exist"),
    ],
)
def test_call_that_crashes_envoy_is_a_failure(
    compiled: Callable[[bytes], Compiled], callback: str, made: Call, what: str
) -> None:
    found = exchange(_vm(compiled, {callback: [made]}), Request(), Response())
    assert found.failure is not None
    assert found.failure.kind is FailureKind.CRASH
    assert what in found.failure.message


def test_headers_that_envoy_would_pass_on_twice_are_a_warning(
    compiled: Callable[[bytes], Compiled],
) -> None:
    vm = _vm(compiled, {"proxy_on_request_headers": [call("proxy_continue_stream", 0)]})
    found = exchange(vm, Request(), Response())
    assert found.status == 200
    assert len(found.warnings) == 1


def test_request_trailers_that_envoy_would_pass_on_twice_are_a_warning(
    compiled: Callable[[bytes], Compiled],
) -> None:
    vm = _vm(compiled, {"proxy_on_request_trailers": [call("proxy_continue_stream", 0)]})
    found = exchange(vm, Request("POST", body=(b"x",), trailers=(("a", "b"),)), Response())
    assert found.status == 200
    assert len(found.warnings) == 1


@pytest.mark.parametrize(("pauses", "crashes"), [(0, True), (1, False)])
def test_response_trailers_that_are_passed_on_twice_crash_envoy(
    compiled: Callable[[bytes], Compiled], pauses: int, crashes: bool
) -> None:
    name = "proxy_on_response_trailers"
    vm = _vm(compiled, {name: [call("proxy_continue_stream", 1)]}, returns={name: pauses})
    found = exchange(vm, Request(), Response(body=(b"x",), trailers=(("a", "b"),)))
    assert (found.failure is not None and found.failure.kind is FailureKind.CRASH) == crashes
    assert not found.warnings


@pytest.mark.parametrize(("pauses", "crashes"), [(0, True), (1, False)])
def test_the_end_of_a_held_response_that_is_passed_on_twice_crashes_envoy(
    compiled: Callable[[bytes], Compiled], pauses: int, crashes: bool
) -> None:
    text = f"""(module
      (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "proxy_abi_version_0_2_1"))
      (func (export "malloc") (param i32) (result i32) (i32.const 1024))
      (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32)
        (if (i32.eqz (local.get 2)) (then (return (i32.const 1))))
        (drop (call $continue (i32.const 1)))
        (i32.const {pauses})))"""
    vm = Vm(compiled(wat.compile_text(text)), Plugin())
    assert isinstance(vm.start(), Started)
    found = exchange(vm, Request(), Response(body=(b"one", b"two")))
    assert (found.failure is not None and found.failure.kind is FailureKind.CRASH) == crashes


def test_in_http2_the_end_comes_with_the_last_piece(compiled: Callable[[bytes], Compiled]) -> None:
    calls = {"proxy_on_request_body": [call("proxy_log", 2, b"piece")]}
    pieces = (b"one", b"two")
    http1 = exchange(_vm(compiled, calls), Request("POST", body=pieces), Response())
    http2 = exchange(_vm(compiled, calls), Request("POST", body=pieces, is_http2=True), Response())
    assert (len(http1.log), len(http2.log)) == (3, 2)
    assert http1.request == http2.request


def test_a_stream_that_was_failed_open_is_not_filtered(
    compiled: Callable[[bytes], Compiled],
) -> None:
    trap = (
        '(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (unreachable))'
    )
    vm = _vm(compiled, {}, extra=trap, plugin=Plugin(failure_policy=FailurePolicy.OPEN))
    found = [exchange(vm, Request(), Response()) for _ in range(2)]
    assert [each.status for each in found] == [503, 200]
    assert [each.is_filtered for each in found] == [True, False]
    assert found[0].details == "wasm_fail_stream"


@pytest.mark.parametrize(
    ("policy", "status"),
    [(FailurePolicy.CLOSED, 503), (FailurePolicy.RELOAD, 503), (FailurePolicy.OPEN, 200)],
)
def test_a_filter_that_did_not_start_is_treated_by_its_policy(
    compiled: Callable[[bytes], Compiled], policy: FailurePolicy, status: int
) -> None:
    text = compiled(module({"proxy_on_configure": []}, returns={"proxy_on_configure": 0}))
    vm = Vm(text, Plugin(failure_policy=policy))
    assert isinstance(vm.start(), StartFailure)
    for _ in range(2):
        found = exchange(vm, Request(), Response())
        assert (found.status, found.is_filtered) == (status, status == 503)


def test_a_reloaded_module_begins_anew(compiled: Callable[[bytes], Compiled]) -> None:
    trap = (
        '(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (unreachable))'
    )
    calls = {"proxy_on_configure": [call("proxy_log", 2, b"configured")]}
    vm = _vm(compiled, calls, extra=trap, plugin=Plugin(failure_policy=FailurePolicy.RELOAD))
    for _ in range(3):
        assert exchange(vm, Request(), Response()).status == 503
    assert [line.text for line in vm.log.since(0)] == ["configured"] * 3


def test_a_stream_before_the_start_is_an_error(compiled: Callable[[bytes], Compiled]) -> None:
    vm = Vm(compiled(module({})), Plugin())
    with pytest.raises(UsageError):
        exchange(vm, Request(), Response())
    vm.start()
    with pytest.raises(UsageError):
        vm.start()


def _calling(compiled: Callable[[bytes], Compiled], answers: object, *, body: bytes = b"") -> Vm:
    headers = pack([(b":method", b"GET"), (b":path", b"/"), (b":authority", b"a")])
    return _vm(
        compiled,
        {
            "proxy_on_request_headers": [call("proxy_http_call", b"c", headers, body, b"", 0, _A)],
            "proxy_on_http_call_response": [
                call(
                    "proxy_get_header_map_value",
                    MapType.HTTP_CALL_RESPONSE_HEADERS,
                    b":status",
                    _A,
                    _B,
                ),
                call("proxy_get_status", _C, Out(3), Out(4)),
            ],
        },
        clusters={"c": answers},
    )


def test_clusters_answer_with_one_thing_after_another(
    compiled: Callable[[bytes], Compiled],
) -> None:
    vm = _calling(compiled, [HttpAnswer(201), HttpAnswer(202)])
    seen = []
    for _ in range(3):
        exchange(vm, Request(), Response())
        seen.append(given(vm.host, _A, _B))
    assert seen == [b"201", b"202", b"202"]


def test_clusters_answer_with_the_result_of_a_function(
    compiled: Callable[[bytes], Compiled],
) -> None:
    def answer(callout: Callout) -> Answer:
        return HttpAnswer(200 + len(callout.body))

    vm = _calling(compiled, answer, body=b"12345")
    found = exchange(vm, Request(), Response())
    assert given(vm.host, _A, _B) == b"205"
    assert found.callouts[0].headers[-1] == (b"content-length", b"5")


def test_a_broken_call_has_a_status(compiled: Callable[[bytes], Compiled]) -> None:
    vm = _calling(compiled, Broken())
    exchange(vm, Request(), Response())
    assert number(vm.host, _C) == 11
    assert given(vm.host, Out(3), Out(4)) == b"reset"


def test_properties_of_the_caller_replace_those_of_the_stream(
    compiled: Callable[[bytes], Compiled],
) -> None:
    paths = [b"source\0address", b"source\0port", b"mine\0deep"]
    vm = _vm(
        compiled,
        {
            "proxy_on_request_headers": [
                call("proxy_get_property", path, Out(at), Out(at, 8))
                for at, path in enumerate(paths)
            ]
        },
    )
    properties = {"source": {"address": "1.2.3.4:5"}, "mine": {"deep": "yes"}}
    exchange(vm, Request(), Response(), properties=properties)
    assert [given(vm.host, Out(at), Out(at, 8)) for at in range(3)] == [
        *(b"1.2.3.4:5", (50000).to_bytes(8, "little"), b"yes"),
    ]
