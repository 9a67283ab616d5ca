"""Build hook of hatchling: writes the commit and the date of the build into the package, for `--version`.

Both come from the environment if it has them (AUTOWASM_COMMIT; SOURCE_DATE_EPOCH, seconds since 1970), as in the image, whose
build sees no repository. Otherwise the commit is that of the checkout and the date is today. Invariant: a wheel built from a
source distribution has what the source distribution has, and an editable installation has no such file.
"""

import os
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_STAMP = "_build.py"
_COMMIT_LENGTH = 12


class BuildHook(BuildHookInterface[Any]):
    """Adds `autowasm/_build.py` to what is built."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a build; `version` is "standard" or "editable"."""
        root = Path(self.root)
        if version == "editable" or (root / "src/autowasm" / _STAMP).exists():
            return
        self._folder = tempfile.mkdtemp(prefix="autowasm-build-")
        stamp = Path(self._folder) / _STAMP
        stamp.write_text(
            f'"""Written by hatch_build.py."""\n\nCOMMIT = "{_commit(root)}"\nDATE = "{_date()}"\n'
        )
        folder = "autowasm" if self.target_name == "wheel" else "src/autowasm"
        build_data["force_include"][str(stamp)] = f"{folder}/{_STAMP}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called after a build."""
        del version, build_data, artifact_path
        if hasattr(self, "_folder"):
            shutil.rmtree(self._folder, ignore_errors=True)


def _commit(root: Path) -> str:
    """Empty if it is unknown."""
    if given := os.environ.get("AUTOWASM_COMMIT"):
        if not set(given) <= set("0123456789abcdef"):
            raise ValueError(f"AUTOWASM_COMMIT is no commit: {given!r}")
        return given[:_COMMIT_LENGTH]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return ""
    try:
        commit = _output(git, root, "rev-parse", "HEAD")[:_COMMIT_LENGTH]
        dirty = _output(git, root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}-dirty" if dirty else commit


def _output(git: str, root: Path, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603  # fixed arguments
        [git, "-C", root, *arguments], capture_output=True, check=True, text=True, timeout=10
    )
    return done.stdout.strip()


def _date() -> str:
    """In UTC, such as 2026-11-27."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return f"{moment:%Y-%m-%d}"
