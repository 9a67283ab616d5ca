"""TarReader, header by header: the kind and the end of each entry, and which archives are refused."""

import io
from typing import Any

import pytest

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm.decompression import FileSource, OutputLimit, Stream
from autowasm.wasm.tar import TarEntry, TarReader, is_header
from tests.unit.wasm.archives import END, header, padded


def reader(data: bytes, **limits: int) -> TarReader:
    found = Limits(**limits)
    return TarReader(Stream(FileSource(io.BytesIO(data), OutputLimit(found))), limits=found)


def entries(data: bytes, **limits: int) -> list[TarEntry]:
    tar, found = reader(data, **limits), []
    while (entry := tar.next()) is not None:
        found.append(entry)
    return found


def only(data: bytes, **limits: int) -> TarEntry:
    (entry,) = entries(data, **limits)
    return entry


def refusal(data: bytes, **limits: int) -> tuple[str | None, str]:
    with pytest.raises(ContentRejected) as caught:
        entries(data, **limits)
    return caught.value.reason, str(caught.value)


def extension(kind: bytes, data: bytes) -> bytes:
    return header(b"@", len(data), kind) + padded(data)


def pax(*records: bytes) -> bytes:
    return extension(b"x", b"".join(records))


FILE = header(b"plugin.wasm", 3) + padded(b"abc")
LINKS, FOLDERS, OTHERS = b"12346", b"5", b"89ABDEMNSVXYZagk"
"""Kinds of entries: links, devices and pipes; folders; what POSIX leaves to others."""


@pytest.mark.parametrize("kind", [b"0", b"\0", b"7"])
def test_regular_files_have_content(kind: bytes) -> None:
    data = header(b"a", 3, kind) + padded(b"abc")
    assert only(data) == TarEntry("a", 3, is_file=True)
    tar = reader(data)
    tar.next()
    assert (tar.read(10), tar.read(10)) == (b"abc", b"")


@pytest.mark.parametrize("kind", list(LINKS))
def test_links_and_devices_have_no_content_despite_their_size_field(kind: int) -> None:
    data = header(b"a", 3, bytes([kind])) + FILE
    first, second = entries(data)
    assert first == TarEntry("a", 0, is_file=False)
    assert second == TarEntry("plugin.wasm", 3, is_file=True)


def test_folders_have_no_content() -> None:
    first, second = entries(header(b"a", 3, b"5") + FILE)
    assert first == TarEntry("a", 0, is_file=False, is_folder=True)
    assert second.name == "plugin.wasm"


@pytest.mark.parametrize("kind", list(OTHERS.replace(b"g", b"")))
def test_content_of_unknown_kinds_is_passed_over(kind: int) -> None:
    first, second = entries(header(b"a", 3, bytes([kind])) + padded(b"abc") + FILE)
    assert first == TarEntry("a", 3, is_file=False)
    assert second == TarEntry("plugin.wasm", 3, is_file=True)


def test_old_regular_file_whose_name_ends_in_a_slash_is_a_folder() -> None:
    assert only(header(b"a/")) == TarEntry("a/", 0, is_file=False, is_folder=True)
    assert only(header(b"a/", 0, b"1")) == TarEntry("a/", 0, is_file=False, is_folder=False)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024, 70_000])
def test_content_ends_with_its_block(size: int) -> None:
    data = header(b"a", size) + padded(b"x" * size) + FILE
    assert [entry.size for entry in entries(data)] == [size, 3]
    tar = reader(data)
    tar.next()
    read = b"".join(iter(lambda: tar.read(100), b""))
    assert read == b"x" * size
    assert tar.next() == TarEntry("plugin.wasm", 3, is_file=True)
    assert tar.read(100) == b"abc"


def test_reading_some_of_the_content_leaves_the_next_entry_where_it_is() -> None:
    tar = reader(header(b"a", 600) + padded(b"x" * 600) + FILE)
    assert tar.read(10) == b"", "before the first entry"
    tar.next()
    assert (tar.read(0), tar.read(-1), tar.read(1)) == (b"", b"", b"x")
    assert tar.next() == TarEntry("plugin.wasm", 3, is_file=True)


@pytest.mark.parametrize("end", [b"", END, bytes(512), bytes(100)])
def test_archive_ends_with_a_block_of_zeros_or_none(end: bytes) -> None:
    assert entries(FILE + end) == [TarEntry("plugin.wasm", 3, is_file=True)]
    assert entries(FILE + bytes(512) + FILE)[1:] == []


def test_after_the_end_there_is_nothing_more() -> None:
    tar = reader(header(b"a", 600) + padded(b"x" * 600) + END)
    assert tar.next() is not None
    for _ in range(2):
        assert tar.next() is None
        assert tar.read(10) == b""


@pytest.mark.parametrize("byte", [1, ord(" "), ord("0"), ord("X"), 255])
def test_block_of_anything_but_zeros_is_no_end(byte: int) -> None:
    assert refusal(FILE + bytes([byte]) * 512)[0] == "ArchiveInvalid"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (header(b"a", 600) + b"x" * 599, "it ends within the entry a"),
        (header(b"a", 600) + b"x" * 600, "it ends within the entry a"),
        (FILE + b"x" * 511, "it ends within a header"),
        (FILE + b"x" * 512, "no tar header after the entry plugin.wasm (wrong checksum)"),
        (b"x" * 512, "no tar header after the first header (wrong checksum)"),
        (extension(b"L", b"name"), "it ends after an extension header"),
        (extension(b"g", b"") + END, "it ends after an extension header"),
        (header(b"@", 600, b"L") + b"x" * 599, "it ends within an extension header"),
        (header(b"@", 600, b"L") + b"x" * 600, "it ends within an extension header"),
        (header(b"a", 0, b"S", at_482=b"\1"), "it ends within the entry a"),
    ],
)
def test_archive_that_is_cut_off_says_where(data: bytes, problem: str) -> None:
    reason, message = refusal(data)
    assert reason == "ArchiveInvalid"
    assert f"the archive is malformed: {problem};" in message


def test_content_that_is_cut_off_says_so_when_it_is_read() -> None:
    tar = reader(header(b"a", 600) + b"x" * 100)
    tar.next()
    assert tar.read(600) == b"x" * 100
    with pytest.raises(ContentRejected, match="it ends within the entry a"):
        tar.read(600)


def test_entries_have_a_limit() -> None:
    assert len(entries(FILE * 3, archive_entries=3)) == 3
    reason, message = refusal(FILE * 4, archive_entries=3)
    assert reason == "ArchiveTooLarge"
    assert "more than 3 entries" in message


def test_four_extension_headers_may_stand_before_an_entry() -> None:
    each = extension(b"K", b"link")
    assert entries((each * 4 + FILE) * 2)[1].name == "plugin.wasm"
    assert refusal(each * 5 + FILE) == (
        "ArchiveInvalid",
        "the archive is malformed: more than four extension headers before one entry; "
        "pack and push it again",
    )


def test_size_that_is_claimed_has_a_limit() -> None:
    assert only(header(b"a", 100) + bytes(512), unpacked_bytes=100).size == 100
    reason, message = refusal(header(b"a", 101) + bytes(512), unpacked_bytes=100)
    assert reason == "ArchiveTooLarge"
    assert "the entry a of the archive claims 101 bytes; at most 100 are accepted" in message


def test_extension_headers_have_a_limit() -> None:
    for size in (100, 512, 600):
        data = extension(b"L", b"n" * size) + FILE
        assert only(data, archive_metadata_bytes=size).name == "n" * size
        reason, message = refusal(data, archive_metadata_bytes=size - 1)
        assert reason == "ArchiveTooLarge"
        assert f"claims {size} bytes; at most {size - 1} are accepted" in message


def test_long_name_is_the_name_of_the_next_entry_only() -> None:
    long = b"d/" * 100 + b"plugin.wasm"
    data = extension(b"L", long + b"\0rubbish") + FILE + FILE
    assert [entry.name for entry in entries(data)] == [long.decode(), "plugin.wasm"]


@pytest.mark.parametrize("kind", [b"K", b"g"])
def test_long_links_and_global_records_name_nothing(kind: bytes) -> None:
    assert only(extension(kind, b"13 path=other\n") + FILE).name == "plugin.wasm"


def test_name_that_is_too_long_is_cut_to_a_folder() -> None:
    data = extension(b"L", b"abc.wasm") + FILE
    assert only(data, archive_name_bytes=8) == TarEntry("abc.wasm", 3, is_file=True)
    cut = TarEntry("abc.was/", 3, is_file=False, is_folder=True)
    assert only(data, archive_name_bytes=7) == cut
    assert only(pax(b"17 path=abc.wasm\n") + FILE, archive_name_bytes=7) == cut


@pytest.mark.parametrize(
    ("records", "entry"),
    [
        ([b"15 path=x.wasm\n"], TarEntry("x.wasm", 3, is_file=True)),
        ([b"10 size=2\n"], TarEntry("plugin.wasm", 2, is_file=True)),
        ([b"15 path=x.wasm\n", b"10 size=1\n"], TarEntry("x.wasm", 1, is_file=True)),
        ([b"10 path=a\n", b"10 path=b\n"], TarEntry("b", 3, is_file=True)),
        ([b"10 path=a\n", b"8 path=\n"], TarEntry("plugin.wasm", 3, is_file=True)),
        ([b"10 size=1\n", b"8 size=\n"], TarEntry("plugin.wasm", 3, is_file=True)),
        ([b"10 path=a\n", b"8 size=\n"], TarEntry("a", 3, is_file=True)),
        ([b"10 size=1\n", b"8 path=\n"], TarEntry("plugin.wasm", 1, is_file=True)),
        ([b"12 path=a=b\n"], TarEntry("a=b", 3, is_file=True)),
        ([b"14 path=a b\nc\n"], TarEntry("a b\nc", 3, is_file=True)),
        ([b"000000019 path=abc\n"], TarEntry("abc", 3, is_file=True)),
        ([b"29 size=00000000000000000002\n"], TarEntry("plugin.wasm", 2, is_file=True)),
        ([b"4 a\n", b"5 a=\n", b"10 path=z\n"], TarEntry("z", 3, is_file=True)),
        ([b"22 GNU.sparse.major=1\n"], TarEntry("plugin.wasm", 3, is_file=False)),
        ([b"16 GNU.sparsee=\n"], TarEntry("plugin.wasm", 3, is_file=True)),
        ([b"11 paths=a\n", b"10 xath=b\n"], TarEntry("plugin.wasm", 3, is_file=True)),
        ([], TarEntry("plugin.wasm", 3, is_file=True)),
    ],
)
def test_pax_records_say_more_of_the_next_entry(records: list[bytes], entry: TarEntry) -> None:
    first, second = entries(pax(*records) + FILE + FILE)
    assert first == entry
    assert second == TarEntry("plugin.wasm", 3, is_file=True)


def test_size_in_pax_records_of_a_link_counts_nothing() -> None:
    first, second = entries(pax(b"10 size=9\n") + header(b"a", 0, b"2") + FILE)
    assert (first.size, second.name) == (0, "plugin.wasm")


def test_size_in_pax_records_has_the_limit_of_all_sizes() -> None:
    reason, _ = refusal(pax(b"12 size=101\n") + FILE, unpacked_bytes=100)
    assert reason == "ArchiveTooLarge"


@pytest.mark.parametrize(
    "record",
    [
        b"3 \n",
        b"2\n",
        b" a=\n",
        b"a=b\n",
        b"x a=\n",
        b"0000000020 path=abc\n",
        b"12 path=a\n",
        b"8 path=a\n",
        b"10 path=ab",
        b"99 path=a\n",
    ],
)
def test_pax_records_of_wrong_lengths_are_refused(record: bytes) -> None:
    for before in ((), (b"5 a=\n",)):
        reason, message = refusal(pax(*before, record) + FILE)
        assert reason == "ArchiveInvalid"
        assert "a pax header whose records have wrong lengths" in message


@pytest.mark.parametrize(
    "record", [b"11 size=-1\n", b"10 size=a\n", b"11 size=1 \n", b"30 size=000000000000000000002\n"]
)
def test_pax_size_that_is_no_number_is_refused(record: bytes) -> None:
    reason, message = refusal(pax(record) + FILE)
    assert (reason, "a pax header whose size is not a number" in message) == (
        "ArchiveInvalid",
        True,
    )


def test_pax_records_have_a_limit_for_the_archive() -> None:
    two = pax(b"5 a=\n", b"5 b=\n") + FILE
    assert len(entries(two + two, archive_pax_records=4)) == 2
    reason, message = refusal(two + two, archive_pax_records=3)
    assert reason == "ArchiveTooLarge"
    assert "more than 3 pax records" in message


def sparse(*flags: int) -> bytes:
    first, *others = (bytes([flag]) for flag in flags)
    maps = b"".join(bytes(504) + flag + bytes(7) for flag in others)
    return header(b"s", 3, b"S", at_482=first) + maps + padded(b"abc")


def test_maps_of_old_sparse_files_are_passed_over() -> None:
    for flags in ((0,), (1, 0), (1, 1, 0), (255, 0)):
        first, second = entries(sparse(*flags) + FILE)
        assert first == TarEntry("s", 3, is_file=False)
        assert second == TarEntry("plugin.wasm", 3, is_file=True)


def test_maps_of_sparse_files_have_a_limit() -> None:
    assert len(entries(sparse(1, 0) + FILE, archive_entries=2)) == 2
    reason, message = refusal(sparse(1, 1, 0) + FILE, archive_entries=2)
    assert reason == "ArchiveInvalid"
    assert "the entry s has an endless sparse map" in message


@pytest.mark.parametrize(
    ("field", "size"),
    [
        (b"00000000003\0", 3),
        (b"          3 ", 3),
        (b"3\0rubbish!!!", 3),
        (b"3 \0rubbish!!", 3),
        (b"\0\0\0\0\0\0\0\0\0\0\0" + b"3", 3),
        (bytes(12), 0),
        (b" " * 12, 0),
        (b"00000000017\0", 15),
        (b"\x80" + bytes(10) + b"\3", 3),
        (b"\x80" + bytes(9) + b"\1\0", 256),
    ],
)
def test_numbers_are_octal_or_of_gnu_s_base_256(field: bytes, size: int) -> None:
    assert only(header(b"a", field) + bytes(512)).size == size


@pytest.mark.parametrize(
    "field", [b"00000000008\0", b"00000000009\0", b"0000000000x\0", b"-0000000001\0", b"\xff" * 12]
)
def test_numbers_that_are_none_are_refused(field: bytes) -> None:
    reason, message = refusal(header(b"a", field) + bytes(512))
    assert reason == "ArchiveInvalid"
    assert "a header with an invalid or negative number" in message


@pytest.mark.parametrize("field", [b"\xc0" + bytes(11), b"\xff" * 11 + b"\x01"])
def test_negative_numbers_of_base_256_are_refused(field: bytes) -> None:
    assert refusal(header(b"a", field) + bytes(512))[0] == "ArchiveInvalid"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"at_345": b"folder"}, "folder/a"),
        ({"at_345": b"f" * 155}, "f" * 155 + "/a"),
        ({"at_345": b"f\0g"}, "f/a"),
        ({"at_345": b"f" * 160}, "f" * 155 + "/a"),
        ({}, "a"),
        ({"at_345": b"folder", "at_257": b"ustar  \0"}, "a"),
        ({"at_345": b"folder", "at_257": bytes(8)}, "a"),
    ],
)
def test_posix_archives_have_a_prefix_of_the_name(fields: dict[str, Any], name: str) -> None:
    assert only(header(b"a", **fields)).name == name


def test_name_takes_all_its_100_bytes_and_ends_before_a_zero() -> None:
    assert only(header(b"n" * 100, at_100=b"0000644\0")).name == "n" * 100
    assert only(header(b"a\0b")).name == "a"
    assert only(header(b"\xff.wasm")).name == "\\xff.wasm"


def signed(block: bytes) -> bytes:
    """The same header with the checksum of old Sun tars."""
    found = bytearray(block)
    found[148:156] = b" " * 8
    total = sum(byte - 256 if byte > 127 else byte for byte in found)
    found[148:156] = f"{total:06o}\0 ".encode()
    return bytes(found)


def test_header_is_recognized_by_its_checksum() -> None:
    good = header(b"a", 3)
    assert is_header(good)
    assert is_header(good + b"more")
    assert not is_header(good[:-1])
    assert not is_header(bytes(512))
    for offset in (0, 147, 156, 511):
        bad = bytearray(good)
        bad[offset] ^= 1
        assert not is_header(bytes(bad)), offset
    assert not is_header(good[:148] + b"no digit" + good[156:])


@pytest.mark.parametrize(
    "form", ["{:06o}\0 ", "{:07o}\0", "{:08o}", "{:6o}\0 ", "{:o}\0\0\0\0", "  {:o}"]
)
def test_checksum_may_be_written_in_every_form_that_tars_use(form: str) -> None:
    block = bytearray(header(b"a", at_136=b"7" * 12))
    block[148:156] = b" " * 8
    block[148:156] = form.format(sum(block)).encode().ljust(8, b"\0")[:8]
    assert is_header(bytes(block))


@pytest.mark.parametrize("first", [0x80, 0x81, 0xBF])
def test_numbers_of_base_256_that_are_too_large_are_refused_as_such(first: int) -> None:
    field = bytes([first]) + b"\1" + bytes(10)
    assert refusal(header(b"a", field))[0] == "ArchiveTooLarge"


@pytest.mark.parametrize("name", [b"\xff", b"\x80\x7f", b"\xc3\xa4\x81"])
def test_checksum_may_be_of_signed_bytes(name: bytes) -> None:
    good = header(name)
    assert is_header(good)
    assert signed(good) != good
    assert is_header(signed(good))
    assert only(signed(good)).name == only(good).name
