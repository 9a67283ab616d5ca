"""The reader of function bodies against wasm-tools: it finds each instruction, and the end of the body."""

import re

import pytest

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm import binary, bodies
from autowasm.wasm.bodies import Bodies
from tests.parts import wat

_INSTRUCTIONS = """
unreachable|nop|block|end|loop (result i32)|end|if (type 0)|else|end|throw 0|throw_ref|br 0|br_if 0|br_table 0 0 0|return
call 1|call_indirect 0 (type 0)|return_call 300|return_call_indirect 0 (type 0)|call_ref 0|return_call_ref 0
drop|select|select (result i32 (ref null 0) (ref func))|local.get 0|local.set 200|local.tee 0|global.get 0|global.set 0
try_table (catch 0 0) (catch_ref 0 0) (catch_all 0) (catch_all_ref 0)|end|try_table|end|table.get 0|table.set 0
i32.load offset=4000000000 align=1|i64.load 1 offset=8|i32.store8|i64.store32 1 offset=1|f64.load|memory.size|memory.grow 1
i32.const -2147483648|i32.const 7|i64.const -9223372036854775808|i64.const 64|f32.const 1|f64.const -1
i32.eqz|i64.extend32_s|f32.convert_i32_s|i32.wrap_i64
ref.null func|ref.null 0|ref.is_null|ref.func 1|ref.func 300|ref.eq|ref.as_non_null|br_on_null 0|br_on_non_null 0
i32.trunc_sat_f32_s|i64.trunc_sat_f64_u|memory.init 1 0|data.drop 0|memory.copy 1 0|memory.fill 1|table.init 0 0|elem.drop 0
table.copy 0 0|table.grow 0|table.size 0|table.fill 0
struct.new 1|struct.new_default 1|struct.get 1 0|struct.get_s 1 0|struct.get_u 1 0|struct.set 1 0|array.new 2
array.new_default 2|array.new_fixed 2 300|array.new_data 2 0|array.new_elem 2 0|array.get 2|array.get_s 2|array.get_u 2
array.set 2|array.len|array.fill 2|array.copy 2 2|array.init_data 2 0|array.init_elem 2 0|ref.test (ref 0)|ref.test (ref null any)
ref.cast (ref 0)|ref.cast (ref null extern)|br_on_cast 0 anyref (ref 1)|br_on_cast_fail 0 anyref (ref i31)|any.convert_extern
extern.convert_any|ref.i31|i31.get_s|i31.get_u
v128.load|v128.load8x8_s offset=300|v128.load64_splat|v128.store 1 offset=2|v128.const i64x2 11 -1
i8x16.shuffle 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15|i8x16.swizzle|i8x16.splat|i8x16.extract_lane_s 11|f64x2.replace_lane 1
i8x16.eq|v128.bitselect|v128.any_true|v128.load8_lane 11|v128.load64_lane 1 offset=8 1|v128.store32_lane 0|v128.load32_zero
v128.load64_zero|f32x4.demote_f64x2_zero|i8x16.abs|i16x8.mul|f64x2.convert_low_i32x4_u|i8x16.relaxed_swizzle
f64x2.relaxed_max|i32x4.relaxed_dot_i8x16_i7x16_add_s
memory.atomic.notify|memory.atomic.wait32|memory.atomic.wait64 offset=8|atomic.fence|i32.atomic.load|i64.atomic.store32
i32.atomic.rmw.add|i64.atomic.rmw32.cmpxchg_u
"""


class _Every:
    def __contains__(self, _: object) -> bool:
        return True

    def __iter__(self) -> None: ...

    def __len__(self) -> int:
        return 1


def _code(module: bytes, **limits: int) -> Bodies:
    section = next(each for each in binary.sections(module, most=100) if each.id == binary.CODE)
    return Bodies(section, module, limits=Limits(**limits))


def _listed() -> list[str]:
    return [each.strip() for each in re.split(r"[|\n]", _INSTRUCTIONS) if each.strip()]


def _module(*texts: str) -> bytes:
    functions = " ".join(f"(func (local i32 v128 (ref null 0)) {text})" for text in texts)
    return wat.assemble(f"(module (type (func)) {functions})")


@pytest.mark.parametrize("instruction", [each for each in _listed() if each != "end"])
def test_each_instruction_is_passed_over_exactly(instruction: str) -> None:
    closing = "end" if re.match(r"(block|loop|if|try_table)\b", instruction) else ""
    text = "if" if instruction == "else" else ""
    ending = "end" if instruction == "else" else closing
    module = _module(f"{text} {instruction} {ending} i32.const 20 drop")
    read = [code for code, _ in _code(module).read(0, _Every())]
    opened = [0x04] if text else []
    assert read[: len(opened)] == opened
    assert read[-3:] == [0x41, 0x1A, bodies.END]
    assert len(read) == len(opened) + 1 + (1 if ending else 0) + 3


def test_all_instructions_in_one_body_are_found_in_order() -> None:
    listed = _listed()
    read = list(_code(_module(" ".join(listed))).read(0, _Every()))
    assert len(read) == len(listed) + 1
    assert [operand for code, operand in read if code == bodies.REF_FUNC] == [1, 300]
    assert [operand for code, operand in read if code in (bodies.CALL, bodies.RETURN_CALL)] == [
        1,
        300,
    ]


def test_legacy_exceptions_are_read() -> None:
    text = (
        "(tag $t (param i32)) (func (try (do (throw $t (i32.const 1))) (catch $t (drop)) (catch_all (rethrow 0)))"
        " (try (do) (delegate 0)))"
    )
    wanted = (bodies.TRY, bodies.CATCH, bodies.CATCH_ALL, bodies.RETHROW, bodies.DELEGATE)
    read = [code for code, _ in _code(wat.compile_text(f"(module {text})")).read(0, wanted)]
    assert read == [
        *(bodies.TRY, bodies.CATCH, bodies.CATCH_ALL, bodies.RETHROW),
        *(bodies.TRY, bodies.DELEGATE),
    ]


def test_the_greatest_label_of_a_list_is_its_operand() -> None:
    text = "block block (br_table 1 0 2) end try_table (catch_all 1) end end"
    wanted = (bodies.BR_TABLE, bodies.TRY_TABLE)
    assert [operand for _, operand in _code(_module(text)).read(0, wanted)] == [2, 1]
    assert [operand for _, operand in _code(_module("try_table end")).read(0, wanted)] == [-1]


def test_bodies_with_a_byte_are_found_and_others_are_not() -> None:
    texts = ["nop", "ref.func 0", "i32.const 210", "nop", "ref.func 1"]
    found = list(_code(_module(*texts)).containing(bodies.REF_FUNC))
    assert found == [1, 2, 4]  # the third has the byte in a number
    assert list(_code(_module("nop")).containing(bodies.REF_FUNC)) == []


@pytest.mark.parametrize(
    "body",
    [
        b"\0\x10",  # a call without its function
        b"\0\x27\x0b",  # no instruction
        b"\0\xfb\x7f\x0b",
        b"\0\xfd\xff\x7f\x0b",
        b"\0\x41" + b"\x80" * 11 + b"\0\x0b",  # an integer of 84 bits
        b"\0\x10\x80",  # the index of a call without its end
        b"\0\xfd\x0c\x0b",  # a v128.const that is longer than the body
        b"\x01\xff\xff\xff\xff\x0f",  # locals without a type
        b"",
    ],
)
def test_a_malformed_body_is_refused(body: bytes) -> None:
    content = b"\x01" + bytes([len(body)]) + body
    module = b"\0asm\x01\0\0\0" + bytes([binary.CODE, len(content)]) + content
    with pytest.raises(ContentRejected) as caught:
        list(_code(module).read(0, _Every()))
    assert caught.value.reason == "WasmInvalid"


def test_more_bodies_than_the_section_has_bytes_are_refused_unread() -> None:
    content = b"\xff\xff\xff\xff\x0f\x02\0\x0b"
    module = b"\0asm\x01\0\0\0" + bytes([binary.CODE, len(content)]) + content
    with pytest.raises(ContentRejected, match="more function bodies than the section has bytes"):
        _code(module)


def test_an_index_written_in_several_bytes_is_read() -> None:
    assert list(_code(_module("nop")).read(0, {bodies.CALL})) == []
    body = b"\0\x10\x81\x80\0\x0b"
    content = b"\x01" + bytes([len(body)]) + body
    module = b"\0asm\x01\0\0\0" + bytes([binary.CODE, len(content)]) + content
    assert list(_code(module).read(0, {bodies.CALL})) == [(bodies.CALL, 1)]


def test_more_code_than_is_read_is_refused() -> None:
    code = _code(_module("nop nop nop"), body_bytes=5)
    with pytest.raises(ContentRejected) as caught:
        list(code.read(0, _Every()))
    assert caught.value.reason == "TooLarge"


def _in_module(body: bytes) -> bytes:
    """As the only function, with a section behind it."""
    content = b"\x01" + bytes([len(body)]) + body
    return (
        b"\0asm\x01\0\0\0"
        + bytes([binary.CODE, len(content)])
        + content
        + b"\0\x09\x01x"
        + b"\x0b" * 7
    )


def test_an_instruction_that_reaches_into_the_next_section_is_refused() -> None:
    with pytest.raises(ContentRejected, match="ends within an instruction"):
        list(_code(_in_module(b"\0\x41\x80")).read(0, _Every()))


def test_an_alignment_written_in_several_bytes_is_read() -> None:
    module = _in_module(b"\0\x41\0\x28\x82\0\0\x1a\x0b")  # i32.const 0, i32.load align=4, drop, end
    assert [code for code, _ in _code(module).read(0, _Every())] == [0x41, 0x28, 0x1A, 0x0B]
