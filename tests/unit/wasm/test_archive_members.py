"""Which member of an archive is taken, how deep packings go, and the messages of refusals."""

import errno
import io
import os
import tarfile
from pathlib import Path

import pytest

from autowasm.errors import ContentRejected, StorageError
from autowasm.limits import Limits
from autowasm.wasm.archive import (
    ArchiveMember,
    choose_member,
    extract_member,
    extract_module,
    is_candidate,
    opened_archive,
)
from tests.unit.wasm.archives import END, gz, header, padded, tar, zst

WASM = b"\0asm\x01\0\0\0" + b"\0\x05\x04junk" * 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


def extracted(source: Path, data: bytes, packing: str = "detect", **limits: int) -> bytes:
    source.write_bytes(data)
    target = source.with_name("module")
    extract_module(source, target, packing=packing, limits=Limits(**limits))
    return target.read_bytes()


def refusal(source: Path, data: bytes, packing: str = "detect", **limits: int) -> ContentRejected:
    with pytest.raises(ContentRejected) as caught:
        extracted(source, data, packing, **limits)
    return caught.value


def members(*names: str) -> list[ArchiveMember]:
    return [ArchiveMember(name, ordinal) for ordinal, name in enumerate(names)]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["a/plugin.wasm", "plugin.wasm"], "plugin.wasm"),
        (["plugin.wasm", "a/plugin.wasm"], "plugin.wasm"),
        (["a/plugin.wasm", "./plugin.wasm"], "./plugin.wasm"),
        (["a/plugin.wasm", "/plugin.wasm"], "/plugin.wasm"),
        (["a/plugin.wasm", ".//plugin.wasm"], ".//plugin.wasm"),
        (["filter.wasm", "a/b/plugin.wasm"], "a/b/plugin.wasm"),
        (["a/filter.wasm", "x.wasm"], "a/filter.wasm"),
        (["a/filter.wasm", "filter.wasm"], "filter.wasm"),
        (["myplugin.wasm"], "myplugin.wasm"),
        (["plugin.wasm/x.wasm"], "plugin.wasm/x.wasm"),
    ],
)
def test_preferred_names_come_first_and_at_the_top(names: list[str], chosen: str) -> None:
    assert choose_member(members(*names)).name == chosen


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["a.wasm", "b.wasm"], "a.wasm, b.wasm"),
        (["a/plugin.wasm", "b/plugin.wasm"], "a/plugin.wasm, b/plugin.wasm"),
        (["plugin.wasm", "./plugin.wasm", "x.wasm"], "plugin.wasm, ./plugin.wasm"),
        (["a/filter.wasm", "b/filter.wasm", "x.wasm"], "a/filter.wasm, b/filter.wasm"),
        (["myplugin.wasm", "xplugin.wasm"], "myplugin.wasm, xplugin.wasm"),
    ],
)
def test_several_of_one_rank_are_named(names: list[str], listed: str) -> None:
    with pytest.raises(ContentRejected) as caught:
        choose_member(members(*names))
    assert caught.value.reason == "AmbiguousModule"
    assert f"there are 2 modules in it ({listed}): " in str(caught.value)


def test_missing_wasm_file_is_rejected_with_a_remedy() -> None:
    with pytest.raises(ContentRejected, match=r"no \*\.wasm file in it: add the module as"):
        choose_member([])


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("a.wasm", True),
        ("./a.wasm", True),
        ("/d/a.wasm", True),
        ("d.d/a.b.wasm", True),
        (".d/a.wasm", True),
        (".wasm", False),
        (".a.wasm", False),
        ("d/.wh.a.wasm", False),
        ("._a.wasm", False),
        ("a.WASM", False),
        ("a.wasm.txt", False),
        ("awasm", False),
        ("a.wasm/", False),
    ],
)
def test_files_that_end_in_wasm_and_are_not_hidden_count(name: str, counts: bool) -> None:
    assert is_candidate(name) == counts


def test_member_is_found_by_its_place_among_all_entries(source: Path) -> None:
    data = (
        header(b"d/", 0, b"5")
        + header(b"plugin.wasm", 3)
        + padded(b"old")
        + header(b"link", 0, b"2")
        + header(b"./plugin.wasm", len(WASM))
        + padded(WASM)
        + header(b"README", 2)
        + padded(b"hi")
        + END
    )
    assert extracted(source, data, "tar") == WASM
    assert extracted(source, gz(data)) == WASM


@pytest.mark.parametrize("kind", [b"2", b"1", b"5", b"S"])
def test_module_that_a_later_entry_replaces_is_not_taken(source: Path, kind: bytes) -> None:
    replaced = header(b"./plugin.wasm", 0, kind) + header(b"a.wasm", len(WASM)) + padded(WASM)
    data = header(b"plugin.wasm", 3) + padded(b"old") + replaced + END
    assert extracted(source, data, "tar") == WASM


def test_member_that_is_not_there_any_more_is_refused(source: Path) -> None:
    source.write_bytes(tar({"a.wasm": WASM, "b.wasm": WASM}))
    target = source.with_name("module")
    for ordinal in (0, 1):
        member = ArchiveMember("a.wasm", ordinal)
        extract_member(source, target, packing="tar", member=member, limits=Limits())
        assert target.read_bytes() == WASM
    with pytest.raises(ContentRejected, match="its entry 2 is missing"):
        extract_member(
            source, target, packing="tar", member=ArchiveMember("a.wasm", 2), limits=Limits()
        )


@pytest.mark.parametrize(
    ("data", "packing", "name"),
    [
        (WASM, "raw", ""),
        (WASM, "detect", ""),
        (gz(WASM), "detect", ""),
        (tar({"d/a.wasm": WASM}), "tar", "d/a.wasm"),
        (gz(tar({"./a.wasm": gz(WASM)})), "detect", "./a.wasm"),
    ],
)
def test_name_of_the_member_is_reported(source: Path, data: bytes, packing: str, name: str) -> None:
    source.write_bytes(data)
    target = source.with_name("module")
    assert extract_module(source, target, packing=packing, limits=Limits()) == name


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4])
def test_packings_in_each_other_have_a_limit(source: Path, depth: int) -> None:
    data = WASM
    for _ in range(depth):
        data = gz(data)
    assert extracted(source, data, archive_nesting=depth) == WASM
    if depth:
        error = refusal(source, data, archive_nesting=depth - 1)
        assert error.reason == "ArchiveInvalid"
        assert f"nested more than {depth - 1} deep" in str(error)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (
            b"",
            "this is neither a WebAssembly module nor a gzip, zstd or tar archive of one: it is empty",
        ),
        (gz(b""), "the packed content is neither a WebAssembly module"),
        (tar({"plugin.wasm": b"text"}), "the packed content is neither"),
        (b"#!/bin/sh", "this is neither"),
        (b"\x1f\x8a\x08\0", "this is neither"),
        (b"\x28\xb5\x2f\xfe", "this is neither"),
    ],
)
def test_content_that_is_no_module_is_rejected_with_its_kind(
    source: Path, data: bytes, what: str
) -> None:
    error = refusal(source, data)
    assert error.reason == "NotWasm"
    assert what in str(error)


@pytest.mark.parametrize(
    ("names", "held"),
    [
        ([], "no files"),
        (["a"], "a"),
        (["a", "b", "c", "d", "e"], "a, b, c, d, e"),
        (["a", "b", "c", "d", "e", "f"], "a, b, c, d, e and 1 more"),
        (list("abcdefghij"), "a, b, c, d, e and 5 more"),
    ],
)
def test_archive_without_a_module_says_which_files_it_holds(
    source: Path, names: list[str], held: str
) -> None:
    folder = header(b"folder/", 0, b"5") + header(b"link", 0, b"2")
    data = folder + tar(dict.fromkeys(names, b"x"))
    error = refusal(source, data, "tar")
    assert error.reason == "ModuleNotFoundInArchive"
    assert str(error).endswith(f"add the module as plugin.wasm; it holds {held}")


@pytest.mark.parametrize("packing", ["raw", "detect"])
@pytest.mark.parametrize("chunk", [1, len(WASM) - 1, len(WASM), len(WASM) + 1])
def test_module_as_large_as_the_limit_is_taken(source: Path, packing: str, chunk: int) -> None:
    size = len(WASM)
    taken = extracted(source, WASM, packing, module_bytes=size, transfer_chunk=chunk)
    assert taken == WASM
    error = refusal(source, WASM, packing, module_bytes=size - 1, transfer_chunk=chunk)
    assert error.reason == "TooLarge"
    assert f"the module has more than {size - 1} bytes" in str(error)


@pytest.mark.parametrize("packing", ["", "zip", "raw", "detect", "tar+xz"])
def test_unknown_packing_of_an_archive_is_a_bug_of_the_caller(source: Path, packing: str) -> None:
    source.write_bytes(tar({}))
    with (
        pytest.raises(ValueError, match="unknown packing of an archive"),
        opened_archive(source, packing=packing, limits=Limits()),
    ):
        pytest.fail("opened")


@pytest.mark.parametrize("pack", [bytes, gz, zst])
def test_bare_module_in_place_of_an_archive_says_how_to_push_it(
    source: Path, pack: type[bytes]
) -> None:
    source.write_bytes(pack(WASM))
    with (
        pytest.raises(ContentRejected, match="it is a bare WebAssembly module") as caught,
        opened_archive(source, packing="tar", limits=Limits()),
    ):
        pytest.fail("opened")
    assert caught.value.reason == "ArchiveInvalid"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_archives_of_every_format_of_the_standard_library_are_read(
    source: Path, format: int
) -> None:
    name = "d" * 60 + "/" + "e" * 60 + "/plugin.wasm"
    assert extracted(source, tar({name: WASM}, format=format), "tar") == WASM


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "StorageFull"),
        (errno.EDQUOT, "StorageFull"),
        (errno.EIO, "StorageUnavailable"),
    ],
)
def test_disk_that_fails_is_no_fault_of_the_module(
    source: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    target, opened = source.with_name("module"), Path.open

    class Failing(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(number, os.strerror(number))

    def open_(path: Path, mode: str = "r") -> object:
        return Failing() if path == target else opened(path, mode)

    source.write_bytes(WASM)
    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(StorageError) as caught:
        extract_module(source, target, packing="raw", limits=Limits())
    assert caught.value.reason == reason
    assert str(caught.value) == f"cannot unpack the module at {target}: {os.strerror(number)}"
