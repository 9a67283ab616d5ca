"""The entries of one layer of an image, and the files that layers hide in those below them."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from autowasm.errors import ContentRejected, StorageError
from autowasm.limits import Limits
from autowasm.wasm.archive import ArchiveMember
from autowasm.wasm.imagelayer import Hidden, ImageLayer, clean_path, read_layer
from tests.unit.wasm.archives import gz, zst

LINK, FOLDER = tarfile.SYMTYPE, tarfile.DIRTYPE


def packed(*entries: str | tuple[str, bytes]) -> bytes:
    """A tar archive. A name alone: a folder if it ends in a slash, else a link; with content: a file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for each in entries:
            name, content = each if isinstance(each, tuple) else (each, None)
            info = tarfile.TarInfo(name.removesuffix("/"))
            if content is None:
                info.type = FOLDER if name.endswith("/") else LINK
                info.linkname = "" if info.type == FOLDER else "elsewhere"
            info.size = len(content or b"")
            archive.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


def layer(tmp_path: Path, *entries: str | tuple[str, bytes]) -> ImageLayer:
    path = tmp_path / "layer"
    path.write_bytes(packed(*entries))
    return read_layer(path, packing="tar", limits=Limits())


def hashes(*paths: str) -> frozenset[int]:
    return frozenset(hash(path) for path in paths)


def test_an_empty_layer_has_nothing(tmp_path: Path) -> None:
    nothing: frozenset[int] = frozenset()
    assert layer(tmp_path) == ImageLayer((), nothing, nothing, nothing, None)


def test_each_kind_of_archive_entry_has_its_effect(tmp_path: Path) -> None:
    found = layer(
        tmp_path,
        "opt/",
        ("opt/a.wasm", b"12345"),
        "opt/link.wasm",
        "opt/folder.wasm/",
        ("opt/readme", b"x"),
        ("opt/.wh.gone", b""),
        ("usr/.wh..wh..opq", b""),
        (".wh.top", b""),
        (".wh..wh..opq", b""),
        ("opt/.wh..wh.plnk", b""),
        (".wh..wh.aufs", b""),
        ("opt/filter.wasm", b"123"),
    )
    assert found.modules == (
        ArchiveMember("opt/a.wasm", 1),
        ArchiveMember("opt/filter.wasm", 11),
    )
    assert found.removed == hashes(
        *("opt/a.wasm", "opt/link.wasm", "opt/readme", "opt/gone", "top", "opt/filter.wasm")
    )
    assert found.emptied == hashes("usr", "")
    assert found.folders == hashes("opt/folder.wasm")
    assert found.first_plugin is None


def test_of_several_entries_with_one_path_the_last_counts_and_comes_last(tmp_path: Path) -> None:
    found = layer(
        tmp_path, ("./a.wasm", b"1"), ("b.wasm", b"12"), ("a.wasm", b"123"), ("/c.wasm", b"")
    )
    assert found.modules == (
        ArchiveMember("b.wasm", 1),
        ArchiveMember("a.wasm", 2),
        ArchiveMember("/c.wasm", 3),
    )


@pytest.mark.parametrize("later", ["a.wasm", "a.wasm/"], ids=["link", "folder"])
def test_a_module_replaced_later_in_its_layer_is_not_listed(tmp_path: Path, later: str) -> None:
    assert layer(tmp_path, ("a.wasm", b"1"), later).modules == ()


@pytest.mark.parametrize(
    ("entries", "first"),
    [
        ([("x", b""), ("a/plugin.wasm", b"12"), ("plugin.wasm", b"1")], ArchiveMember("a/plugin.wasm", 1)),
        (["plugin.wasm", ("plugin.wasm", b"1")], ArchiveMember("plugin.wasm", 0)),
        (["plugin.wasm/", ("a/plugin.wasm", b"1")], ArchiveMember("plugin.wasm/", 0)),
        ([("my-plugin.wasm", b"1"), ("plugin.wasm.old", b"1")], None),
        ([(".wh.plugin.wasm", b"")], None),
    ],
    ids=["file", "link", "folder", "other-names", "whiteout"],
)  # fmt: skip
def test_the_first_entry_with_the_name_that_istio_takes_is_known(
    tmp_path: Path, entries: Sequence[str | tuple[str, bytes]], first: ArchiveMember | None
) -> None:
    assert layer(tmp_path, *entries).first_plugin == first


@pytest.mark.parametrize(("packing", "pack"), [("tar", bytes), ("tar+gzip", gz), ("tar+zstd", zst)])
def test_a_layer_is_read_in_each_packing(tmp_path: Path, packing: str, pack: type[bytes]) -> None:
    path = tmp_path / "layer"
    path.write_bytes(pack(packed(("a.wasm", b"1"))))
    found = read_layer(path, packing=packing, limits=Limits())
    assert found.modules == (ArchiveMember("a.wasm", 0),)


def test_a_layer_has_a_limit_of_entries(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(packed(*((f"{number}", b"") for number in range(3))))
    assert len(read_layer(path, packing="tar", limits=Limits(archive_entries=3)).removed) == 3
    with pytest.raises(ContentRejected) as caught:
        read_layer(path, packing="tar", limits=Limits(archive_entries=2))
    assert caught.value.reason == "ArchiveTooLarge"


def test_a_layer_has_a_limit_of_folders_that_only_names_of_files_tell(tmp_path: Path) -> None:
    """A name of 4 KiB has hundreds of them: ten thousand entries would fill the memory."""
    archive = tmp_path / "layer"
    archive.write_bytes(packed("1.wasm/1.wasm/a", "1.wasm/1.wasm/b", "2.wasm/x/1.wasm/a"))
    found = read_layer(archive, packing="tar", limits=Limits(image_entries=4))
    assert found.folders == hashes("1.wasm", "1.wasm/1.wasm", "2.wasm", "2.wasm/x/1.wasm")
    with pytest.raises(ContentRejected) as refused:
        read_layer(archive, packing="tar", limits=Limits(image_entries=3))
    assert refused.value.reason == "ArchiveTooLarge"


def test_a_layer_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        read_layer(tmp_path / "absent", packing="tar", limits=Limits())


def visible(tmp_path: Path, *above: str | tuple[str, bytes], below: str) -> bool:
    """Whether the module `below` is still there under one layer."""
    hidden = Hidden(limits=Limits())
    hidden.add(layer(tmp_path, *above))
    lower = layer(tmp_path, (below, b"1"))
    found = hidden.visible(lower)
    assert found in ([], list(lower.modules))
    assert hidden.deleted == ([] if found else [below])
    return bool(found)


@pytest.mark.parametrize(
    "above",
    [
        ("a/b/.wh.m.wasm", b""),
        ("a/.wh.b", b""),
        (".wh.a", b""),
        ("a/b/.wh..wh..opq", b""),
        ("a/.wh..wh..opq", b""),
        (".wh..wh..opq", b""),
        ("a/b/m.wasm", b"2"),
        "a/b/m.wasm",
        "a/b/m.wasm/",
        ("a/b", b"2"),
        "a",
    ],
)
def test_a_module_is_gone_when_a_layer_above_takes_it_or_a_folder_of_it(
    tmp_path: Path, above: str | tuple[str, bytes]
) -> None:
    assert not visible(tmp_path, above, below="a/b/m.wasm")
    assert not visible(tmp_path, above, below="./a/b/m.wasm")


@pytest.mark.parametrize(
    "above",
    [
        ("a/b/m.wasm/.wh..wh..opq", b""),
        ("a/b/.wh.m", b""),
        ("a/.wh.m.wasm", b""),
        ("a/b/c/.wh..wh..opq", b""),
        ("b/.wh..wh..opq", b""),
        ("a/b/.wh..wh.m.wasm", b""),
        ("b", b"2"),
        "a/b/",
        "a/b.wasm/",
        "b/m.wasm",
    ],
)
def test_a_module_stays_visible_if_upper_layers_change_other_paths(
    tmp_path: Path, above: str | tuple[str, bytes]
) -> None:
    assert visible(tmp_path, above, below="a/b/m.wasm")


def test_a_folder_with_the_name_of_a_module_hides_no_module_in_it(tmp_path: Path) -> None:
    assert visible(tmp_path, "a.wasm/", below="a.wasm/m.wasm")
    assert not visible(tmp_path, "a.wasm/", below="a.wasm")


def test_every_layer_above_hides_and_a_layer_hides_nothing_of_its_own(tmp_path: Path) -> None:
    hidden = Hidden(limits=Limits())
    last = layer(tmp_path, (".wh.a.wasm", b""), ("a.wasm", b"new"), "b.wasm/")
    assert [each.name for each in hidden.visible(last)] == ["a.wasm"]
    hidden.add(last)
    hidden.add(layer(tmp_path, ("lib/.wh..wh..opq", b"")))
    hidden.add(layer(tmp_path, ("opt/.wh..wh..opq", b""), (".wh.c.wasm", b""), "d.wasm/"))
    below = ("a.wasm", "b.wasm", "c.wasm", "d.wasm", "lib/m.wasm", "opt/m.wasm", "e.wasm", "f.wasm")
    found = hidden.visible(layer(tmp_path, *((name, b"1") for name in below)))
    assert [each.name for each in found] == ["e.wasm", "f.wasm"]
    assert hidden.deleted == list(below[:6])


def test_of_many_modules_that_are_gone_some_are_named(tmp_path: Path) -> None:
    hidden = Hidden(limits=Limits())
    hidden.add(layer(tmp_path, (".wh..wh..opq", b"")))
    names = [f"{number}.wasm" for number in range(10)]
    for name in names:
        hidden.visible(layer(tmp_path, (name, b"")))
    assert hidden.deleted == names[:8]


def test_names_of_all_kinds_in_all_layers_count_together(tmp_path: Path) -> None:
    upper = layer(tmp_path, ("a", b""), ("b", b""), (".wh..wh..opq", b""), "c.wasm/")
    lower = layer(tmp_path, ("a", b""), ("x/.wh..wh..opq", b""), "d.wasm/")
    enough = Hidden(limits=Limits(image_entries=6))
    enough.add(upper)
    enough.add(lower)
    short = Hidden(limits=Limits(image_entries=5))
    short.add(upper)
    with pytest.raises(ContentRejected) as caught:
        short.add(lower)
    assert caught.value.reason == "ArchiveTooLarge"
    assert str(caught.value) == (
        "the image has more than 5 files in the layers above its module: put the module into the last layer"
    )


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/b", "a/b"),
        ("./a//b/", "a/b"),
        ("/a/./b", "a/b"),
        ("//a", "a"),
        ("X/a", "X/a"),
        ("a/../b", "b"),
        ("../../a", "a"),
        ("", ""),
        (".", ""),
        ("/", ""),
    ],
)
def test_a_path_is_where_unpacking_would_put_it(name: str, path: str) -> None:
    assert clean_path(name) == path
