"""A tag is published only if everything has its version, and the repository is the one that packages and pages link to."""

import shutil
from pathlib import Path

import pytest

from tools.release import changelog, check

REPOSITORY = "https://github.com/autowasm/autowasm"
VERSION = "0.1.0"
CHANGES = f"""# Changelog

## [Unreleased]

## [{VERSION}] - 2026-11-28

### Added

- One.

## [0.0.1] - yesterday

- Two.

## [0.0.0] - 2026-01-01

[{VERSION}]: https://example.com
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the files that state a version."""
    files = ("pyproject.toml", "Dockerfile", "CHANGELOG.md", "manifests/helm/wasmer/Chart.yaml")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(check.ROOT / name, tmp_path / name)
    return tmp_path


def test_this_version_may_be_published_from_its_repository(root: Path) -> None:
    assert check.problems(f"v{VERSION}", REPOSITORY) == []
    assert check.problems(f"v{VERSION}", REPOSITORY, root=root) == []


def test_another_tag_or_repository_may_not() -> None:
    tag, repository = check.problems("v0.2.0", "https://github.com/fork/autowasm")
    assert "v0.2.0" in tag
    assert "fork/autowasm" in repository


@pytest.mark.parametrize(
    ("file", "before", "after", "problem"),
    [
        ("Dockerfile", f"VERSION={VERSION}", "VERSION=0.2.0", "Dockerfile states the version 0.2"),
        ("Dockerfile", f"VERSION={VERSION}", "VERSION", "Dockerfile states no version"),
        (
            "manifests/helm/wasmer/Chart.yaml",
            f"appVersion: {VERSION}",
            "appVersion: 0.2.0",
            "Chart.yaml states the version 0.2.0",
        ),
        ("CHANGELOG.md", f"## [{VERSION}]", "## [0.2.0]", f"no section [{VERSION}]"),
    ],
)
def test_a_file_with_another_version_is_reported(
    root: Path, file: str, before: str, after: str, problem: str
) -> None:
    text = (root / file).read_text()
    assert before in text
    (root / file).write_text(text.replace(before, after))
    (found,) = check.problems(f"v{VERSION}", REPOSITORY, root=root)
    assert problem in found


def test_the_notes_are_the_section_of_the_version() -> None:
    assert changelog.section(CHANGES, VERSION) == "### Added\n\n- One.\n"
    for version, problem in (
        ("0.0.1", "no date"),
        ("0.0.0", "empty"),
        ("Unreleased", "no date"),
        ("9", "no section"),
    ):
        with pytest.raises(ValueError, match=problem):
            changelog.section(CHANGES, version)
