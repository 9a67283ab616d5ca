"""Which check refuses a module, by its exact words, and that a module at each boundary passes."""

import errno
import io
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from autowasm.errors import ContentRejected, StorageError
from autowasm.limits import Limits
from autowasm.wasm.module import ModuleInfo, describe_module, inspect_bytes, inspect_module
from autowasm.wasm.sections import FUNCTION, MEMORY, Export
from tests.parts import wat

ABI = '(func (export "proxy_abi_version_0_2_1"))'
ALLOCATOR = '(func (export "malloc") (param i32) (result i32) (i32.const 1024))'
OWN_MEMORY = '(memory (export "memory") 1)'
PLAIN = ABI + OWN_MEMORY + ALLOCATOR

Compile = Callable[[str], bytes]


def inspect(data: bytes, **limits: int) -> ModuleInfo:
    return inspect_bytes(data, limits=Limits(**limits), allow_imports=frozenset())


def refusal(data: bytes, **limits: int) -> tuple[str, str]:
    with pytest.raises(ContentRejected) as caught:
        inspect(data, **limits)
    return caught.value.reason, str(caught.value)


def too_large(size: int, most: int) -> tuple[str, str]:
    return "TooLarge", (
        f"the module has {size} bytes, but Envoy accepts at most {most}: strip it "
        "(wasm-strip, wasm-opt -Oz, `strip = true` in Cargo.toml)"
    )


def test_the_verdict_on_a_plain_module_is_all_that_it_is(compile_text: Compile) -> None:
    data = compile_text(f"(module {PLAIN})")
    assert inspect(data) == ModuleInfo(size=len(data), abi="0.2.1", unchecked="")


def test_a_module_of_as_many_bytes_as_the_limit_passes(hello: bytes, tmp_path: Path) -> None:
    size = len(hello)
    path = tmp_path / "module"
    path.write_bytes(hello)
    for limits in (Limits(module_bytes=size), Limits(module_bytes=size + 1)):
        assert inspect_bytes(hello, limits=limits, allow_imports=frozenset()).size == size
        assert inspect_module(path, limits=limits, allow_imports=frozenset()).size == size
    assert refusal(hello, module_bytes=size - 1) == too_large(size, size - 1)


@pytest.mark.parametrize("more", [1, 2, 100])
def test_a_file_above_the_limit_is_refused_with_its_size(
    hello: bytes, tmp_path: Path, more: int
) -> None:
    path = tmp_path / "module"
    path.write_bytes(hello)
    most = len(hello) - more
    with pytest.raises(ContentRejected) as caught:
        inspect_module(path, limits=Limits(module_bytes=most), allow_imports=frozenset())
    assert (caught.value.reason, str(caught.value)) == too_large(len(hello), most)


class Shrinking(io.BytesIO):
    """A file that another process cuts off after it was read."""

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.truncate(1)
        return found


def test_a_file_that_shrinks_while_read_is_judged_by_the_bytes_read(
    hello: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(_: Path, mode: str) -> IO[bytes]:
        assert mode == "rb"
        return Shrinking(hello)

    monkeypatch.setattr(Path, "open", opened)
    path, size = tmp_path / "module", len(hello)
    found = inspect_module(path, limits=Limits(module_bytes=size), allow_imports=frozenset())
    assert found == inspect(hello)
    with pytest.raises(ContentRejected) as caught:
        inspect_module(path, limits=Limits(module_bytes=size - 5), allow_imports=frozenset())
    # One byte more than the limit is read, and no more.
    assert (caught.value.reason, str(caught.value)) == too_large(size - 4, size - 5)


def test_a_file_that_cannot_be_read_is_named_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "absent"

    def message() -> str:
        with pytest.raises(StorageError) as caught:
            inspect_module(path, limits=Limits(), allow_imports=frozenset())
        return str(caught.value)

    assert message() == f"cannot read the module at {path}: No such file or directory"

    def failing(*_: Any) -> IO[bytes]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", failing)
    assert message() == f"cannot read the module at {path}: Input/output error"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "NotWasm"),
        (b"<html>", "NotWasm"),
        (b"\0asm\x01", "Truncated"),
        (b"\0asm\x0d\0\x01\0", "WasmComponent"),
        (b"\0asm\x02\0\0\0", "WasmInvalid"),
        (b"\0asm\x01\0\0\0\x01\x04", "Truncated"),
        (b"\0asm\x01\0\0\0\x01\x02\x01\x33", "WasmInvalid"),
        (b"\0asm\x01\0\0\0", "AbiMissing"),
    ],
)
def test_the_header_is_looked_at_before_the_sections(data: bytes, reason: str) -> None:
    assert refusal(data)[0] == reason


def abi_export(version: str) -> str:
    return f'(func (export "proxy_abi_version_{version}"))'


def test_versions_that_envoy_does_not_know_are_named(compile_text: Compile) -> None:
    others = abi_export("0_3_0") + abi_export("9_9_9")
    assert refusal(compile_text(f"(module {OWN_MEMORY}{ALLOCATOR}{others})")) == (
        "AbiUnsupported",
        "the module exports proxy_abi_version_0_3_0, proxy_abi_version_9_9_9, an ABI version that Envoy does not "
        "know (it knows 0.1.0, 0.2.0, 0.2.1): build it with an SDK for one of those",
    )
    both = abi_export("0_3_0") + abi_export("0_2_0")
    assert inspect(compile_text(f"(module {OWN_MEMORY}{ALLOCATOR}{both})")).abi == "0.2.0"


NO_ABI = (
    "the module is not a proxy-wasm filter: it exports no function proxy_abi_version_… "
    "(Envoy knows 0.1.0, 0.2.0, 0.2.1); "
)


def test_a_module_that_is_no_filter_gets_advice_how_to_build_one(compile_text: Compile) -> None:
    text = '(func (export "abi_version_0_2_1")) (memory (export "proxy_abi_version_0_2_0") 1)'
    data = compile_text(f"(module {text}{ALLOCATOR})")
    assert refusal(data) == (
        "AbiMissing",
        f"{NO_ABI}build it with a proxy-wasm SDK, as a library (cdylib, c-shared, reactor) rather than a program",
    )
    mark = b"runtime.gcBgMarkWorker\0"
    assert refusal(data + bytes([0, len(mark) + 2, 1]) + b"x" + mark) == (
        "AbiMissing",
        f"{NO_ABI}use github.com/proxy-wasm/proxy-wasm-go-sdk, and build it with `GOOS=wasip1 GOARCH=wasm "
        "go build -buildmode=c-shared -o filter.wasm .` (Go 1.24 or later)",
    )


@pytest.mark.parametrize(
    "memory",
    [
        OWN_MEMORY,
        '(memory (export "another name") 1)',
        '(import "env" "memory" (memory 1))',
    ],
)
@pytest.mark.parametrize("allocator", ["malloc", "proxy_on_memory_allocate"])
def test_a_memory_and_an_allocator_that_envoy_reaches_are_enough(
    compile_text: Compile, memory: str, allocator: str
) -> None:
    function = ALLOCATOR.replace("malloc", allocator)
    assert inspect(compile_text(f"(module {memory}{ABI}{function})")).abi == "0.2.1"


def test_missing_exports_that_envoy_needs_are_named(compile_text: Compile) -> None:
    assert refusal(compile_text(f"(module (memory 1){ABI}{ALLOCATOR})")) == (
        "ExportMissing",
        "the module exports no memory, and Envoy crashes at its first call into such a module: "
        'export its memory (in text: (memory (export "memory") 1))',
    )
    no_function = '(global (export "malloc") i32 (i32.const 0)) (func (export "free"))'
    assert refusal(compile_text(f"(module {OWN_MEMORY}{ABI}{no_function})")) == (
        "ExportMissing",
        "the module exports neither malloc nor proxy_on_memory_allocate, one of which Envoy "
        "needs to hand it data: build it with a proxy-wasm SDK, or export a function "
        "proxy_on_memory_allocate(size) that returns an address",
    )


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ('(data (i32.const 65535) "x")', None),
        ('(data (i32.const 65536) "x")', "data segment 0 ends at 65537, but the initial memory has 65536 bytes"),
        ("(elem (i32.const 2) $f)", None),
        ("(elem (i32.const 3) $f)", "element segment 0 ends at 4, but the initial table has 3 entries"),
        ("(elem (table $own) (i32.const 8) func $f)", None),
        ("(elem (table $own) (i32.const 9) func $f)", "element segment 0 ends at 10, but the initial table has 9 entries"),
    ],
)  # fmt: skip
def test_segments_have_to_fit_into_imported_memories_and_tables_too(
    compile_text: Compile, what: str, problem: str | None
) -> None:
    imported = '(import "env" "t" (table 3 funcref)) (import "env" "m" (memory 1))'
    own = "(table $own 9 funcref) (func $f)"
    data = compile_text(f"(module {imported}{ABI}{ALLOCATOR}{own}{what})")
    if problem is None:
        assert inspect(data)
    else:
        reason, message = refusal(data)
        assert reason == "WasmInvalid"
        assert problem in message


BY_REFERENCE = """(module
(type $h (func (param i32) (result i32)))
(import "env" "proxy_log" (func (param i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_close" (func $wasi (type $h)))
(memory (export "memory") 1)
(func (export "proxy_abi_version_0_2_1"))
(func (export "malloc") (type $h) (i32.const 1024))
(func $own (type $h) (i32.const 1))
{}
)"""


@pytest.mark.parametrize(
    ("how", "is_refused"),
    [
        ('(func (type $h) (call_ref $h (local.get 0) (ref.func $wasi))) (export "again" (func $wasi))', True),
        ("(elem declare func $wasi) (func (type $h) (call_ref $h (local.get 0) (ref.func $wasi)))", True),
        ("(global (ref $h) (ref.func $wasi)) (elem declare func $own) (func (type $h) (call_ref $h (local.get 0) (ref.func $own)))", True),
        ("(table 1 1 (ref $h) (ref.func $wasi)) (elem declare func $own) (func (type $h) (call_ref $h (local.get 0) (ref.func $own)))", True),
        ("(elem declare func $own $wasi) (func (type $h) (call_ref $h (local.get 0) (ref.func $own)))", False),
        ("(global (ref $h) (ref.func $wasi)) (func (type $h) (call $wasi (local.get 0)))", False),
    ],
    ids=["exported", "declared", "global", "table", "own", "not-called"],
)  # fmt: skip
def test_a_host_function_called_by_reference_is_refused(how: str, is_refused: bool) -> None:
    data = wat.assemble(BY_REFERENCE.format(how))
    if not is_refused:
        assert inspect(data)
        return
    reason, message = refusal(data)
    assert reason == "EnvoyCrash"
    assert message.startswith(
        "the module may call wasi_snapshot_preview1.fd_close by reference (call_ref, in function 5)"
    )


def test_a_module_without_code_is_judged_by_its_imports(
    tmp_path: Path, compile_text: Compile
) -> None:
    imported = (
        '(import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))'
        '(import "env" "begin" (func $begin))'
    )
    exported = (
        '(export "proxy_abi_version_0_2_1" (func $begin)) (export "malloc" (func $close))'
        '(export "_initialize" (func $begin))'
    )
    data = compile_text(f"(module {imported}{OWN_MEMORY}{exported})")
    data += b"\0\x02\x01\x7f"
    info = inspect_bytes(data, limits=Limits(), allow_imports=frozenset({"env.begin"}))
    assert info.abi == "0.2.1"
    (tmp_path / "x.wasm").write_bytes(data)
    assert describe_module(tmp_path / "x.wasm", limits=Limits()).exports == (
        Export("memory", MEMORY, 0),
        Export("proxy_abi_version_0_2_1", FUNCTION, 1),
        Export("malloc", FUNCTION, 0),
        Export("_initialize", FUNCTION, 1),
    )
