"""Modules that mean harm: each ends with a result and a sentence, by a limit that the test names."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from autowasm.sandbox.engine import Compiled
from autowasm.sandbox.errors import FailureKind
from autowasm.sandbox.http import exchange
from autowasm.sandbox.message import Request, Response
from autowasm.sandbox.plugin import Plugin, SandboxLimits
from autowasm.sandbox.vm import Started, StartFailure, StartPhase, Vm
from tests.parts import wat
from tests.unit.sandbox.calling import module

LIMITS = SandboxLimits()
_LOG = '(import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))'
_EXIT = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
_WRITE = (
    '(import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))'
)
_RANDOM = '(import "wasi_snapshot_preview1" "random_get" (func $r (param i32 i32) (result i32)))'
_SHARED = (
    '(import "env" "proxy_set_shared_data" (func $s (param i32 i32 i32 i32 i32) (result i32)))'
)
_METRIC = '(import "env" "proxy_define_metric" (func $m (param i32 i32 i32 i32) (result i32)))'
_BUFFER = (
    '(import "env" "proxy_get_buffer_bytes" (func $b (param i32 i32 i32 i32 i32) (result i32)))'
)
_TICK = '(import "env" "proxy_set_tick_period_milliseconds" (func $t (param i32) (result i32)))'
_LOOP = "(loop $l (br $l))"


def _configuring(body: str) -> str:
    return f'(func (export "proxy_on_configure") (param i32 i32) (result i32) {body})'


def _start(
    compiled: Callable[[bytes], Compiled],
    body: str,
    *,
    imports: str = "",
    configuration: bytes = b"x" * 100,
    **limits: Any,
) -> tuple[Vm, Started | StartFailure]:
    text = f"""(module {imports} (memory (export "memory") 4) (func (export "proxy_abi_version_0_2_1"))
    (func (export "malloc") (param i32) (result i32) (i32.const 0x20000)) {body})"""
    plugin = Plugin(configuration=configuration)
    vm = Vm(compiled(wat.compile_text(text)), plugin, limits=replace(LIMITS, **limits))
    return vm, vm.start()


@pytest.mark.parametrize(
    ("body", "phase", "part"),
    [
        (_configuring(f"{_LOOP} (i32.const 1)"), StartPhase.CONFIGURE, "proxy_on_configure"),
        (f'(func (export "_start") {_LOOP})', StartPhase.START, "_start"),
        (f'(func (export "_initialize") {_LOOP})', StartPhase.START, "_initialize"),
        (f"(func $f {_LOOP}) (start $f)", StartPhase.INSTANTIATE, "(start)"),
    ],
)
def test_a_loop_without_end_uses_up_its_fuel(
    compiled: Callable[[bytes], Compiled], body: str, phase: StartPhase, part: str
) -> None:
    _, found = _start(compiled, body, start_fuel=10_000_000)
    assert isinstance(found, StartFailure)
    assert (found.phase, found.kind) == (phase, FailureKind.LIMIT)
    assert found.message == f"{part} failed: it exceeded the fuel limit of the sandbox"
    assert found.fuel >= 9_999_000


def test_work_without_fuel_ends_with_its_time(compiled: Callable[[bytes], Compiled]) -> None:
    _, found = _start(
        compiled, _configuring(f"{_LOOP} (i32.const 1)"), start_fuel=2**62, seconds=0.05
    )
    assert isinstance(found, StartFailure)
    assert found.message == "proxy_on_configure failed: it exceeded the time limit of the sandbox"


@pytest.mark.parametrize("pages", [1, 16_384, 65_535])
def test_memory_grows_to_its_limit(compiled: Callable[[bytes], Compiled], pages: int) -> None:
    body = _configuring(f"(i32.ne (memory.grow (i32.const {pages})) (i32.const -1))")
    _, found = _start(compiled, body, memory_bytes=100 * 65_536)
    assert isinstance(found, Started) == (pages == 1)


def test_tables_grow_to_their_limit(compiled: Callable[[bytes], Compiled]) -> None:
    body = "(table $t 0 funcref)" + _configuring(
        "(i32.ne (table.grow $t (ref.null func) (i32.const 1001)) (i32.const -1))"
    )
    _, found = _start(compiled, body, table_elements=1000)
    assert isinstance(found, StartFailure)
    assert found.kind is FailureKind.RETURNED_FALSE


def test_ten_megabytes_of_logs_leave_the_last_lines(compiled: Callable[[bytes], Compiled]) -> None:
    body = "(global $n (mut i32) (i32.const 200))" + _configuring(
        """(loop $l (drop (call $log (i32.const 2) (i32.const 0) (i32.const 60000)))
        (global.set $n (i32.sub (global.get $n) (i32.const 1))) (br_if $l (global.get $n))) (i32.const 0)"""
    )
    vm, found = _start(compiled, body, imports=_LOG)
    assert isinstance(found, StartFailure)
    assert found.kind is FailureKind.RETURNED_FALSE
    assert vm.log.written == 200
    assert sum(len(line.message) for line in vm.log.since(0)) <= LIMITS.log_bytes
    assert len(found.log) == 10
    assert all(line.isprintable() and len(line) < 600 for line in found.log)


def test_a_deep_recursion_reaches_the_limit_of_the_stack(
    compiled: Callable[[bytes], Compiled],
) -> None:
    body = "(func $d (result i32) (i32.add (call $d) (i32.const 1)))" + _configuring("(call $d)")
    _, found = _start(compiled, body)
    assert isinstance(found, StartFailure)
    assert found.kind is FailureKind.LIMIT
    assert "it exceeded the stack limit" in found.message
    assert len(found.frames) == 20


@pytest.mark.parametrize(
    ("imports", "body"),
    [
        (_EXIT, '(func (export "_start") (call $exit (i32.const 3)))'),
        (_TICK, '(func (export "_initialize") (drop (call $t (i32.const 3))))'),
    ],
)
def test_calls_in_a_phase_that_forbids_them_are_named(
    compiled: Callable[[bytes], Compiled], imports: str, body: str
) -> None:
    _, found = _start(compiled, body, imports=imports)
    assert isinstance(found, StartFailure)
    assert found.kind is FailureKind.FORBIDDEN_CALL
    assert "which Envoy forbids" in found.message


@pytest.mark.parametrize(
    ("imports", "call", "kind"),
    [
        (_TICK, "(drop (call $t (i32.const 3)))", FailureKind.CRASH),
        (_EXIT, "(call $exit (i32.const 3))", FailureKind.CRASH),
        (_RANDOM, "(drop (call $r (i32.const 0) (i32.const 3)))", FailureKind.CRASH),
        (_RANDOM, "(drop (call $r (i32.const 0) (i32.const 0)))", None),
    ],
)
def test_a_start_section_may_call_little(
    compiled: Callable[[bytes], Compiled], imports: str, call: str, kind: FailureKind | None
) -> None:
    _, found = _start(compiled, f"(func $f {call}) (start $f)", imports=imports)
    assert (found.kind if isinstance(found, StartFailure) else None) == kind


def test_an_allocator_may_not_do_everything(compiled: Callable[[bytes], Compiled]) -> None:
    text = f"""(module {_TICK} {_BUFFER} (memory (export "memory") 4) (func (export "proxy_abi_version_0_2_1"))
    (func (export "malloc") (param i32) (result i32) (call $t (i32.const 1)))
    {_configuring("(i32.eq (call $b (i32.const 7) (i32.const 0) (i32.const 9) (i32.const 0) (i32.const 4)) (i32.const 6))")})"""
    found = Vm(compiled(wat.compile_text(text)), Plugin(configuration=b"x")).start()
    assert isinstance(
        found, StartFailure
    )  # the callback goes on, and Envoy does not take it for a success
    assert found.kind is FailureKind.FORBIDDEN_CALL
    assert "while it allocates memory for the host" in found.message


@pytest.mark.parametrize(
    ("imports", "body", "part"),
    [
        (_LOG, "(drop (call $log (i32.const 2) (i32.const 0) (i32.const 0)))", "fuel"),
        (_RANDOM, "(drop (call $r (i32.const 0) (i32.const 60000)))", "fuel"),
        (
            _METRIC,
            "(drop (call $m (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 8)))",
            "fuel",
        ),
        (
            _BUFFER,
            "(drop (call $b (i32.const 7) (i32.const 0) (i32.const 9) (i32.const 0) (i32.const 4)))",
            "fuel",
        ),
        (
            _SHARED,
            """(i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
            (drop (call $s (i32.const 0) (i32.const 4) (i32.const 0) (i32.const 60000) (i32.const 0)))""",
            "the host keep more than 1000000 bytes",
        ),
    ],
)
def test_calls_without_end_reach_a_limit(
    compiled: Callable[[bytes], Compiled], imports: str, body: str, part: str
) -> None:
    text = _configuring(f"(loop $l {body} (br $l)) (i32.const 1)")
    _, found = _start(compiled, text, imports=imports, start_fuel=20_000_000, state_bytes=1_000_000)
    assert isinstance(found, StartFailure)
    assert found.kind is FailureKind.LIMIT
    assert part in found.message


def test_a_write_of_many_pieces_costs_fuel(compiled: Callable[[bytes], Compiled]) -> None:
    body = _configuring(
        "(drop (call $w (i32.const 1) (i32.const 0) (i32.const -1) (i32.const 0))) (i32.const 1)"
    )
    _, found = _start(compiled, body, imports=_WRITE, start_fuel=1_000_000)
    assert isinstance(found, StartFailure)
    assert found.kind is FailureKind.LIMIT


def test_a_large_copy_is_a_limit(compiled: Callable[[bytes], Compiled]) -> None:
    body = _configuring(
        "(drop (call $log (i32.const 2) (i32.const 0) (i32.const 200000))) (i32.const 1)"
    )
    _, found = _start(compiled, body, imports=_LOG, copy_bytes=100_000)
    assert isinstance(found, StartFailure)
    assert "passed 200000 bytes to the host at once" in found.message


def test_many_contexts_are_a_limit(compiled: Callable[[bytes], Compiled]) -> None:
    vm = Vm(compiled(module({})), Plugin(), limits=replace(LIMITS, contexts=3))
    vm.start()
    for _ in range(2):
        vm.host.new_context(vm.root.identifier)
    found = exchange(vm, Request(), Response())
    assert found.failure is not None
    assert found.failure.kind is FailureKind.LIMIT
    assert "3 contexts are open" in found.failure.message
    assert found.status == 503


def test_contexts_of_finished_streams_are_gone(compiled: Callable[[bytes], Compiled]) -> None:
    vm = Vm(compiled(module({})), Plugin(), limits=replace(LIMITS, contexts=3))
    vm.start()
    for _ in range(10):
        assert exchange(vm, Request(), Response()).failure is None
    assert list(vm.host.contexts) == [1]


def test_a_module_without_memory_would_crash_envoy(compiled: Callable[[bytes], Compiled]) -> None:
    text = f"""(module {_LOG} (func (export "proxy_abi_version_0_2_1"))
    (func (export "malloc") (param i32) (result i32) (i32.const 0))
    {_configuring("(call $log (i32.const 2) (i32.const 0) (i32.const 1))")})"""
    found = Vm(compiled(wat.compile_text(text)), Plugin()).start()
    assert isinstance(found, StartFailure)
    assert found.kind is FailureKind.CRASH


def test_an_endless_loop_in_a_request_ends_the_stream(
    compiled: Callable[[bytes], Compiled],
) -> None:
    loop = f'(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {_LOOP} (i32.const 0))'
    vm, started = _start(compiled, loop, exchange_fuel=1_000_000)
    assert isinstance(started, Started)
    found = exchange(vm, Request(), Response())
    assert found.failure is not None
    assert found.failure.kind is FailureKind.LIMIT
    assert found.status == 503


def test_a_timer_of_every_millisecond_uses_up_the_fuel_of_a_held_stream(
    compiled: Callable[[bytes], Compiled],
) -> None:
    body = f"""{_configuring("(drop (call $t (i32.const 1))) (i32.const 1)")}
    (func (export "proxy_on_tick") (param i32))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 1))"""
    vm, started = _start(compiled, body, imports=_TICK, exchange_fuel=1_000_000)
    assert isinstance(started, Started)
    found = exchange(vm, Request(), Response())
    assert found.failure is not None
    assert found.failure.kind is FailureKind.LIMIT
