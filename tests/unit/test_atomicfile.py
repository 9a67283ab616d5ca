"""Files that are replaced whole: what is on disk when, and what a failure leaves."""

import os
import stat
from pathlib import Path

import pytest

from autowasm import atomicfile


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """For each fsync: `folder`, or the bytes of the file; and the bytes of `tmp_path/target` at that time."""
    found: list[tuple[str, str | None]] = []
    real, target = os.fsync, tmp_path / "target"

    def fsync(fd: int) -> None:
        real(fd)
        is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        what = "folder" if is_folder else Path(f"/proc/self/fd/{fd}").read_text()
        found.append((what, target.read_text() if target.is_file() else None))

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def test_a_write_syncs_the_bytes_before_they_have_the_name_and_the_name_before_it_returns(
    tmp_path: Path, synced: list[tuple[str, str | None]]
) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    atomicfile.write(target, b"new", temporary=tmp_path / "half")
    assert synced == [("new", "old"), ("folder", "new")]
    assert list(tmp_path.iterdir()) == [target]


def test_bytes_that_may_be_in_memory_only_are_synced_before_the_rename(
    tmp_path: Path, synced: list[tuple[str, str | None]]
) -> None:
    (tmp_path / "work").mkdir()
    source, target = tmp_path / "work" / "source", tmp_path / "target"
    source.write_text("new")
    atomicfile.sync_and_rename(source, target)
    assert synced == [("new", None), ("folder", "new")]
    assert not source.exists()


def test_a_rename_of_synced_bytes_syncs_only_the_name(
    tmp_path: Path, synced: list[tuple[str, str | None]]
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    target.write_text("old")
    atomicfile.rename(source, target)
    assert synced == [("folder", "new")]


def test_a_write_replaces_the_half_file_of_a_killed_process_and_not_the_file_behind_it(
    tmp_path: Path,
) -> None:
    target, half, other = tmp_path / "target", tmp_path / "half", tmp_path / "other"
    other.write_text("other")
    half.symlink_to(other)
    atomicfile.write(target, b"new", temporary=half)
    assert (target.read_text(), other.read_text()) == ("new", "other")
    assert not target.is_symlink()
    assert not half.is_symlink()


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_changes_nothing_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    target = tmp_path / "target"
    target.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="Input/output"):
        atomicfile.write(target, b"new", temporary=tmp_path / "half")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_write_whose_folder_is_gone_says_which_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none/half"):
        atomicfile.write(tmp_path / "none" / "target", b"x", temporary=tmp_path / "none" / "half")
