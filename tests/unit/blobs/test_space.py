"""Free space is measured even if another process removed the directory."""

import os
import shutil
from pathlib import Path

import pytest

from autowasm.blobs.eviction import space_of


def test_a_removed_directory_is_measured_by_the_nearest_parent_there_is(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "here"
    directory.mkdir(parents=True)
    there = space_of(directory)
    shutil.rmtree(tmp_path / "made")
    assert space_of(directory).total == there.total == _total(tmp_path)


def test_free_space_of_an_unusable_directory_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError):
        space_of(file / "below")


def _total(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize
