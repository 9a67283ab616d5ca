"""The tables and checks of `autowasm.wasm` against the real Envoy: accepted modules load there, refused ones do not.

Envoy runs with `--mode validate`, which loads the module (as a local file) and ends.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest

from autowasm.envoyversion import OLDEST_ENVOY
from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm import abi
from autowasm.wasm.module import inspect_bytes
from tests.parts import pypi, wat
from tests.parts.loading import envoy_failure

ASSETS = Path(__file__).parents[1] / "assets" / "wat"
MEMORY = '(memory (export "memory") 1)'
ALLOCATOR = '(func (export "malloc") (param i32) (result i32) (i32.const 1024))'

pytestmark = pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS)


def abi_export(version: str) -> str:
    return f'(func (export "{abi.ABI_PREFIX}{version.replace(".", "_")}"))'


def refusal(module: bytes) -> str:
    """The reason with which we refuse the module; empty if we accept it."""
    try:
        inspect_bytes(module, limits=Limits(), allow_imports=frozenset())
    except ContentRejected as error:
        return error.reason
    return ""


def signature(text: str, *, mistyped: bool = False) -> str:
    """Envoy's notation as WebAssembly text."""
    parameters, results = ("" if part == "void" else part for part in text.split(" -> "))
    return f"(param {parameters}{' f32' if mistyped else ''}) (result {results})"


@pytest.mark.parametrize("abi_version", abi.ABIS)
async def test_every_host_function_of_the_table_is_offered(
    version: str, abi_version: str, tmp_path: Path
) -> None:
    offered = {
        name: function
        for name, function in abi.HOST_FUNCTIONS.items()
        if abi_version in function.abis and function.since == OLDEST_ENVOY
    }
    text = "".join(_import(name, function) for name, function in offered.items())
    module = wat.compile_text(f"(module {text}{MEMORY}{ALLOCATOR}{abi_export(abi_version)})")

    assert len(offered) > 60
    assert refusal(module) == ""
    assert await envoy_failure(version, module, tmp_path) == ""


async def test_functions_marked_as_newer_are_offered_by_newer_envoys_only(
    version: str, tmp_path: Path
) -> None:
    newer = {name: each for name, each in abi.HOST_FUNCTIONS.items() if each.since > OLDEST_ENVOY}
    text = "".join(_import(name, function) for name, function in newer.items())
    module = wat.compile_text(f"(module {text}{MEMORY}{ALLOCATOR}{abi_export('0.2.1')})")
    has_them = [int(part) for part in version.split(".")[:2]] >= [1, 39]

    assert {str(each.since) for each in newer.values()} == {"1.39"}
    assert refusal(module) == "ImportUnknown"
    failure = await envoy_failure(version, module, tmp_path)
    assert failure == "" if has_them else "missing import" in failure


@pytest.mark.parametrize("abi_version", abi.ABIS)
async def test_functions_of_other_abi_versions_are_not_offered(
    version: str, abi_version: str, tmp_path: Path
) -> None:
    for name, function in abi.HOST_FUNCTIONS.items():
        if abi_version not in function.abis:
            module = wat.compile_text(
                f"(module {_import(name, function)}{MEMORY}{ALLOCATOR}{abi_export(abi_version)})"
            )
            assert refusal(module) == "ImportUnknown"
            assert "missing import" in await envoy_failure(version, module, tmp_path)


@pytest.mark.parametrize("abi_version", abi.ABIS)
async def test_every_function_that_envoy_calls_has_the_type_of_the_table(
    version: str, abi_version: str, tmp_path: Path
) -> None:
    called = abi.called_functions(abi_version, frozenset({"malloc", "_initialize"}))
    module = wat.compile_text(_exporting(called, abi_version))

    assert len(called) > 25
    assert refusal(module) == ""
    assert await envoy_failure(version, module, tmp_path) == ""


async def test_a_mistyped_callback_is_refused_by_both(version: str, tmp_path: Path) -> None:
    called = abi.called_functions("0.2.1", frozenset({"malloc"}))
    for name in ("proxy_on_request_headers", "proxy_on_tick", "_start", "malloc"):
        module = wat.compile_text(_exporting(called, "0.2.1", mistyped=name))
        assert refusal(module) == "ExportMismatch"
        assert f"Bad function signature for: {name}" in await envoy_failure(
            version, module, tmp_path
        )


REFUSED_BY_BOTH = (
    *("future_abi", "mistyped_export", "mistyped_import", "no_abi", "no_allocator"),
    *("no_memory_export", "unknown_import"),
)
LOADED_BY_BOTH = ("earth", "hello", "trap")


@pytest.mark.parametrize("name", [*REFUSED_BY_BOTH, *LOADED_BY_BOTH])
async def test_fixtures_have_the_same_verdict_in_envoy(
    version: str, name: str, tmp_path: Path
) -> None:
    module = wat.compile_file(ASSETS / f"{name}.wat")
    failure = await envoy_failure(version, module, tmp_path)
    assert bool(refusal(module)) == bool(failure) == (name in REFUSED_BY_BOTH), failure


async def test_a_configuration_that_is_refused_shows_only_when_it_runs(
    version: str, tmp_path: Path
) -> None:
    module = wat.compile_file(ASSETS / "refuses_configuration.wat")
    assert refusal(module) == ""
    assert await envoy_failure(version, module, tmp_path)


async def test_a_malformed_name_section_is_refused_by_both(version: str, tmp_path: Path) -> None:
    module = wat.compile_file(ASSETS / "hello.wat") + b"\0\x06\x04name\x07"
    assert refusal(module) == "WasmInvalid"
    assert "corrupted" in await envoy_failure(version, module, tmp_path)


@pytest.mark.parametrize("what", ['(memory (export "memory") {})', MEMORY + "(table {} funcref)"])
async def test_initial_sizes_have_envoys_limits(version: str, what: str, tmp_path: Path) -> None:
    limits = Limits()
    most = limits.table_entries if "table" in what else limits.memory_pages
    for size in (most, most + 1):
        text = f"(module {what.format(size)}{ALLOCATOR}{abi_export('0.2.1')})"
        module = wat.compile_text(text)
        assert refusal(module) == ("TooLarge" if size > most else "")
        assert bool(await envoy_failure(version, module, tmp_path)) == (size > most)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ('(func (export "q") (param v128))', "ExportMismatch"),
        ('(global (export "g") v128 (v128.const i64x2 0 0))', "ExportMismatch"),
        ('(tag (export "t") (param i32))', "ExportMismatch"),
        ('(import "env" "x" (table 1 4294967295 funcref))', "ImportMismatch"),
        ('(func (export "q") (param i64 f64 funcref externref))', ""),
        ('(global (export "g") externref (ref.null extern))', ""),
        ('(import "env" "x" (table 1 10000000 externref))', ""),
        ("(func (param v128)) (global v128 (v128.const i64x2 0 0)) (tag)", ""),
    ],
)
async def test_types_that_envoy_crashes_over_are_refused_and_no_others(
    version: str, what: str, reason: str, tmp_path: Path
) -> None:
    module = wat.compile_text(f"(module {what}{MEMORY}{ALLOCATOR}{abi_export('0.2.1')})")
    assert refusal(module) == reason
    failure = await envoy_failure(version, module, tmp_path)
    assert failure.startswith("exit status -") if reason else failure == ""


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ('(data (i32.const 65536) "x")', "WasmInvalid"),
        ('(data (i32.const 65535) "x")', ""),
        ("(table 1 funcref) (func $f) (elem (i32.const 1) $f)", "WasmInvalid"),
        ("(table 1 funcref) (func $f) (elem (i32.const 0) $f)", ""),
    ],
)
async def test_segments_that_do_not_fit_are_refused_by_both(
    version: str, what: str, reason: str, tmp_path: Path
) -> None:
    module = wat.compile_text(f"(module {what}{MEMORY}{ALLOCATOR}{abi_export('0.2.1')})")
    assert refusal(module) == reason
    assert bool(await envoy_failure(version, module, tmp_path)) == bool(reason)


async def test_an_imported_memory_is_made_by_envoy(version: str, tmp_path: Path) -> None:
    text = f'(module (import "env" "memory" (memory 1)){ALLOCATOR}{abi_export("0.2.1")})'
    module = wat.compile_text(text)
    assert refusal(module) == ""
    assert await envoy_failure(version, module, tmp_path) == ""


def _import(name: str, function: abi.HostFunction) -> str:
    module, _, field = name.partition(".")
    return f'(import "{module}" "{field}" (func {signature(function.signature)}))'


def _exporting(called: Mapping[str, str], abi_version: str, *, mistyped: str = "") -> str:
    bodies = {"i32": "(i32.const 1)", "void": ""}
    functions = "".join(
        f'(func (export "{name}") {signature(text, mistyped=name == mistyped)} '
        f"{bodies[text.rpartition(' ')[2]]})"
        for name, text in called.items()
    )
    return f"(module {functions}{MEMORY}{abi_export(abi_version)})"
