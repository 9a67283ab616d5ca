from collections.abc import Callable

import pytest

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm.binary import BinaryReader
from autowasm.wasm.module import inspect_bytes
from autowasm.wasm.sections import (
    EXTERNREF,
    FUNCREF,
    Storage,
    find_linked_type,
    find_unknown_type,
    read_global_types,
    read_tables,
)

OTHERS = (
    '(func (export "proxy_abi_version_0_2_1"))'
    '(func (export "malloc") (param i32) (result i32) (i32.const 1024))'
)
MEMORY = '(memory (export "memory") 1)'
INSIDE = "(func (param v128)) (global v128 (v128.const i64x2 0 0)) (tag)"

Compile = Callable[[str], bytes]


def inspect(data: bytes, *allow: str, **limits: int) -> None:
    inspect_bytes(data, limits=Limits(**limits), allow_imports=frozenset(allow))


def refusal(data: bytes, *allow: str, **limits: int) -> ContentRejected:
    with pytest.raises(ContentRejected) as caught:
        inspect(data, *allow, **limits)
    return caught.value


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ('(func (export "q") (param v128))', "the function q"),
        ('(func (export "q") (result v128) (v128.const i64x2 0 0))', "the function q"),
        ('(global (export "g") v128 (v128.const i64x2 0 0))', "the global g"),
        ('(tag (export "t") (param i32))', "the tag t"),
        ('(table (export "t") 1 exnref)', "the table t"),
    ],
)
def test_an_export_over_which_envoy_crashes_is_refused(
    compile_text: Compile, what: str, words: str
) -> None:
    error = refusal(compile_text(f"(module {MEMORY}{OTHERS}{what})"))
    assert error.reason == "ExportMismatch"
    assert words in str(error)


def test_definitions_that_are_not_exported_may_have_any_type(compile_text: Compile) -> None:
    inspect(compile_text(f"(module {MEMORY}{OTHERS}{INSIDE})"))


def test_numbers_and_plain_references_may_be_exported(compile_text: Compile) -> None:
    exported = (
        '(func (export "f") (param i32 i64 f32 f64 funcref externref))'
        '(global (export "a") externref (ref.null extern)) (global f64 (f64.const 11))'
        '(global (export "b") i64 (i64.const -11)) (table (export "t") 1 externref)'
    )
    inspect(compile_text(f"(module {MEMORY}{INSIDE}{OTHERS}{exported})"))


def test_an_allowed_import_of_a_type_over_which_envoy_crashes_is_refused(
    compile_text: Compile,
) -> None:
    data = compile_text(f'(module (import "env" "x" (func (param v128))){MEMORY}{OTHERS})')
    error = refusal(data, "env.x")
    assert error.reason == "ImportMismatch"
    assert "env.x" in str(error)


@pytest.mark.parametrize(
    ("what", "reason", "words"),
    [
        ("(table 1 10000001 funcref)", "ImportMismatch", "maximum"),
        ("(table 10000001 funcref)", "TooLarge", "10000001 entries"),
        ("(table 1 exnref)", "ImportMismatch", "neither funcref nor externref"),
    ],
)
def test_imports_that_envoy_cannot_create_are_refused(
    compile_text: Compile, what: str, reason: str, words: str
) -> None:
    error = refusal(compile_text(f'(module (import "env" "x" {what}){MEMORY}{OTHERS})'))
    assert error.reason == reason
    assert words in str(error)


@pytest.mark.parametrize(("flags", "word"), [(b"\x03", "shared"), (b"\x05", "64-bit")])
def test_an_imported_memory_of_another_kind_is_refused(
    compile_text: Compile, flags: bytes, word: str
) -> None:
    data = compile_text(f'(module (import "env" "x" (memory 1 2)){OTHERS})')
    plain = b"\x01x\x02\x01\x01\x02"
    assert data.count(plain) == 1
    error = refusal(data.replace(plain, b"\x01x\x02" + flags + b"\x01\x02"))
    assert error.reason == "ImportMismatch"
    assert word in str(error)


def test_tables_count_together(compile_text: Compile) -> None:
    text = '(module (import "env" "x" (table 6 funcref))(table 5 funcref)' + MEMORY + OTHERS + ")"
    inspect(compile_text(text), table_entries=11)
    error = refusal(compile_text(text), table_entries=10)
    assert error.reason == "TooLarge"
    assert "11 entries" in str(error)


def test_a_64_bit_memory_has_envoys_maximum(compile_text: Compile) -> None:
    data = compile_text('(module (memory (export "memory") 1 9)' + OTHERS + ")")
    section = b"\x05\x04\x01\x01\x01\x09"
    assert data.count(section) == 1
    data = data.replace(section, section.replace(b"\x01\x01\x01", b"\x01\x05\x01"))
    inspect(data, memory_pages_64=9)
    assert refusal(data, memory_pages_64=8).reason == "TooLarge"


def test_tables_behind_one_with_an_initial_value_are_read() -> None:
    # (table 2 (ref func) (ref.func 11)) (table 7 8 externref)
    data = b"\x02\x40\0\x64\x70\0\x02\xd2\x0b\x0b\x6f\x01\x07\x08"
    tables = read_tables(BinaryReader(data, 0, len(data)), limits=Limits())
    assert tables == [Storage(2, entry=0x64), Storage(7, 8, entry=EXTERNREF)]


def test_a_global_is_found_behind_every_kind_of_initial_value() -> None:
    values = [
        b"\x41\x8b\x0b",  # i32.const with an end (0x0b) in it
        b"\x42\x0b",
        b"\x43\x0b\x0b\x0b\x0b",
        b"\x44" + b"\x0b" * 8,
        b"\xfd\x0c" + b"\x0b" * 16,
        b"\x23\x0b\x41\x0b\x6a",
        b"\xd0\x70",
        b"\xd2\x0b",
        b"\x41\x0b\xfb\x1c",  # ref.i31
        b"\xfb\x01\x0b",
        b"\x41\x0b\xfb\x08\x0b\x01",
    ]
    data = bytes([len(values) + 1]) + b"".join(b"\x7f\0" + value + b"\x0b" for value in values)
    data += b"\x6e\0\xd0\x6e\x0b"  # anyref
    reader = BinaryReader(data, 0, len(data))
    assert read_global_types(reader, {11}, limits=Limits()) == {11: 0x6E}
    assert reader.done


def test_initial_values_are_read_up_to_a_limit() -> None:
    data = b"\x01\x7f\0" + b"\x41\0" + b"\x41\0\x6a" * 50 + b"\x0b"
    with pytest.raises(ContentRejected, match="initial values"):
        read_global_types(BinaryReader(data, 0, len(data)), {0}, limits=Limits(type_parts=100))
    assert read_global_types(BinaryReader(data, 0, len(data)), {0}, limits=Limits(type_parts=101))


def test_references_of_other_types_are_distinguished_from_plain_ones_in_both_spellings() -> None:
    # (func (param (ref null func) (ref null extern))) (func (param (ref null 0))) (func (param anyref))
    data = b"\x03\x60\x02\x63\x70\x63\x6f\0\x60\x01\x63\0\0\x60\x01\x6e\0"
    for wanted, found in (({0}, None), ({0, 1}, 1), ({2}, 2)):
        reader = BinaryReader(data, 0, len(data))
        assert find_unknown_type(reader, wanted, limits=Limits()) == found
    assert {FUNCREF, EXTERNREF} == {0x70, 0x6F}


def test_types_are_looked_through_up_to_a_limit() -> None:
    data = b"\x03" + b"\x60\0\0" * 3
    for find in (find_unknown_type, find_linked_type):
        assert find(BinaryReader(data, 0, len(data)), {2}, limits=Limits(types=3)) is None
        with pytest.raises(ContentRejected) as caught:
            find(BinaryReader(data, 0, len(data)), {2}, limits=Limits(types=2))
        assert caught.value.reason == "TooLarge"


def test_a_type_of_more_values_than_the_section_has_bytes_is_refused() -> None:
    data = b"\x01\x60\xff\xff\xff\xff\x0f\0"
    with pytest.raises(ContentRejected, match="more values than the section has bytes"):
        find_unknown_type(BinaryReader(data, 0, len(data)), {0}, limits=Limits())


def test_the_function_with_the_type_is_named_among_several(compile_text: Compile) -> None:
    text = (
        '(module (import "env" "good" (func (param i32))) (import "env" "bad" (func (param v128)))'
        f"{MEMORY}{OTHERS})"
    )
    error = refusal(compile_text(text), "env.good", "env.bad")
    assert error.reason == "ImportMismatch"
    assert "env.bad" in str(error)
    assert "env.good" not in str(error)
