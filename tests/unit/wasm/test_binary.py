import re

import pytest

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm import binary
from autowasm.wasm.binary import (
    CUSTOM,
    EXPORT,
    IMPORT,
    BinaryReader,
    Section,
    check_header,
    guess,
    sections,
)
from autowasm.wasm.sections import read_exports

HEADER = b"\0asm\x01\0\0\0"
LARGEST_U32 = b"\xff\xff\xff\xff\x0f"


def reader(data: bytes, *, begin: int = 0) -> BinaryReader:
    """Of `data`, which lies behind `begin` bytes and before others: a reader must not see either."""
    return BinaryReader(b"\x7f" * begin + data + b"\x7f" * 20, begin, begin + len(data))


def walk(data: bytes, *, most: int = 100) -> list[Section]:
    check_header(data)
    return list(sections(data, most=most))


def malformed(problem: str, *, at: int) -> str:
    return f"the module is malformed: {problem} (at byte {at}); build it again"


def cut_off(what: str, *, size: int, needed: int) -> str:
    return (
        f"the module is truncated: it has {size} bytes, but {what} extends to byte {needed}; "
        "upload it again"
    )


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"\0", 0),
        (b"\x7f", 127),
        (b"\x80\x01", 128),
        (b"\x81\x82\x03", 0xC101),
        (LARGEST_U32, 2**32 - 1),
    ],
)
def test_reads_unsigned_integers(data: bytes, value: int) -> None:
    for read in (BinaryReader.u32, BinaryReader.u64):
        found = reader(data, begin=3)
        assert read(found) == value
        assert (found.position, found.done) == (3 + len(data), True)


def test_accepts_an_integer_with_leading_zeros_up_to_the_longest_form() -> None:
    assert reader(b"\x83\x80\x80\x80\x00").u32() == 3
    assert reader(b"\x83" + b"\x80" * 8 + b"\0").u64() == 3


def test_reads_integers_of_64_bits() -> None:
    assert reader(b"\xff" * 9 + b"\x01").u64() == 2**64 - 1
    assert reader(b"\x80" * 4 + b"\x10").u64() == 2**32


@pytest.mark.parametrize(
    ("data", "bits", "problem"),
    [
        (b"\x80\x80\x80\x80\x10", 32, "an integer larger than 32 bits"),
        (b"\xff\xff\xff\xff\x1f", 32, "an integer larger than 32 bits"),
        (b"\x80\x80\x80\x80\x80\x00", 32, "an integer longer than 32 bits"),
        (b"\x80" * 100, 32, "an integer longer than 32 bits"),
        (b"\x80" * 9 + b"\x02", 64, "an integer larger than 64 bits"),
        (b"\x80" * 10 + b"\x00", 64, "an integer longer than 64 bits"),
    ],
)
def test_refuses_integers_that_overflow_or_never_end(data: bytes, bits: int, problem: str) -> None:
    found = reader(data, begin=7)
    with pytest.raises(ContentRejected) as caught:
        _ = found.u32() if bits == 32 else found.u64()
    assert caught.value.reason == "WasmInvalid"
    assert str(caught.value) == malformed(problem, at=7)


@pytest.mark.parametrize("data", [b"\x80", b"\x80\x80", b""])
def test_an_integer_or_a_byte_is_not_read_beyond_the_end(data: bytes) -> None:
    expected = malformed("unexpected end of a section", at=5 + len(data))
    for read in (BinaryReader.u32, BinaryReader.u64, BinaryReader.skip_s33):
        with pytest.raises(ContentRejected) as caught:
            read(reader(data, begin=5))
        assert (caught.value.reason, str(caught.value)) == ("WasmInvalid", expected)


def test_bytes_are_read_up_to_the_end_and_no_further() -> None:
    found = reader(b"ab", begin=1)
    assert [found.byte(), found.done, found.byte(), found.done] == [ord("a"), False, ord("b"), True]
    with pytest.raises(ContentRejected) as caught:
        found.byte()
    assert str(caught.value) == malformed("unexpected end of a section", at=3)


def test_bytes_are_passed_over_up_to_the_end_and_no_further() -> None:
    found = reader(b"abcd", begin=2)
    found.skip(1)
    assert (found.byte(), found.position) == (ord("b"), 4)
    with pytest.raises(ContentRejected) as caught:
        found.skip(3)
    assert caught.value.reason == "WasmInvalid"
    assert str(caught.value) == malformed("unexpected end of a section", at=4)
    assert found.position == 4
    found.skip(2)
    assert found.done
    found.skip(0)


def test_reads_a_name_and_stops_behind_it() -> None:
    found = reader(b"\x03\xc3\xa9x!", begin=4)
    assert found.name(most=3) == "éx"
    assert found.byte() == ord("!")
    assert reader(b"\0", begin=4).name(most=0) == ""


def test_refuses_a_name_that_is_not_utf8() -> None:
    with pytest.raises(ContentRejected) as caught:
        reader(b"\x02\xff\xfe", begin=3).name(most=10)
    assert caught.value.reason == "WasmInvalid"
    assert str(caught.value) == malformed("a name that is not UTF-8", at=3)


def test_a_long_name_is_refused_and_shown_in_part() -> None:
    name = b"0123456789" * 200
    data = b"\xd0\x0f" + name
    assert reader(data, begin=3).name(most=2000) == name.decode()
    with pytest.raises(ContentRejected) as caught:
        reader(data, begin=3).name(most=1999)
    assert caught.value.reason == "TooLarge"
    assert str(caught.value) == (
        "the module has an import or export name of 2000 bytes "
        f"({name[:40].decode()}); at most 1999 are accepted"
    )


@pytest.mark.parametrize("length", [b"\x04", LARGEST_U32])
def test_a_name_that_claims_more_than_there_is_takes_no_memory(length: bytes) -> None:
    with pytest.raises(ContentRejected) as caught:
        reader(length + b"abc", begin=6).name(most=2**40)
    assert caught.value.reason == "WasmInvalid"
    assert str(caught.value) == malformed("a name longer than its section", at=6)


NO_MODULE = "this is not a WebAssembly module: it begins with the bytes "
COMPONENT = (
    "this is a WebAssembly component, but Envoy runs only core modules: build for wasm32-wasip1 "
    "(or wasm32-unknown-unknown), without wit-component, cargo-component or `componentize`"
)


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        (b"", "NotWasm", "the module is empty (0 bytes)"),
        (b"\0", "Truncated", cut_off("its header", size=1, needed=8)),
        (b"\0as", "Truncated", cut_off("its header", size=3, needed=8)),
        (HEADER[:4], "Truncated", cut_off("its header", size=4, needed=8)),
        (HEADER[:7], "Truncated", cut_off("its header", size=7, needed=8)),
        (b"\0asx", "NotWasm", f"{NO_MODULE}00 61 73 78"),
        (b"asm\x01\0\0\0\0", "NotWasm", f"{NO_MODULE}61 73 6d 01 00 00 00 00"),
        (b"\0asm\x0d\0\x01\0", "WasmComponent", COMPONENT),
        (b"\0asm\x0d\0\x01\0and more", "WasmComponent", COMPONENT),
        (
            b"\0asm\x02\0\0\0",
            "WasmInvalid",
            malformed("binary format version 2; only version 1 is supported", at=4),
        ),
        (
            b"\0asm\x01\x01\0\0",
            "WasmInvalid",
            malformed("binary format version 257; only version 1 is supported", at=4),
        ),
        (
            b"\0asm\x01\0\0\x01",
            "WasmInvalid",
            malformed("binary format version 16777217; only version 1 is supported", at=4),
        ),
    ],
)
def test_a_header_that_is_not_a_modules_is_refused(data: bytes, reason: str, message: str) -> None:
    with pytest.raises(ContentRejected) as caught:
        check_header(data)
    assert (caught.value.reason, str(caught.value)) == (reason, message)


def test_the_shortest_module_is_a_header() -> None:
    assert walk(HEADER) == []


TYPE_SECTION = "its type section"


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (b"\x01", "Truncated", cut_off(TYPE_SECTION, size=9, needed=10)),
        (b"\x01\x03", "Truncated", cut_off(TYPE_SECTION, size=10, needed=13)),
        (b"\x01\x80", "Truncated", cut_off(TYPE_SECTION, size=10, needed=11)),
        (b"\x01\x80\x80\x80\x80", "Truncated", cut_off(TYPE_SECTION, size=13, needed=14)),
        (b"\x01" + b"\x80" * 5, "WasmInvalid", malformed("an integer longer than 32 bits", at=9)),
        (b"\x01\x05ab", "Truncated", cut_off(TYPE_SECTION, size=12, needed=15)),
        (b"\x01\x05abcd", "Truncated", cut_off(TYPE_SECTION, size=14, needed=15)),
        (b"\x01\0\x0e\0", "WasmInvalid", malformed("unknown section 14", at=10)),
        (b"\x20\0", "WasmInvalid", malformed("unknown section 32", at=8)),
        (b"\0\0", "WasmInvalid", malformed("unexpected end of a section", at=10)),
        (
            b"\0\x02\x02ab",
            "WasmInvalid",
            malformed("a custom section whose name is longer than the section", at=10),
        ),
        (
            b"\0\x02\x09a",
            "WasmInvalid",
            malformed("a custom section whose name is longer than the section", at=10),
        ),
    ],
)
def test_sections_that_are_damaged_are_refused(content: bytes, reason: str, message: str) -> None:
    found: list[Section] = []
    with pytest.raises(ContentRejected) as caught:
        found.extend(sections(HEADER + content, most=100))
    assert (caught.value.reason, str(caught.value)) == (reason, message)
    assert len(found) == (1 if content.startswith(b"\x01\0") else 0)


# Specification 5.5.2, and the exception handling proposal for the tag section.
SECTIONS = {
    **{0: "custom", 1: "type", 2: "import", 3: "function", 4: "table", 5: "memory", 6: "global"},
    **{7: "export", 8: "start", 9: "element", 10: "code", 11: "data", 12: "data count", 13: "tag"},
}


@pytest.mark.parametrize(("number", "name"), SECTIONS.items())
def test_every_section_of_the_specification_is_known_by_its_number(number: int, name: str) -> None:
    with pytest.raises(ContentRejected) as caught:
        walk(HEADER + bytes([number, 2, 1]))
    assert str(caught.value) == cut_off(f"its {name} section", size=11, needed=12)
    if number not in (8, 12, 13):  # these are not read
        assert getattr(binary, name.upper()) == number


def test_sections_are_found_where_they_are() -> None:
    data = HEADER + b"\x01\x02ab" + b"\x03\0" + b"\x0d\x01c" + b"\x0a\x83\x80\0xyz"
    found = walk(data)
    assert found == [
        Section(1, 10, 12),
        Section(3, 14, 14),
        Section(13, 16, 17),
        Section(10, 21, 24),
    ]
    assert [each.name for each in found] == [b""] * 4
    read = found[0].reader(data)
    assert (read.byte(), read.byte(), read.done) == (ord("a"), ord("b"), True)


def test_sections_are_counted_up_to_a_limit() -> None:
    data = HEADER + b"\x01\0" * 3
    assert len(walk(data, most=3)) == 3
    with pytest.raises(ContentRejected) as caught:
        walk(data, most=2)
    assert caught.value.reason == "TooLarge"
    assert str(caught.value) == (
        "the module has too many sections: remove the custom ones with wasm-strip"
    )


@pytest.mark.parametrize("length", [0, 4, 64])
def test_a_custom_section_has_a_name_and_then_its_content(length: int) -> None:
    name = b"n" * length
    data = HEADER + b"\x01\0" + bytes([0, length + 2, length]) + name + b"X"
    assert walk(data)[1:] == [Section(CUSTOM, 13 + length, 14 + length, name)]


def test_of_a_long_name_of_a_custom_section_only_the_beginning_is_kept() -> None:
    name = b"n" * 64 + b"o"
    data = HEADER + bytes([0, 67, 65]) + name + b"X"
    (found,) = walk(data)
    assert found == Section(CUSTOM, 76, 77, name[:64])
    assert found.reader(data).byte() == ord("X")


def test_walks_sections_without_reading_their_content(hello: bytes) -> None:
    found = walk(hello + b"\0\x06\x04nameX")
    assert {IMPORT, EXPORT} <= {each.id for each in found}
    assert (found[-1].id, found[-1].name) == (CUSTOM, b"name")
    assert found[-1].reader(hello + b"\0\x06\x04nameX").byte() == ord("X")


HTML = "it is an HTML page, such as an error or login page"
JSON = "it looks like JSON"
TEXT = "it is WebAssembly text; compile it with wat2wasm"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html><html>", HTML),
        (b"\r\n <HTML>", HTML),
        (b'{"errors":[]}', JSON),
        (b" [1]", JSON),
        (b" " * 63 + b"{", JSON),
        (b" " * 64 + b"{", "it begins with the bytes 20 20 20 20 20 20 20 20"),
        (b"(module)", TEXT),
        (b"\n;; a filter\n(module)", TEXT),
        (b"\x1f\x8b\x08", "it is gzip data"),
        (b"\x28\xb5\x2f\xfd\0", "it is zstd data"),
        (b"PK\x03\x04", "it is a zip archive; pack it as tar.gz or not at all"),
        (b"\xfd7zXZ\0", "it is xz data; pack it with gzip or not at all"),
        (b"BZh9", "it is bzip2 data; pack it with gzip or not at all"),
        (b"\x7fELF\x02\x01\x01\0", "it is a native program (ELF); build for wasm32-wasip1"),
        (b"PK\x03", "it begins with the bytes 50 4b 03"),
        (b"\xde\xad\xbe\xef" * 3, "it begins with the bytes de ad be ef de ad be ef"),
    ],
)
def test_rejection_names_the_detected_format(data: bytes, words: str) -> None:
    assert guess(data) == words
    with pytest.raises(ContentRejected) as caught:
        check_header(data)
    assert caught.value.reason == "NotWasm"
    assert str(caught.value) == f"this is not a WebAssembly module: {words}"


@pytest.mark.parametrize("begin", [0, 9])
def test_a_heap_type_has_at_most_33_bits(begin: int) -> None:
    whole = reader(b"\xff\xff\xff\xff\x0f\x01", begin=begin)
    whole.skip_s33()
    assert whole.position == begin + 5
    short = reader(b"\x70\x01", begin=begin)
    short.skip_s33()
    assert short.position == begin + 1
    with pytest.raises(ContentRejected) as caught:
        reader(b"\x80\x80\x80\x80\x80\0", begin=begin).skip_s33()
    assert caught.value.reason == "WasmInvalid"
    assert str(caught.value) == malformed("an integer longer than 33 bits", at=begin)


def test_more_parts_of_a_kind_than_are_read_are_refused_with_the_limit() -> None:
    error = binary.too_many("types", 11, 10)
    assert error.reason == "TooLarge"
    assert str(error) == "the module has 11 or more types; at most 10 are accepted"


def test_an_export_of_an_unknown_kind_is_refused() -> None:
    message = malformed("unknown import or export kind 5", at=3)
    with pytest.raises(ContentRejected, match=re.escape(message)):
        read_exports(reader(b"\x01\x01a\x05\0"), limits=Limits())
