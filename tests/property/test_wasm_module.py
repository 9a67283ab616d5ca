"""For any bytes: a description or ContentRejected, and memory in proportion."""

import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm import binary
from autowasm.wasm.binary import BinaryReader, Section
from autowasm.wasm.bodies import Bodies
from autowasm.wasm.module import ModuleInfo, inspect_bytes
from autowasm.wasm.sections import (
    check_function_names,
    find_unknown_type,
    read_exports,
    read_global_types,
    read_imports,
    read_signatures,
    read_tables,
)
from tests.parts import wat

ASSETS = Path(__file__).parents[1] / "assets" / "wat"
LIMITS = Limits()
no_deadline = settings(deadline=None)
"""Other tests run beside these."""


def leb(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@pytest.fixture(scope="module")
def hello() -> bytes:
    return wat.compile_file(ASSETS / "hello.wat")


def verdict(data: bytes) -> ModuleInfo | ContentRejected:
    try:
        return inspect_bytes(data, limits=LIMITS, allow_imports=frozenset())
    except ContentRejected as error:
        refused = error
    assert str(refused).isprintable()
    assert len(str(refused)) < 2000
    return refused


@no_deadline
@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.binary(max_size=3))
def test_unsigned_integers_survive_the_way_there_and_back(
    value: int, zeros: int, after: bytes
) -> None:
    data = bytearray(leb(value))
    for _ in range(min(zeros, 5 - len(data))):
        data[-1] |= 0x80
        data.append(0)
    reader = BinaryReader(bytes(data) + after, 0, len(data) + len(after))
    assert reader.u32() == value
    assert reader.position == len(data)


@no_deadline
@given(st.integers(2**32, 2**70))
def test_integers_above_32_bits_are_refused(value: int) -> None:
    data = leb(value)
    with pytest.raises(ContentRejected):
        BinaryReader(data, 0, len(data)).u32()


@no_deadline
@given(st.binary(max_size=12), st.integers(0, 12))
def test_no_reader_goes_past_its_end(data: bytes, end: int) -> None:
    end = min(end, len(data))
    for read in (
        BinaryReader.u32,
        BinaryReader.u64,
        BinaryReader.skip_s33,
        lambda reader: reader.name(most=5),
        lambda reader: read_imports(reader, limits=LIMITS),
        lambda reader: read_exports(reader, limits=LIMITS),
        lambda reader: read_signatures(reader, range(5), limits=LIMITS),
        lambda reader: find_unknown_type(reader, range(5), limits=LIMITS),
        lambda reader: read_tables(reader, limits=LIMITS),
        lambda reader: read_global_types(reader, {0, 3}, limits=LIMITS),
    ):
        reader = BinaryReader(data, 0, end)
        with suppress(ContentRejected):
            read(reader)
        assert reader.position <= end


class _Every:
    """All instructions."""

    def __contains__(self, _: object) -> bool:
        return True


@no_deadline
@given(st.binary(max_size=40), st.lists(st.integers(0, 12), max_size=4))
def test_any_function_bodies_are_read_or_refused(content: bytes, sizes: list[int]) -> None:
    section = leb(len(sizes)) + b"".join(leb(size) for size in sizes) + content
    whole = Section(binary.CODE, 0, len(section))
    for data in (section, section + b"\x0b" * 3):
        with suppress(ContentRejected):
            code = Bodies(whole, data, limits=LIMITS)
            for function in range(len(code)):
                start, end = code.span(function)
                assert 0 <= start <= end <= len(section)
                instructions = list(code.read(function, _Every()))  # type: ignore[arg-type]
                assert len(instructions) < end - start


@no_deadline
@given(st.binary(max_size=60))
@example(b"\x01\x06\x01\0\x03abc")
def test_any_name_section_is_passed_or_refused(data: bytes) -> None:
    with suppress(ContentRejected):
        check_function_names(BinaryReader(data, 0, len(data)), limits=LIMITS)


HEAD = """
(type $h (func (param i32) (result i32)))
(import "env" "proxy_set_effective_context" (func $host (type $h)))
(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
(memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
(func (export "malloc") (param i32) (result i32) (i32.const 1024))
"""
REFERENCES = (
    HEAD
    + """
(table $t 1 1 (ref null $h)) (elem (table $t) (i32.const 0) (ref null $h) (ref.func $host))
(global funcref (ref.func $host)) (elem declare func $host)
(func (export "x") (result i32) (call_ref $h (i32.const 1) (ref.func $host)))
"""
)
EXCEPTIONS = (
    HEAD
    + """
(tag $t (param i32)) (table 1 funcref) (elem (i32.const 0) func $host)
(func (export "_start") (try (do (throw $t (i32.const 1))) (catch $t (drop)) (catch_all (rethrow 0)))
  (try (do (try (do (call $exit (i32.const 0))) (delegate 0))) (catch_all)))
"""
)


@pytest.fixture(scope="module")
def seeds(hello: bytes) -> list[bytes]:
    """Modules on which each of the checks has something to do."""
    exceptions = wat.compile_text(f"(module {EXCEPTIONS})")
    return [hello, wat.assemble(f"(module {REFERENCES})"), exceptions]


def test_the_seeds_have_the_intended_verdicts(seeds: list[bytes]) -> None:
    assert isinstance(verdict(seeds[0]), ModuleInfo)
    references, exceptions = verdict(seeds[1]), verdict(seeds[2])
    assert isinstance(references, ContentRejected)
    assert references.reason == "EnvoyCrash"
    assert isinstance(exceptions, ModuleInfo)
    assert exceptions.unchecked


@no_deadline
@given(st.data())
def test_a_changed_module_is_described_or_refused(seeds: list[bytes], data: st.DataObject) -> None:
    changed = bytearray(data.draw(st.sampled_from(seeds)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(8, len(changed) - 1))
        action = data.draw(st.sampled_from(["set", "delete", "insert", "cut"]))
        piece = data.draw(st.binary(min_size=1, max_size=6))
        if action == "set":
            changed[at : at + 1] = piece[:1]
        elif action == "delete":
            del changed[at : at + len(piece)]
        elif action == "insert":
            changed[at:at] = piece
        else:
            del changed[at:]
        if len(changed) <= 9:
            break
    verdict(bytes(changed))


@no_deadline
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    assert isinstance(verdict(data), ContentRejected)
    assert isinstance(verdict(b"\0asm\x01\0\0\0" + data), ContentRejected)


@no_deadline
@given(
    st.lists(
        st.tuples(
            st.integers(0, 14), st.one_of(st.binary(max_size=20), st.integers(0, 2**35).map(leb))
        ),
        max_size=6,
    )
)
def test_any_sections_take_little_memory(parts: list[tuple[int, bytes]]) -> None:
    sections = b"".join(bytes([number]) + leb(len(body)) + body for number, body in parts)
    verdict(b"\0asm\x01\0\0\0")  # memory that is loaded once is not counted
    tracemalloc.start()
    try:
        verdict(b"\0asm\x01\0\0\0" + sections)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
