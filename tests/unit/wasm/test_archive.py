import functools
import gzip
import os
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from autowasm.errors import ContentRejected, StorageError
from autowasm.limits import MIB, Limits
from autowasm.wasm.archive import (
    choose_member,
    extract_member,
    extract_module,
)
from autowasm.wasm.imagelayer import read_layer
from tests.unit.wasm.archives import END, gz, header, padded, tar, zst

WASM = b"\0asm\x01\0\0\0" + b"\0\x05\x04junk" * 20


class Extraction:
    """Runs extract_module on bytes."""

    def __init__(self, directory: Path) -> None:
        self.source = directory / "source"
        self.destination = directory / "destination"

    def __call__(self, data: bytes, packing: str = "detect", **limits: int) -> tuple[str, bytes]:
        self.source.write_bytes(data)
        name = extract_module(
            self.source, self.destination, packing=packing, limits=Limits(**limits)
        )
        return name, self.destination.read_bytes()

    def refusal(self, data: bytes, packing: str = "detect", **limits: int) -> ContentRejected:
        with pytest.raises(ContentRejected) as caught:
            self(data, packing, **limits)
        return caught.value


@pytest.fixture
def extract(tmp_path: Path) -> Extraction:
    return Extraction(tmp_path)


PACKED = {
    "raw": WASM,
    "gzip": gz(WASM),
    "zstd": zst(WASM),
    "tar": tar({"plugin.wasm": WASM}),
    "tar.gz": gz(tar({"plugin.wasm": WASM})),
    "tar.zst": zst(tar({"plugin.wasm": WASM})),
    "gz in tar": tar({"plugin.wasm": gz(WASM)}),
    "gz in tar in gz": gz(tar({"plugin.wasm": gz(WASM)})),
}


@pytest.mark.parametrize("data", PACKED.values(), ids=PACKED.keys())
def test_detects_every_packing(extract: Extraction, data: bytes) -> None:
    assert extract(data)[1] == WASM


@pytest.mark.parametrize("packing", ["tar", "tar+gzip", "tar+zstd"])
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.zst"])
def test_a_layer_with_the_wrong_media_type_is_read_all_the_same(
    extract: Extraction, packing: str, kind: str
) -> None:
    assert extract(PACKED[kind], packing) == ("plugin.wasm", WASM)


def test_raw_is_copied_without_a_look(extract: Extraction) -> None:
    assert extract(gz(WASM), "raw") == ("", gz(WASM))


def test_an_archive_deeper_than_anyone_packs_is_refused(extract: Extraction) -> None:
    assert "3 deep" in str(extract.refusal(gz(gz(gz(gz(WASM))))))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["README.md", "plugin.wasm"], "plugin.wasm"),
        (["./plugin.wasm"], "./plugin.wasm"),
        (["/plugin.wasm"], "/plugin.wasm"),
        (["some/where/plugin.wasm"], "some/where/plugin.wasm"),
        (["a.wasm", "filter.wasm", "x/plugin.wasm"], "x/plugin.wasm"),
        (["a.wasm", "filter.wasm"], "filter.wasm"),
        (["x/plugin.wasm", "plugin.wasm"], "plugin.wasm"),
        (["doc.txt", "only.wasm"], "only.wasm"),
        (["._plugin.wasm", "plugin.wasm"], "plugin.wasm"),
        ([".wh.other.wasm", "my.wasm"], "my.wasm"),
        (["../../etc/plugin.wasm"], "../../etc/plugin.wasm"),
    ],
)
def test_the_member_is_chosen_by_name(extract: Extraction, names: list[str], chosen: str) -> None:
    files = {name: WASM if name == chosen else b"other" for name in names}
    assert extract(tar(files), "tar") == (chosen, WASM)


def test_nothing_but_the_destination_is_written(extract: Extraction, tmp_path: Path) -> None:
    extract(tar({"../plugin.wasm": WASM, "/tmp/x.txt": b""}), "tar")
    assert {each.name for each in tmp_path.iterdir()} == {"source", "destination"}


def test_of_one_path_written_twice_the_last_stands(extract: Extraction) -> None:
    data = tar({"plugin.wasm": b"old"})[:1024] + tar({"./plugin.wasm": WASM})
    assert extract(data, "tar")[1] == WASM


def test_several_modules_are_named(extract: Extraction) -> None:
    error = extract.refusal(tar({"a.wasm": WASM, "b.wasm": WASM}), "tar")
    assert error.reason == "AmbiguousModule"
    assert "(a.wasm, b.wasm)" in str(error)


def test_archive_without_a_module_is_rejected_with_its_contents(extract: Extraction) -> None:
    error = extract.refusal(gz(tar({"main.go": b"x", "go.mod": b"y"})))
    assert error.reason == "ModuleNotFoundInArchive"
    assert "it holds main.go, go.mod" in str(error)


def test_a_web_page_is_called_one(extract: Extraction) -> None:
    error = extract.refusal(b"<!doctype html><p>Sign in")
    assert error.reason == "NotWasm"
    assert "HTML" in str(error)


@pytest.mark.parametrize("data", [b"", gz(b"")])
def test_nothing_is_not_a_module(extract: Extraction, data: bytes) -> None:
    error = extract.refusal(data)
    assert error.reason == "NotWasm"
    assert "empty" in str(error)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_every_dialect(extract: Extraction, format: int) -> None:
    name = "/".join(["d" * 60] * 3) + "/plugin.wasm"
    assert extract(tar({name: WASM}, format=format), "tar") == (name, WASM)


def test_names_that_are_not_unicode_are_text_all_the_same(extract: Extraction) -> None:
    data = header(b"\xff\xfe/plugin.wasm", len(WASM)) + padded(WASM) + END
    assert extract(data, "tar") == ("\\xff\\xfe/plugin.wasm", WASM)


def test_links_and_devices_are_no_modules(extract: Extraction) -> None:
    kinds = [b"1", b"2", b"3", b"4", b"5", b"6"]
    data = b"".join(header(b"plugin.wasm", 4096, kind) for kind in kinds)
    assert extract.refusal(data + END, "tar").reason == "ModuleNotFoundInArchive"
    real = header(b"x.wasm", len(WASM)) + padded(WASM)
    assert extract(data + real + END, "tar") == ("x.wasm", WASM)


def test_sparse_files_are_passed_over(extract: Extraction) -> None:
    sparse = header(b"plugin.wasm", 512, b"S", at_482=b"\x01")
    sparse += bytes(504) + b"\x01" + bytes(7) + bytes(512) + bytes(512)
    pax = b"22 GNU.sparse.major=1\n"
    sparse += header(b"pax", len(pax), b"x") + padded(pax) + header(b"plugin.wasm")
    real = header(b"x.wasm", len(WASM)) + padded(WASM)
    assert extract(sparse + real + END, "tar") == ("x.wasm", WASM)


def test_an_empty_pax_value_takes_back_an_earlier_one(extract: Extraction) -> None:
    pax = b"9 path=x\n" + b"8 path=\n" + b"9 size=7\n" + b"8 size=\n"
    data = header(b"pax", len(pax), b"x") + padded(pax) + header(b"plugin.wasm", len(WASM))
    assert extract(data + padded(WASM) + END, "tar") == ("plugin.wasm", WASM)


def test_an_archive_may_end_without_the_final_zeros(extract: Extraction) -> None:
    assert extract(header(b"plugin.wasm", len(WASM)) + padded(WASM), "tar")[1] == WASM


def test_bytes_after_the_end_of_a_tar_are_ignored(extract: Extraction) -> None:
    assert extract(tar({"plugin.wasm": WASM}) + b"garbage" * 100, "tar")[1] == WASM


def test_gzip_members_and_zero_padding_follow_each_other(extract: Extraction) -> None:
    data = gz(WASM[:10]) + gz(b"") + gz(WASM[10:]) + bytes(700)
    assert extract(data)[1] == WASM


def test_zstd_frames_and_skippable_frames_follow_each_other(extract: Extraction) -> None:
    skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    assert extract(skippable + zst(WASM[:10]) + skippable + zst(WASM[10:]))[1] == WASM


@pytest.mark.parametrize(
    "data",
    [
        gz(WASM) + b"garbage",
        gz(WASM)[:-1],
        gz(WASM)[:-9],
        gz(os.urandom(200_000))[:150_000],
        gz(WASM)[:-8] + bytes(8),
        b"\x1f\x8b\x08",
    ],
    ids=["garbage after", "no trailer", "cut", "cut in the middle", "wrong checksum", "header"],
)
def test_damaged_gzip_is_refused(extract: Extraction, data: bytes) -> None:
    error = extract.refusal(gz(data) if data[:4] == b"\0asm" else data)
    assert error.reason in ("ArchiveInvalid", "NotWasm")
    assert error.reason == "ArchiveInvalid" or len(data) > 100_000


def test_gzip_output_that_ends_exactly_at_a_chunk_is_whole(extract: Extraction) -> None:
    for size in (65_536, 131_072, 65_535, 65_537):
        content = (WASM * (size // len(WASM) + 1))[:size]
        assert extract(gz(content))[1] == content


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header(b"plugin.wasm", 1000) + WASM, "ArchiveInvalid"),
        (header(b"plugin.wasm", 8)[:300], "ArchiveInvalid"),
        (header(b"plugin.wasm", 0) + b"x" * 512, "ArchiveInvalid"),
        (header(b"plugin.wasm", b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7), "ArchiveTooLarge"),
        (header(b"plugin.wasm", b"\xff" * 12), "ArchiveInvalid"),
        (header(b"plugin.wasm", b"-0000000001\0"), "ArchiveInvalid"),
        (header(b"plugin.wasm", b"99999999999\0"), "ArchiveInvalid"),
        (header(b"x", 2 * MIB, b"x") + bytes(2 * MIB), "ArchiveTooLarge"),
        (header(b"x", b"\x80" + b"\xff" * 11, b"L"), "ArchiveTooLarge"),
        (header(b"x", b"\xff" * 12, b"x"), "ArchiveInvalid"),
        (header(b"x", 0, b"x") * 10 + header(b"plugin.wasm"), "ArchiveInvalid"),
        (header(b"x", 10, b"x") + padded(b"999 path=a\n"[:10]), "ArchiveInvalid"),
        (header(b"x", 10, b"x") + padded(b"-9 path=a\n"), "ArchiveInvalid"),
        (header(b"x", 10, b"x") + padded(b"0 path=ab\n"), "ArchiveInvalid"),
        (header(b"x", 12, b"x") + padded(b"12 size=-10\n"), "ArchiveInvalid"),
        (header(b"x", 12, b"x") + padded(b"12 path=abc\n"), "ArchiveInvalid"),
        (header(b"s", 0, b"S", at_482=b"\1") + (bytes(504) + b"\1" + bytes(7)) * 20_000, "ArchiveInvalid"),
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused(extract: Extraction, data: bytes, reason: str) -> None:
    assert extract.refusal(data, "tar").reason == reason


def test_a_name_longer_than_a_path_is_no_module(extract: Extraction) -> None:
    name = b"d/" * 5000 + b"plugin.wasm"
    data = header(b"@", len(name), b"L") + padded(name) + header(b"@", 3) + padded(b"abc") + END
    assert extract.refusal(data, "tar").reason == "ModuleNotFoundInArchive"


def test_more_entries_than_the_limit_are_not_read(extract: Extraction) -> None:
    data = gz(header(b"x") * (Limits().archive_entries + 1))
    assert extract.refusal(data, "tar").reason == "ArchiveTooLarge"


def test_pax_records_are_counted_over_the_whole_archive(extract: Extraction) -> None:
    records = b"5 a=\n" * 10_000
    data = (header(b"x", len(records), b"x") + padded(records) + header(b"y")) * 11
    error = extract.refusal(data, "tar")
    assert error.reason == "ArchiveTooLarge"
    assert "pax records" in str(error)


@functools.cache
def bomb_of_zeros(size: int) -> bytes:
    """One gzip member. Between full flushes every MiB of zeros is packed into the same bytes, so one is packed."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = squeeze.compress(bytes(MIB)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    trailer = struct.pack("<II", zlib.crc32(bytes(size)), size)
    head = b"\x1f\x8b\x08\0\0\0\0\0\x02\xff"
    return head + packed * (size // MIB) + squeeze.flush() + trailer


# As a tar, zeros are an archive without entries.
_ENDS_OF_A_BOMB = ("ArchiveTooLarge", "ArchiveInvalid", "NotWasm", "ModuleNotFoundInArchive")


@pytest.mark.parametrize(
    "build",
    [
        lambda: bomb_of_zeros(300 * MIB),
        lambda: gz(bomb_of_zeros(300 * MIB)),
        lambda: gz(header(b"plugin.wasm", 200 * MIB)) + bomb_of_zeros(300 * MIB),
        lambda: (
            zst(header(b"README", 250 * MIB))
            + zstandard.ZstdCompressor().compress(bytes(300 * MIB))
        ),
        lambda: gz(b"") * 20_001,
        lambda: zst(b"") * 200_000,
    ],
    ids=["gzip", "nested gzip", "tar.gz", "tar.zst", "empty members", "empty frames"],
)
def test_bombs_are_refused_in_little_memory(
    extract: Extraction, build: Callable[[], bytes]
) -> None:
    data = build()
    tracemalloc.start()
    try:
        for packing in ("detect", "tar+gzip"):
            error = extract.refusal(data, packing, gzip_members=20_000)
            assert error.reason in _ENDS_OF_A_BOMB
        assert tracemalloc.get_traced_memory()[1] < len(data) + 8 * MIB
    finally:
        tracemalloc.stop()


def test_a_header_that_claims_eight_exbibytes_takes_no_memory(extract: Extraction) -> None:
    eight_eib = b"\x80\0\0\0" + (2**63 - 1).to_bytes(8, "big")
    tracemalloc.start()
    try:
        for kind in (b"0", b"x", b"g", b"L", b"K", b"S", b"V"):
            error = extract.refusal(gz(header(b"plugin.wasm", eight_eib, kind)), "tar+gzip")
            assert error.reason == "ArchiveTooLarge"
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_a_zstd_frame_cannot_ask_for_a_window_that_large(extract: Extraction) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    squeeze = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = squeeze.compress(WASM) + squeeze.flush()
    error = extract.refusal(data)
    assert error.reason == "ArchiveInvalid"
    assert "requires too much memory" in str(error)


def test_an_honest_module_of_zeros_is_no_bomb(extract: Extraction) -> None:
    content = b"\0asm\x01\0\0\0" + bytes(32 * MIB - 8)
    for data in (gz(content), gz(tar({"plugin.wasm": content})), zst(content)):
        assert len(extract(data)[1]) == 32 * MIB


@pytest.mark.parametrize("packing", ["detect", "raw"])
def test_a_module_above_the_limit_is_refused(extract: Extraction, packing: str) -> None:
    error = extract.refusal(WASM + b"x" * 1000, packing, module_bytes=len(WASM))
    assert error.reason == "TooLarge"


def test_images_search_several_layers(extract: Extraction, tmp_path: Path) -> None:
    limits = Limits()
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(gz(tar({"etc/passwd": b"root"})))
    top.write_bytes(gz(tar({"lib/helper.wasm": b"h", "plugin.wasm": WASM})))
    assert read_layer(base, packing="tar+gzip", limits=limits).modules == ()
    found = read_layer(top, packing="tar+gzip", limits=limits).modules
    assert [each.name for each in found] == ["lib/helper.wasm", "plugin.wasm"]
    member = choose_member(found)
    extract_member(top, extract.destination, packing="tar+gzip", member=member, limits=limits)
    assert extract.destination.read_bytes() == WASM


def test_choosing_among_nothing_says_so() -> None:
    with pytest.raises(ContentRejected) as caught:
        choose_member([])
    assert caught.value.reason == "ModuleNotFoundInArchive"


def test_files_that_cannot_be_opened_are_storage_errors(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        extract_module(tmp_path / "absent", tmp_path / "x", packing="raw", limits=Limits())
    (tmp_path / "source").write_bytes(WASM)
    with pytest.raises(StorageError):
        extract_module(tmp_path / "source", tmp_path / "no" / "x", packing="raw", limits=Limits())


def test_a_full_disk_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(WASM)
    with pytest.raises(StorageError) as caught:
        extract_module(tmp_path / "source", Path("/dev/full"), packing="raw", limits=Limits())
    assert caught.value.reason == "StorageFull"


def test_gzip_written_by_the_standard_library_in_pieces_is_read(extract: Extraction) -> None:
    buffer_path = extract.source.with_name("pieces")
    with gzip.open(buffer_path, "wb") as file:
        for start in range(0, len(WASM), 7):
            file.write(WASM[start : start + 7])
    assert extract(buffer_path.read_bytes())[1] == WASM
