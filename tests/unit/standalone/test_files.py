"""Files that others follow."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from autowasm.errors import StorageError
from autowasm.standalone import files


def test_yaml_is_block_style_in_the_order_of_the_document_without_aliases() -> None:
    shared = {"z": 1, "a": ["2021-10-27T10:00:36Z", "yes", "ü😀"]}
    document: dict[str, Any] = {"kind": "X", "apiVersion": "v1", "one": shared, "two": shared}

    written = files.dump_yaml(document).decode()

    assert written.startswith('kind: X\napiVersion: v1\none:\n  z: 1\n  a:\n  - "2021-')
    assert "ü" in written
    assert not any(mark in written for mark in "&*{}")
    assert yaml.safe_load(written) == document


def test_long_strings_stay_on_their_line() -> None:
    assert files.dump_yaml({"a": "word " * 2_000}).count(b"\n") <= 2


def test_writes_a_new_file_and_makes_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "made" / "here" / "a.yaml"
    assert files.write_if_changed(path, b"one")
    assert path.read_bytes() == b"one"
    assert [each.name for each in path.parent.iterdir()] == ["a.yaml"]


def test_unchanged_bytes_keep_inode_and_times(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    files.write_if_changed(path, b"one")
    before = path.stat()

    assert not files.write_if_changed(path, b"one")

    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )


def test_changed_bytes_come_by_rename(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    files.write_if_changed(path, b"one")
    with path.open("rb") as reader:
        assert files.write_if_changed(path, b"two")
        assert reader.read() == b"one"  # who has it open sees the old bytes, whole
    assert path.read_bytes() == b"two"


def test_failed_write_leaves_what_was_there_and_no_half_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*a\.yaml"):
        files.write_if_changed(path, b"one")
    assert list(tmp_path.iterdir()) == [path]


def test_removes_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"one")
    assert files.remove(path)
    assert not files.remove(path)
    with pytest.raises(StorageError, match="cannot remove"):
        files.remove(tmp_path)
