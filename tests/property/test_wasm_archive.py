"""For any bytes: a module's bytes, or an error of ours; and the same reading of a good tar as the standard library's."""

import io
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autowasm.errors import ContentRejected
from autowasm.limits import MIB, Limits
from autowasm.wasm.archive import extract_module
from autowasm.wasm.decompression import Stream
from autowasm.wasm.imagelayer import read_layer
from autowasm.wasm.tar import TarReader
from tests.unit.wasm.archives import END, gz, header, padded, tar, zst

WASM = b"\0asm\x01\0\0\0" + b"\0\x05\x04junk" * 20
PACKINGS = st.sampled_from(["detect", "raw", "tar", "tar+gzip", "tar+zstd"])
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
SMALL = Limits(
    module_bytes=10_000,
    unpacked_bytes=200_000,
    ratio_grace_bytes=50_000,
    archive_entries=50,
    archive_metadata_bytes=4096,
    transfer_chunk=4096,
)

no_deadline = settings(deadline=None)
"""Other tests run beside these."""


def outcome(data: bytes, packing: str, *, limits: Limits = SMALL) -> bytes | ContentRejected:
    with tempfile.TemporaryDirectory() as directory:
        source, destination = Path(directory, "source"), Path(directory, "destination")
        source.write_bytes(data)
        try:
            extract_module(source, destination, packing=packing, limits=limits)
        except ContentRejected as error:
            refused = error
        else:
            return destination.read_bytes()
    assert str(refused).isprintable()
    assert len(str(refused)) < 3000
    return refused


@no_deadline
@given(st.binary(max_size=2000), PACKINGS)
def test_any_bytes_are_taken_or_refused(data: bytes, packing: str) -> None:
    outcome(data, packing)


HEADERS = st.builds(
    header,
    st.binary(min_size=1, max_size=100),
    st.one_of(st.integers(0, 8**11 - 1), st.binary(min_size=12, max_size=12)),
    st.sampled_from([bytes([kind]) for kind in b"\x000123456789SLKxgVMNDXA"]),
)
BLOCKS = st.lists(st.one_of(HEADERS, st.binary(max_size=600).map(padded), st.just(END)), max_size=8)


@no_deadline
@given(BLOCKS.map(b"".join), st.sampled_from([bytes, gz, zst]), PACKINGS)
def test_any_headers_are_taken_or_refused(blocks: bytes, pack, packing: str) -> None:  # type: ignore[no-untyped-def]
    outcome(pack(blocks), packing)


@no_deadline
@given(st.data())
def test_a_changed_archive_is_taken_or_refused(data: st.DataObject) -> None:
    pack = data.draw(st.sampled_from([bytes, gz, zst]))
    changed = bytearray(pack(tar({"a/b.txt": b"x" * 600, "plugin.wasm": WASM})))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        if data.draw(st.booleans()):
            changed[at : at + 1] = data.draw(st.binary(min_size=1, max_size=4))
        elif at:
            del changed[at:]
    outcome(bytes(changed), data.draw(PACKINGS))


WORDS = st.text(st.characters(exclude_characters="\0\n", codec="utf-8"), min_size=1, max_size=12)
# Up to 300 characters, past each length at which a dialect of tar writes a name in another way.
NAMES = st.builds(str.__mul__, WORDS, st.integers(1, 25)).map(lambda name: name.strip("/"))
CONTENTS = st.builds(bytes.__mul__, st.binary(max_size=30), st.integers(1, 50))


@no_deadline
@given(
    st.dictionaries(NAMES.filter(bool), CONTENTS, max_size=8),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_good_archives_are_read_as_the_standard_library_reads_them(
    files: dict[str, bytes], format: int
) -> None:
    data = tar(files, format=format)
    reader = TarReader(Stream(io.BytesIO(data)), limits=Limits())
    read = {}
    while (entry := reader.next()) is not None:
        content = b""
        while chunk := reader.read(1000):
            content += chunk
        assert entry.size == len(content)
        assert entry.is_file
        read[entry.name] = content
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
    assert read == expected == files


@no_deadline
@given(st.integers(0, 400_000), st.sampled_from([gz, zst]))
def test_any_size_comes_out_whole_or_is_refused_by_its_limit(size: int, pack) -> None:  # type: ignore[no-untyped-def]
    content = (b"\0asm\x01\0\0\0" + bytes(range(256)) * (size // 256 + 1))[: size + 8]
    limits = Limits(module_bytes=300_000)
    result = outcome(pack(content), "detect", limits=limits)
    if len(content) <= 300_000:
        assert result == content
    else:
        assert isinstance(result, ContentRejected)
        assert result.reason == "TooLarge"


@settings(deadline=None, max_examples=settings().max_examples * 3 // 10)
@given(st.integers(1, 8), st.integers(1, 3), st.sampled_from([gz, zst]))
def test_a_bomb_ends_at_the_budget(factor: int, depth: int, pack) -> None:  # type: ignore[no-untyped-def]
    data = bytes(factor * MIB)
    for _ in range(depth):
        data = pack(data)
    tracemalloc.start()
    try:
        assert isinstance(outcome(data, "detect"), ContentRejected)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [50, 51])
def test_the_number_of_entries_has_a_limit(count: int, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(tar({f"{n}.wasm": b"" for n in range(count)}, format=tarfile.USTAR_FORMAT))
    if count <= 50:
        assert len(read_layer(source, packing="tar", limits=SMALL).modules) == count
    else:
        with pytest.raises(ContentRejected):
            read_layer(source, packing="tar", limits=SMALL)
