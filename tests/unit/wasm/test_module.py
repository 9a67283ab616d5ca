import dataclasses
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from autowasm.envoyversion import envoy_version
from autowasm.errors import ContentRejected, StorageError
from autowasm.limits import ENVOY_MODULE_LIMIT, Limits
from autowasm.wasm import abi
from autowasm.wasm.binary import BinaryReader, sections
from autowasm.wasm.module import ModuleInfo, describe_module, inspect_bytes, inspect_module
from autowasm.wasm.sections import Storage, read_signatures

ABI = '(func (export "proxy_abi_version_0_2_1"))'
ALLOCATOR = '(func (export "malloc") (param i32) (result i32) (i32.const 1024))'
MEMORY = '(memory (export "memory") 1)'
PLAIN = ABI + MEMORY + ALLOCATOR
NONE: frozenset[str] = frozenset()


def leb(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def custom(name: bytes, content: bytes) -> bytes:
    body = leb(len(name)) + name + content
    return b"\0" + leb(len(body)) + body


def inspect(data: bytes, *allow: str, **limits: int) -> ModuleInfo:
    return inspect_bytes(data, limits=Limits(**limits), allow_imports=frozenset(allow))


def refusal(data: bytes, *allow: str, **limits: int) -> ContentRejected:
    with pytest.raises(ContentRejected) as caught:
        inspect(data, *allow, **limits)
    return caught.value


def inspect_for(version: str, data: bytes, *allow: str) -> ModuleInfo:
    return inspect_bytes(
        data,
        limits=Limits(),
        allow_imports=frozenset(allow),
        envoy=envoy_version(version),
    )


def refusal_for(version: str, data: bytes) -> ContentRejected:
    with pytest.raises(ContentRejected) as caught:
        inspect_for(version, data)
    return caught.value


def _import(name: str) -> str:
    module, _, field = name.partition(".")
    parameters, results = abi.HOST_FUNCTIONS[name].signature.replace("void", "").split(" -> ")
    return f'(import "{module}" "{field}" (func (param {parameters}) (result {results})))'


def test_a_good_filter_is_described(hello: bytes) -> None:
    info = inspect(hello)
    assert (info.size, info.abi) == (498, "0.2.1")


@pytest.mark.parametrize("name", ["earth", "trap", "refuses_configuration"])
def test_faults_that_appear_only_at_run_time_are_not_refused(
    module: Callable[[str], bytes], name: str
) -> None:
    assert inspect(module(name)).abi == "0.2.1"


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("no_abi", "AbiMissing", "not a proxy-wasm filter"),
        ("future_abi", "AbiUnsupported", "proxy_abi_version_0_3_0"),
        ("unknown_import", "ImportUnknown", "--allow-import=env.proxy_no_such_call"),
        ("mistyped_import", "ImportMismatch", r"env.proxy_log .*\(i32 i32 -> i32\)"),
        ("mistyped_export", "ExportMismatch", "proxy_on_response_headers"),
        ("no_memory_export", "ExportMissing", "memory"),
        ("no_allocator", "ExportMissing", "proxy_on_memory_allocate"),
    ],
)
def test_each_way_to_fail_in_envoy_is_refused_by_name(
    module: Callable[[str], bytes], name: str, reason: str, words: str
) -> None:
    with pytest.raises(ContentRejected, match=words) as caught:
        inspect(module(name))
    assert caught.value.reason == reason


def test_an_allowed_import_is_accepted(module: Callable[[str], bytes]) -> None:
    assert inspect(module("unknown_import"), "env.proxy_no_such_call").abi == "0.2.1"


def test_allowing_an_import_does_not_allow_a_wrong_type(module: Callable[[str], bytes]) -> None:
    assert refusal(module("mistyped_import"), "env.proxy_log").reason == "ImportMismatch"


def test_every_missing_function_is_listed_in_the_form_of_the_flag(
    compile_text: Callable[[str], bytes],
) -> None:
    names = [f"f{n}" for n in range(30)]
    imports = "".join(f'(import "env" "{name}" (func))' for name in names)
    data = compile_text(f"(module {imports}{PLAIN})")
    flag = re.search(r"--allow-import=(\S+)", str(refusal(data)))
    assert flag
    assert flag[1].split(",") == [f"env.{name}" for name in names]
    assert inspect(data, *flag[1].split(","))


def test_a_mistyped_import_is_reported_before_missing_ones(
    compile_text: Callable[[str], bytes],
) -> None:
    text = '(import "env" "f" (func))(import "env" "proxy_log" (func (result i32)))'
    assert refusal(compile_text(f"(module {text}{PLAIN})")).reason == "ImportMismatch"


def test_an_import_of_another_abi_version_is_explained(
    compile_text: Callable[[str], bytes],
) -> None:
    text = '(module (import "env" "proxy_continue_request" (func (result i32)))' + PLAIN + ")"
    error = refusal(compile_text(text))
    assert error.reason == "ImportUnknown"
    assert "only to modules of ABI 0.1.0" in str(error)


def test_functions_of_newer_envoys_are_accepted_when_every_envoy_is_one(
    compile_text: Callable[[str], bytes],
) -> None:
    newer = {name for name, each in abi.HOST_FUNCTIONS.items() if each.since == (1, 39)}
    wasi = sorted(name for name in newer if name.startswith("wasi_snapshot_preview1."))
    text = "".join(_import(name) for name in wasi)
    data = compile_text(f"(module {text}{PLAIN})")
    error = refusal(data)
    assert error.reason == "ImportUnknown"
    assert "use --envoy-version=1.39" in str(error)
    assert "--allow-import" not in str(error)
    assert ",".join(wasi) in str(error)
    assert refusal_for("1.38", data).reason == "ImportUnknown"
    for version in ("1.39", "1.40.2", "v2.0"):
        assert inspect_for(version, data).abi == "0.2.1"


def test_a_module_that_needs_both_flags_is_reported_with_both(
    compile_text: Callable[[str], bytes],
) -> None:
    later = "wasi_snapshot_preview1.fd_tell"
    data = compile_text(f'(module {_import(later)}(import "env" "x" (func)){PLAIN})')
    assert "--envoy-version=1.39 --allow-import=env.x " in str(refusal(data))
    assert inspect_for("1.39", data, "env.x").abi == "0.2.1"


def test_a_module_for_a_browser_gets_advice(compile_text: Callable[[str], bytes]) -> None:
    error = refusal(compile_text(f'(module (import "wbg" "x" (func)){PLAIN})'))
    assert "wasm32-wasip1" in str(error)
    assert "--allow-import" not in str(error)


def test_an_imported_global_is_refused(compile_text: Callable[[str], bytes]) -> None:
    error = refusal(compile_text(f'(module (import "env" "x" (global i32)){PLAIN})'))
    assert error.reason == "ImportUnknown"
    assert "the global env.x" in str(error)


def test_an_imported_tag_which_crashes_envoy_is_refused(
    compile_text: Callable[[str], bytes],
) -> None:
    plain = compile_text(f"(module (type (func)){PLAIN})")
    after_types = 10 + plain[9]
    tag = b"\x02\x0a\x01\x03env\x01x\x04\0\0"  # (import "env" "x" (tag (type 0)))
    error = refusal(plain[:after_types] + tag + plain[after_types:])
    assert error.reason == "ImportUnknown"
    assert "the tag env.x" in str(error)


@pytest.mark.parametrize("what", ["(memory 1)", "(table 1 funcref)"])
def test_imported_memories_and_tables_match_those_of_envoy(
    tmp_path: Path, compile_text: Callable[[str], bytes], what: str
) -> None:
    own = "" if "memory" in what else MEMORY
    data = compile_text(f'(module (import "env" "x" {what}){own}{ABI}{ALLOCATOR})')
    assert inspect(data)
    (tmp_path / "x.wasm").write_bytes(data)
    (imported,) = describe_module(tmp_path / "x.wasm", limits=Limits()).imports
    assert imported.storage == Storage(1, entry=0 if "memory" in what else 0x70)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ('(memory (export "memory") 16385)', "16385 pages"),
        (MEMORY + "(table 10000001 funcref)", "10000001 entries"),
    ],
)
def test_sizes_that_envoy_does_not_create_are_refused(
    compile_text: Callable[[str], bytes], what: str, words: str
) -> None:
    error = refusal(compile_text(f"(module {what}{ABI}{ALLOCATOR})"))
    assert error.reason == "TooLarge"
    assert words in str(error)


def test_the_first_abi_export_counts_as_it_does_in_envoy(
    compile_text: Callable[[str], bytes],
) -> None:
    older = '(func (export "proxy_abi_version_0_1_0"))'
    assert inspect(compile_text(f"(module {older}{PLAIN})")).abi == "0.1.0"
    assert inspect(compile_text(f"(module {PLAIN}{older})")).abi == "0.2.1"


def test_an_abi_export_that_is_no_function_does_not_count(
    compile_text: Callable[[str], bytes],
) -> None:
    text = '(global (export "proxy_abi_version_0_2_1") i32 (i32.const 0))' + MEMORY + ALLOCATOR
    assert refusal(compile_text(f"(module {text})")).reason == "AbiMissing"


def test_types_are_found_behind_groups_of_recursive_types(
    compile_text: Callable[[str], bytes],
) -> None:
    plain = compile_text(f"(module {PLAIN})")
    size, count = plain[9], plain[10]
    group = b"\x4e\x02\x5f\x01\x7f\x00\x50\x00\x5e\x63\x00\x01"  # (rec (struct i32) (array (ref null 0)))
    types = bytes([count + 1]) + plain[11 : 10 + size] + group
    with_group = plain[:9] + bytes([len(types)]) + types + plain[10 + size :]
    assert inspect(with_group).abi == "0.2.1"
    # Before the others, the group moves every type index: the exports have wrong types then, or do not validate.
    types = bytes([count + 1]) + group + plain[11 : 10 + size]
    assert refusal(plain[:9] + bytes([len(types)]) + types + plain[10 + size :])


def test_a_malformed_body_is_refused(hello: bytes) -> None:
    assert hello.count(b"\x41\x01\x0b") > 0
    error = refusal(hello.replace(b"\x41\x01\x0b", b"\x41\x01\xff"))
    assert error.reason == "WasmInvalid"
    assert "\n" not in str(error)


def test_unchecked_function_bodies_are_reported(
    compile_text: Callable[[str], bytes], hello: bytes
) -> None:
    body = "(tag $t (param i32))(func (try (do (throw $t (i32.const 1))) (catch_all)))"
    info = inspect(compile_text(f"(module {PLAIN}{body})"))
    assert info.unchecked.startswith("1 of 3 function bodies were not validated")
    assert inspect(hello).unchecked == ""


@pytest.mark.parametrize(
    "body",
    [
        "(func (result v128) (v128.const i32x4 0 0 0 0))",
        "(func (memory.fill (i32.const 0) (i32.const 0) (i32.const 0)))",
        "(func (result i32 i32) (i32.const 0) (i32.const 0))",
        "(table 1 externref)",
        "(func $f (return_call $f))",
        "(global i32 (i32.add (i32.const 1) (i32.const 2)))",
        "(memory $second 1)",
    ],
)
def test_features_of_envoys_v8_are_accepted(
    compile_text: Callable[[str], bytes], body: str
) -> None:
    assert inspect(compile_text(f"(module {PLAIN}{body})"))


def test_every_truncation_is_noticed_but_one_between_sections_that_leaves_a_module(
    hello: bytes,
) -> None:
    # Without its data section the filter is still valid: only the digest differs, and it is checked elsewhere.
    before_data = next(each for each in sections(hello, most=100) if each.id == 11).start - 2
    reasons = {refusal(hello[:end]).reason for end in range(len(hello)) if end != before_data}
    assert reasons <= {"NotWasm", "Truncated", "WasmInvalid", "AbiMissing"}
    assert refusal(hello[: len(hello) // 2]).reason == "Truncated"


def test_two_to_the_32_declared_functions_take_no_memory() -> None:
    data = b"\0asm\x01\0\0\0" + b"\x03\x05\xff\xff\xff\xff\x0f"
    tracemalloc.start()
    try:
        assert refusal(data).reason == "WasmInvalid"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        b"\x01\x64\x01\0\x03abc",  # longer than the section
        b"\x01\x07\x01\0\x03abc\0",  # something after the last name
        b"\x01\x06\x64\0\x03abc",  # fewer names than announced
        b"\x07",  # no size
        b"\x01\x07\x01\0\xff\xff\xff\xff\x0f",  # a name of 4 GiB
        b"\x01\x08\x01\x80\x80\x80\x80\x04\x01a",  # a function index of 2 ** 30
    ],
)
def test_a_malformed_name_section_is_refused_because_envoy_reads_it(
    hello: bytes, content: bytes
) -> None:
    error = refusal(hello + custom(b"name", content))
    assert error.reason == "WasmInvalid"
    assert "wasm-strip" in str(error)


def test_other_custom_sections_are_not_read(hello: bytes) -> None:
    good = custom(b"name", b"\x01\x06\x01\0\x03abc")
    junk = custom(b"producers", b"\xff" * 100) + custom(b"name", b"\x07")
    assert inspect(hello + good + junk).abi == "0.2.1"


def test_too_many_function_names_are_refused_before_they_are_read(hello: bytes) -> None:
    names = leb(3) + b"\0\x01a" * 3
    section = custom(b"name", b"\x01" + leb(len(names)) + names)
    assert inspect(hello + section, function_names=3)
    assert refusal(hello + section, function_names=2).reason == "TooLarge"


def test_a_module_of_envoys_greatest_size_passes_and_one_byte_more_does_not(
    hello: bytes, tmp_path: Path, limits: Limits
) -> None:
    padding = ENVOY_MODULE_LIMIT - len(hello) - 5  # a custom section's id and 4 bytes of size
    largest = hello + b"\0" + leb(padding) + bytes(padding)
    path = tmp_path / "module"
    path.write_bytes(largest)
    assert inspect_module(path, limits=limits, allow_imports=NONE).size == ENVOY_MODULE_LIMIT
    path.write_bytes(largest + b"\0")
    with pytest.raises(ContentRejected, match="33554433 bytes") as caught:
        inspect_module(path, limits=limits, allow_imports=NONE)
    assert caught.value.reason == "TooLarge"


def test_millions_of_empty_sections_are_not_walked(hello: bytes) -> None:
    error = refusal(hello + b"\0\x01\0" * 1_000_000)
    assert error.reason == "TooLarge"
    assert "wasm-strip" in str(error)


def test_types_are_read_up_to_a_limit(compile_text: Callable[[str], bytes]) -> None:
    data = compile_text("(module (type (func (param f32))) (type (func (param f64)))" + PLAIN + ")")
    assert inspect(data, types=4)
    error = refusal(data, types=2)
    assert error.reason == "TooLarge"
    assert "types" in str(error)


def test_references_in_types_are_read_up_to_a_limit(compile_text: Callable[[str], bytes]) -> None:
    plain = compile_text(f"(module {PLAIN})")
    size, count = plain[9], plain[10]
    # Before the types that count: (func (param (ref null func) (ref null func))), written the long way.
    long = b"\x60\x02\x63\x70\x63\x70\0"
    own = plain[11 : 10 + size]
    reader = BinaryReader(bytes([count + 1]) + long + own, 0, 1 + len(long) + len(own))
    limits = Limits(type_parts=1)
    with pytest.raises(ContentRejected, match="parts of types"):
        read_signatures(reader, [1], limits=limits)
    reader.position = 0
    assert read_signatures(reader, [0, 1], limits=Limits()) == {
        0: "funcref funcref -> void",
        1: "void -> void",
    }


@pytest.mark.parametrize("field", ["imports", "exports"])
def test_counts_have_limits(hello: bytes, field: str) -> None:
    error = refusal(hello, **{field: 1})
    assert error.reason == "TooLarge"
    assert field in str(error)


def test_a_file_that_cannot_be_read_is_a_storage_error(tmp_path: Path, limits: Limits) -> None:
    with pytest.raises(StorageError):
        inspect_module(tmp_path / "absent", limits=limits, allow_imports=NONE)


def test_names_in_messages_are_one_printable_line(compile_text: Callable[[str], bytes]) -> None:
    data = compile_text(f'(module (import "env" "a\\0a\\1b[31m\\e2\\80\\ae" (func)){PLAIN})')
    message = str(refusal(data))
    assert "\\n" in message
    assert message.isprintable()


def test_info_is_a_value(hello: bytes) -> None:
    assert dataclasses.is_dataclass(inspect(hello))
    assert inspect(hello) == inspect(hello)


def test_bytes_above_the_limit_are_refused(hello: bytes) -> None:
    assert refusal(hello, module_bytes=len(hello) - 1).reason == "TooLarge"


def test_a_program_of_go_is_pointed_to_the_sdk(compile_text: Callable[[str], bytes]) -> None:
    program = compile_text('(module (memory (export "memory") 1))')
    error = refusal(program)
    assert error.reason == "AbiMissing"
    assert "build it with a proxy-wasm SDK" in str(error)
    error = refusal(program + custom(b"x", b"runtime.gcBgMarkWorker\0"))
    assert error.reason == "AbiMissing"
    assert "proxy-wasm-go-sdk" in str(error)
