"""Modules that crash Envoy or that it cannot start, and similar ones that it runs: our verdict and Envoy's.

Each text is a complete filter; they differ in one reference to a host function, one start function, or one form of exceptions.
"""

import asyncio
from pathlib import Path

import pytest

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm.module import ModuleInfo, inspect_bytes
from tests.parts import binaryen, filters, pypi, toolchains, wat
from tests.parts.loading import envoy_failure

pytestmark = pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS)

_HEAD = """
(type $h (func (param i32) (result i32)))
(import "env" "proxy_set_effective_context" (func $host (type $h)))
(import "wasi_snapshot_preview1" "fd_close" (func $wasi (type $h)))
(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
(memory (export "memory") 1)
(func (export "proxy_abi_version_0_2_1"))
(func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 1024))
"""
_OWN = "(func $own (type $h) (i32.add (local.get 0) (i32.const 1)))"
_TAKES = "(func $takes (param (ref $h)) (result i32) (call_ref $h (i32.const 1) (local.get 0)))"


def _configure(body: str) -> str:
    return (
        '(func (export "proxy_on_configure") (param i32 i32) (result i32) '
        f"(drop {body}) (i32.const 1))"
    )


def _inspect(module: bytes) -> ModuleInfo:
    return inspect_bytes(module, limits=Limits(), allow_imports=frozenset())


def _refusal(module: bytes) -> ContentRejected:
    with pytest.raises(ContentRejected) as caught:
        _inspect(module)
    return caught.value


_CRASHING = {
    "a reference made where it is called": (
        "(elem declare func $wasi)" + _configure("(call_ref $h (i32.const 77) (ref.func $wasi))")
    ),
    "a reference handed over": (
        _OWN
        + "(elem declare func $own $host)"
        + _TAKES
        + _configure("(call $takes (ref.func $host))")
    ),
    "a tail call": (
        "(elem declare func $host) (func $t (type $h) (return_call_ref $h (local.get 0) (ref.func $host)))"
        + _configure("(call $t (i32.const 1))")
    ),
    "a typed global": (
        "(global $g (ref $h) (ref.func $host))"
        + _configure("(call_ref $h (i32.const 1) (global.get $g))")
    ),
    "a typed table": (
        "(table $t 1 1 (ref null $h)) (elem (table $t) (i32.const 0) (ref null $h) (ref.func $host))"
        + _configure("(call_ref $h (i32.const 1) (table.get $t (i32.const 0)))")
    ),
    "the initial value of a typed table": (
        "(table $t 1 1 (ref $h) (ref.func $host))"
        + _configure("(call_ref $h (i32.const 1) (table.get $t (i32.const 0)))")
    ),
    "an array of elements": (
        "(type $a (array (ref null $h))) (elem $e (ref null $h) (ref.func $host))"
        + _configure(
            "(call_ref $h (i32.const 1) (array.get $a (array.new_elem $a $e (i32.const 0) (i32.const 1)) (i32.const 0)))"
        )
    ),
    "a field of a structure": (
        "(type $s (struct (field (ref null $h)))) (elem declare func $host)"
        + _configure(
            "(call_ref $h (i32.const 1) (struct.get $s 0 (struct.new $s (ref.func $host))))"
        )
    ),
    "a cast": (
        "(elem declare func $host)"
        "(func $c (param funcref) (result i32) (call_ref $h (i32.const 1) (ref.cast (ref $h) (local.get 0))))"
        + _configure("(call $c (ref.func $host))")
    ),
    "a reference to an exported import": (
        '(export "again" (func $host))' + _configure("(call_ref $h (i32.const 1) (ref.func $host))")
    ),
}


@pytest.mark.parametrize("how", _CRASHING)
async def test_a_host_function_that_is_called_by_reference_is_refused_and_crashes_envoy(
    version: str, how: str, tmp_path: Path
) -> None:
    module = wat.assemble(f"(module {_HEAD}{_CRASHING[how]})")
    error = _refusal(module)
    assert error.reason == "EnvoyCrash"
    assert "call_ref" in str(error)
    assert (await envoy_failure(version, module, tmp_path)).startswith("exit status -")


_RUNNING = {
    "an own function by reference": (
        _OWN + "(elem declare func $own)" + _TAKES + _configure("(call $takes (ref.func $own))")
    ),
    "an own function, and a host function that is only declared": (
        _OWN
        + "(elem declare func $own $host)"
        + _TAKES
        + _configure("(call $takes (ref.func $own))")
    ),
    "an own function that calls the host's": (
        "(func $own (type $h) (call $host (local.get 0))) (elem declare func $own)"
        + _TAKES
        + _configure("(call $takes (ref.func $own))")
    ),
    "an own function of another type than the host's that is referred to": (
        "(type $o (func (param i64) (result i32))) (elem declare func $own $host)"
        "(func $own (type $o) (i32.const 1))"
        "(func $keep (result funcref) (ref.func $host))"
        + _configure("(call_ref $o (i64.const 1) (ref.func $own))")
    ),
    "a host function of a table by call_indirect, an own one by reference": (
        _OWN
        + "(elem declare func $own) (table 1 1 funcref) (elem (i32.const 0) func $host)"
        + _TAKES
        + _configure(
            "(i32.add (call $takes (ref.func $own)) (call_indirect (type $h) (i32.const 1) (i32.const 0)))"
        )
    ),
    "a host function by a tail call": (
        "(func $t (type $h) (return_call $host (local.get 0)))"
        + _configure("(call $t (i32.const 1))")
    ),
    "a host function by an indirect tail call": (
        "(table 1 1 funcref) (elem (i32.const 0) func $host)"
        "(func $t (type $h) (return_call_indirect (type $h) (local.get 0) (i32.const 0)))"
        + _configure("(call $t (i32.const 1))")
    ),
    "a host function in a typed table by call_indirect": (
        "(table $t 1 1 (ref null $h)) (elem (table $t) (i32.const 0) (ref null $h) (ref.func $host))"
        + _configure("(call_indirect $t (type $h) (i32.const 1) (i32.const 0))")
    ),
    "a reference that is only compared": (
        "(elem declare func $host)" + _configure("(ref.is_null (ref.func $host))")
    ),
    "a host function that is exported again": (
        '(export "again" (func $host))' + _configure("(i32.const 0)")
    ),
}


@pytest.mark.parametrize("how", _RUNNING)
async def test_other_uses_of_references_are_accepted_and_run(
    version: str, how: str, tmp_path: Path
) -> None:
    module = wat.assemble(f"(module {_HEAD}{_RUNNING[how]})")
    assert _inspect(module).abi == "0.2.1"
    assert await envoy_failure(version, module, tmp_path) == ""


_F = "(func (param i32) (result i32))"


@pytest.mark.parametrize(
    ("types", "loads"),
    [
        (f"(rec (type $t {_F}) (type (struct)))", False),
        (f"(rec (type (struct)) (type $t {_F}))", False),
        (f"(type $t (sub {_F}))", False),
        (f"(type $p (sub {_F})) (type $t (sub final $p {_F}))", False),
        (f"(rec (type $t {_F}))", True),
        (f"(type $t (sub final {_F}))", True),
    ],
)
async def test_an_import_of_a_type_that_is_not_on_its_own_is_refused_by_both(
    version: str, types: str, loads: bool, tmp_path: Path
) -> None:
    text = f'{types}(import "env" "proxy_set_effective_context" (func (type $t))){_HEAD}'
    module = wat.assemble(f"(module {text.replace('$host', '$second')})")
    if loads:
        assert _inspect(module).abi == "0.2.1"
    else:
        assert _refusal(module).reason == "ImportMismatch"
    assert bool(await envoy_failure(version, module, tmp_path)) != loads


_FAILING_STARTS = {
    "a program that ends": '(func (export "_start") (call $exit (i32.const 0)))',
    "a program that ends after a guard": (
        "(global $started (mut i32) (i32.const 0))"
        '(func (export "_start") (if (global.get $started) (then unreachable)) (call $run) unreachable)'
        "(func $run (block (br_if 0 (global.get $started)) (call $exit (i32.const 0))"
        " (return)) (call $exit (i32.const 1)))"
    ),
    "either of two calls": (
        '(func (export "_start") (if (memory.size) (then (call $exit (i32.const 0))) (else (call $exit (i32.const 1)))))'
    ),
    "a library that calls the host in a constructor": (
        '(func (export "_initialize") (drop (call $host (i32.const 0))))'
    ),
    "a main beside _initialize": (
        '(func (export "_initialize")) (func (export "main") (param i32 i32) (result i32) (call $wasi (i32.const 0)))'
    ),
    "a trap": '(func (export "_start") (call $x)) (func $x unreachable)',
}


@pytest.mark.parametrize("how", _FAILING_STARTS)
async def test_a_start_that_is_sure_to_fail_is_refused_by_both(
    version: str, how: str, tmp_path: Path
) -> None:
    module = wat.assemble(f"(module {_HEAD}{_FAILING_STARTS[how]})")
    assert _refusal(module).reason == "StartFails"
    failure = await envoy_failure(version, module, tmp_path)
    assert "restricted_callback" in failure or "unreachable" in failure


_WORKING_STARTS = {
    "a program that returns": '(func (export "_start"))',
    "a program that ends in a case that does not arise": (
        '(func (export "_start") (if (i32.eqz (memory.size)) (then (call $exit (i32.const 1)))))'
    ),
    "a branch past the end": (
        '(func (export "_start") (block (br_if 0 (memory.size)) (call $exit (i32.const 1))))'
    ),
    "a return before the end": (
        '(func (export "_start") (br_if 0 (memory.size)) (call $exit (i32.const 1)))'
    ),
    "a table of branches past the end": (
        '(func (export "_start") (block (block (br_table 0 1 (memory.size))) (call $exit (i32.const 1))))'
    ),
    "a loop that is left": (
        '(func (export "_start") (block (loop (br_if 1 (memory.size)) (br 0)) (call $exit (i32.const 1))))'
    ),
    "a _start that is not called, beside _initialize": (
        '(func (export "_initialize")) (func (export "_start") (call $exit (i32.const 0)))'
    ),
    "an indirect call": (
        "(type $v (func)) (table 1 1 funcref) (elem (i32.const 0) func $r) (func $r)"
        '(func (export "_start") (call_indirect (type $v) (i32.const 0)))'
    ),
}


@pytest.mark.parametrize("how", _WORKING_STARTS)
async def test_a_start_that_may_return_is_accepted_and_runs(
    version: str, how: str, tmp_path: Path
) -> None:
    module = wat.assemble(f"(module {_HEAD}{_WORKING_STARTS[how]})")
    assert _inspect(module).abi == "0.2.1"
    assert await envoy_failure(version, module, tmp_path) == ""


_TRY = "(try (do (throw $t (i32.const 1))) (catch $t (drop)))"
_TRY_TABLE = "(drop (block $b (result i32) (try_table (catch $t $b) (throw $t (i32.const 1))) (i32.const 1)))"


@pytest.mark.parametrize(
    ("bodies", "unchecked", "loads"),
    [
        (_TRY, 1, True),
        ("(try (do (try (do (throw $t (i32.const 1))) (delegate 0))) (catch_all))", 1, True),
        (
            "(try (do (try (do (throw $t (i32.const 1))) (catch_all (rethrow 0)))) (catch_all))",
            1,
            True,
        ),
        (_TRY_TABLE, 0, True),
        (f"{_TRY} {_TRY_TABLE}", None, False),
    ],
)
async def test_each_form_of_exceptions_is_accepted_and_their_mixture_is_refused_by_both(
    version: str, bodies: str, unchecked: int | None, loads: bool, tmp_path: Path
) -> None:
    text = f'(tag $t (param i32)) (func $e {bodies}) (func (export "_start") (call $e))'
    module = wat.compile_text(f"(module {_HEAD}{text})")
    if unchecked is None:
        error = _refusal(module)
        assert error.reason == "WasmInvalid"
        assert "refuses the combination" in str(error)
    else:
        failure = _inspect(module).unchecked
        assert failure.startswith("1 of 4 function bodies") if unchecked else failure == ""
    assert bool(await envoy_failure(version, module, tmp_path)) != loads


async def test_wasm_opt_all_breaks_a_filter_and_the_advice_repairs_it(
    version: str, tmp_path: Path
) -> None:
    plain = await asyncio.to_thread(filters.build, "deny", toolchain="go")
    module = plain.read_bytes()

    compact = await asyncio.to_thread(binaryen.optimize, module, "-Oz", "-all")
    error = _refusal(compact)
    assert error.reason == "WasmInvalid"
    assert "compact imports" in str(error)
    assert await envoy_failure(version, compact, tmp_path)

    crashing = await asyncio.to_thread(
        binaryen.optimize, module, "-Oz", "-all", "--disable-compact-imports"
    )
    assert _refusal(crashing).reason == "EnvoyCrash"
    assert (await envoy_failure(version, crashing, tmp_path)).startswith("exit status -")

    advised = ("--disable-compact-imports", "--disable-gc")
    assert all(flag in str(error) for flag in advised)
    assert advised[1] in str(_refusal(crashing))
    good = await asyncio.to_thread(binaryen.optimize, module, "-Oz", "-all", *advised)
    assert _inspect(good).abi == "0.2.1"
    assert await envoy_failure(version, good, tmp_path) == ""


async def test_the_advice_about_legacy_exceptions_makes_a_module_that_is_checked_whole(
    version: str, tmp_path: Path
) -> None:
    text = f'(tag $t (param i32)) (func (export "_start") {_TRY})'
    module = wat.compile_text(f"(module {_HEAD}{text})")
    flags = (
        *("--enable-exception-handling", "--enable-reference-types", "--enable-multivalue"),
        "--translate-to-exnref",
    )
    translated = await asyncio.to_thread(binaryen.optimize, module, *flags)
    assert _inspect(translated).unchecked == ""
    assert await envoy_failure(version, translated, tmp_path) == ""


async def test_a_go_program_is_refused_with_the_command_that_builds_a_filter(
    version: str, tmp_path: Path
) -> None:
    go = toolchains.GO
    program = tmp_path / "program.wasm"
    flags = tuple(flag for flag in go.flags if flag != "-buildmode=c-shared")
    await asyncio.to_thread(toolchains.Go(go.name, go.shared, flags).compile, "deny", program)
    error = _refusal(program.read_bytes())
    assert error.reason == "StartFails"
    assert "GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared" in str(error)
    assert "restricted_callback" in await envoy_failure(version, program.read_bytes(), tmp_path)
