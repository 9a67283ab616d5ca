import pytest

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm.binary import CUSTOM, EXPORT, IMPORT, Reader, check_header, sections
from autowasm.wasm.sections import read_exports

HEADER = b"\0asm\x01\0\0\0"


def reader(data: bytes) -> Reader:
    return Reader(data, 0, len(data))


def reason_of(data: bytes) -> str:
    with pytest.raises(ContentRejected) as caught:
        walk(data)
    return caught.value.reason


def walk(data: bytes) -> None:
    check_header(data)
    list(sections(data, most=100))


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"\0", 0), (b"\x7f", 127), (b"\x80\x01", 128), (b"\xff\xff\xff\xff\x0f", 2**32 - 1)],
)
def test_reads_unsigned_integers(data: bytes, value: int) -> None:
    assert reader(data).u32() == value


def test_accepts_an_integer_with_leading_zeros_up_to_five_bytes() -> None:
    assert reader(b"\x83\x80\x80\x80\x00").u32() == 3


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff\x1f", b"\x80\x80\x80\x80\x80\x00", b"\x80" * 100, b"\x80", b""],
)
def test_refuses_integers_that_overflow_or_never_end(data: bytes) -> None:
    with pytest.raises(ContentRejected) as caught:
        reader(data).u32()
    assert caught.value.reason == "WasmInvalid"


def test_refuses_a_name_that_is_not_utf8() -> None:
    with pytest.raises(ContentRejected, match="UTF-8"):
        reader(b"\x02\xff\xfe").name(most=10)


def test_a_long_name_is_refused_and_shown_in_part() -> None:
    with pytest.raises(ContentRejected, match=r"2000 bytes \(xxxx") as caught:
        reader(b"\xd0\x0f" + b"x" * 2000).name(most=1024)
    assert caught.value.reason == "TooLarge"


def test_a_name_that_claims_more_than_there_is_takes_no_memory() -> None:
    with pytest.raises(ContentRejected, match="longer than its section"):
        reader(b"\xff\xff\xff\xff\x0fabc").name(most=2**40)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "NotWasm"),
        (b"\0as", "Truncated"),
        (HEADER[:7], "Truncated"),
        (b"<!DOCTYPE html><html>", "NotWasm"),
        (b"\x7fELF\x02\x01\x01\0", "NotWasm"),
        (b"\0asm\x0d\0\x01\0", "WasmComponent"),
        (b"\0asm\x02\0\0\0", "WasmInvalid"),
        (HEADER + b"\x01", "Truncated"),
        (HEADER + b"\x01\x80", "Truncated"),
        (HEADER + b"\x01\x05ab", "Truncated"),
        (HEADER + b"\x20\0", "WasmInvalid"),
        (HEADER + b"\0\0", "WasmInvalid"),
        (HEADER + b"\0\x02\x09a", "WasmInvalid"),
    ],
)
def test_header_and_sections_say_what_is_wrong(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<html>", "HTML"),
        (b'{"errors":[]}', "JSON"),
        (b"PK\x03\x04", "zip"),
        (b"(module)", "wat2wasm"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\xde\xad\xbe\xef", "de ad be ef"),
    ],
)
def test_says_what_the_bytes_look_like(data: bytes, words: str) -> None:
    with pytest.raises(ContentRejected, match=words):
        check_header(data)


def test_a_cut_off_module_is_told_where_it_should_end() -> None:
    with pytest.raises(ContentRejected, match=r"it has 12 bytes.*its type section.*byte 15"):
        list(sections(HEADER + b"\x01\x05ab", most=100))


def test_walks_sections_without_reading_their_content(hello: bytes) -> None:
    found = list(sections(hello + b"\0\x06\x04nameX", most=100))
    assert {IMPORT, EXPORT} <= {each.id for each in found}
    assert (found[-1].id, found[-1].name) == (CUSTOM, b"name")
    assert found[-1].reader(hello + b"\0\x06\x04nameX").byte() == ord("X")


def test_a_heap_type_has_at_most_33_bits() -> None:
    whole = reader(b"\xff\xff\xff\xff\x0f\x01")
    whole.skip_s33()
    assert whole.position == 5
    with pytest.raises(ContentRejected, match="longer than 33 bits"):
        reader(b"\x80\x80\x80\x80\x80\0").skip_s33()


def test_an_export_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ContentRejected, match="unknown kind 5 of import or export"):
        read_exports(reader(b"\x01\x01a\x05\0"), limits=Limits())
