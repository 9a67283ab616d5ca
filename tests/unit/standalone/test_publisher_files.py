"""Files that others follow."""

from pathlib import Path

import pytest

from autowasm.errors import StorageError
from autowasm.standalone import publisher


def test_writes_a_new_file_and_makes_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "made" / "here" / "a.yaml"
    assert publisher.write_if_changed(path, b"one")
    assert path.read_bytes() == b"one"
    assert [each.name for each in path.parent.iterdir()] == ["a.yaml"]


def test_unchanged_bytes_keep_inode_and_times(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    publisher.write_if_changed(path, b"one")
    before = path.stat()

    assert not publisher.write_if_changed(path, b"one")

    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )


def test_changed_bytes_come_by_rename(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    publisher.write_if_changed(path, b"one")
    with path.open("rb") as reader:
        assert publisher.write_if_changed(path, b"two")
        assert reader.read() == b"one"  # a reader with the file open sees the old bytes, whole
    assert path.read_bytes() == b"two"


def test_failed_write_keeps_the_target_and_leaves_no_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*a\.yaml"):
        publisher.write_if_changed(path, b"one")
    assert list(tmp_path.iterdir()) == [path]


def test_remove_deletes_an_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"one")
    assert publisher.remove(path)
    assert not publisher.remove(path)
    with pytest.raises(StorageError, match="cannot remove"):
        publisher.remove(tmp_path)
