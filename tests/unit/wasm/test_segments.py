"""Segments that do not fit are refused, and wasmtime, which starts each module, confirms that they do not."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmtime import Engine, Instance, Module, Store, Trap, wat2wasm

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm.binary import BinaryReader
from autowasm.wasm.module import inspect_bytes
from autowasm.wasm.start import Segment, read_elements

OTHERS = (
    '(func (export "proxy_abi_version_0_2_1"))'
    '(func (export "malloc") (param i32) (result i32) (i32.const 1024))'
    '(memory (export "memory") 1) (table $first 4 funcref) (table $second 2 externref)'
    "(global $zero i32 (i32.const 0))"
)

Compile = Callable[[str], bytes]


def refused(data: bytes) -> str:
    try:
        inspect_bytes(data, limits=Limits(), allow_imports=frozenset())
    except ContentRejected as error:
        return f"{error.reason}: {error}"
    return ""


def traps(data: bytes) -> bool:
    """Whether wasmtime fails to start it."""
    engine = Engine()
    try:
        Instance(Store(engine), Module(engine, data), [])
    except Trap:
        return True
    return False


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("(data (i32.const 65535) {})", ""),
        ("(data (i32.const 65536) {})", "data segment 0 ends at 65537"),
        ("(data (i32.const -1) {})", "data segment 0 ends at 4294967296"),
        ("(data {}) (data (i32.const 64) {}) (data (i32.const 65537))", "data segment 2"),
        ("(data (i32.const 65536))", ""),
        ("(elem (i32.const 3) $f)", ""),
        ("(elem (i32.const 3) $f $f)", "element segment 0 ends at 5, but the initial table has 4"),
        ("(elem (table $second) (i32.const 2) externref (ref.null extern))", "ends at 3"),
        ("(elem (table $second) (i32.const 1) externref (ref.null extern))", ""),
        ("(elem (i32.const 3) funcref (ref.func $f) (ref.null func))", "ends at 5"),
        ("(elem func $f) (elem declare func $f) (elem funcref (ref.func $f)) (elem (i32.const 4) $f)", "segment 3"),
        ("(elem (table $first) (i32.const 4) func $f)", "segment 0"),
        ("(elem (i32.const 0) $f $f $f $f)", ""),
    ],
)  # fmt: skip
def test_a_segment_beyond_the_initial_size_is_refused(
    compile_text: Compile, what: str, words: str
) -> None:
    data = compile_text(f"(module {OTHERS}(func $f) {what.replace('{}', chr(34) + 'x' + chr(34))})")
    assert bool(words) == traps(data)
    error = refused(data)
    assert words in error
    assert error.startswith("WasmInvalid" if words else "")
    assert bool(error) == bool(words)


def test_an_offset_that_has_to_be_computed_is_let_through() -> None:
    # (table 1 funcref) has no room for either: (elem (global.get 0) 7) (elem (i32.const 8) 9)
    data = b"\x02\0\x23\0\x0b\x01\x07\0\x41\x08\x0b\x01\x09"
    read = list(read_elements(BinaryReader(data, 0, len(data)), limits=Limits()))
    assert read == [Segment(1, 0, 8, 1)]


def test_more_elements_than_the_limit_are_not_looked_at() -> None:
    data = b"\x03" + b"\0\x41\0\x0b\x02\0\0" * 3
    read = list(read_elements(BinaryReader(data, 0, len(data)), limits=Limits(type_parts=3)))
    assert [each.number for each in read] == [0, 1]


@given(
    offsets=st.lists(st.integers(0, 70_000) | st.integers(0, 2**32 - 1), max_size=4),
    places=st.lists(st.integers(0, 6), max_size=4),
    size=st.integers(0, 3),
)
def test_segments_are_refused_exactly_if_they_trap(
    offsets: list[int], places: list[int], size: int
) -> None:
    data = "".join(f'(data (i32.const {offset}) "{"x" * size}")' for offset in offsets)
    elements = "".join(f"(elem (i32.const {place}) {'$f ' * size})" for place in places)
    module = bytes(wat2wasm(f"(module {OTHERS}(func $f) {data}{elements})"))
    assert bool(refused(module)) == traps(module)
