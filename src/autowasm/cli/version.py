"""`--version` of both commands: the version, the commit, and the date of the build.

`hatch_build.py` writes them into each wheel and source distribution, as `autowasm/_build.py`. Invariant: an installed package
starts no program to find them. Only an editable installation has no such file and runs git.
"""

import argparse
import importlib
from pathlib import Path
from typing import Any, Final

_GIT_SECONDS: Final = 5.0
"""Deadline of each call of git."""
_COMMIT_LENGTH: Final = 12


class ShowVersion(argparse.Action):
    """Prints the line of `describe` and exits. Determines the version only then, because that takes longer than all of `--help`."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        options.setdefault("help", "show the version, the commit and the build date, and exit")
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Called by argparse when it meets the flag."""
        print(describe(parser.prog))
        parser.exit()


def describe(program: str) -> str:
    """For example `wasmc 0.1.0 (commit 94610a8f1c2d, built 2026-11-27)`; leaves out a commit that is unknown."""
    from importlib import metadata  # noqa: PLC0415  # heavier than all of --help

    try:
        build: Any = importlib.import_module("autowasm._build")
    except ModuleNotFoundError:
        commit, origin = _checkout_commit(Path(__file__).parents[3]), "editable"
    else:
        commit, origin = build.COMMIT, f"built {build.DATE}"
    details = f"commit {commit}, {origin}" if commit else origin
    return f"{program} {metadata.version('autowasm')} ({details})"


def _checkout_commit(root: Path) -> str:
    """The commit that is checked out at `root`, with "-dirty" if files differ from it; empty if git cannot find it."""
    import shutil  # noqa: PLC0415  # with subprocess, only for a checkout
    import subprocess  # noqa: PLC0415

    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return ""

    def output(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603  # fixed arguments
            [git, "-C", root, *arguments],
            capture_output=True,
            check=True,
            text=True,
            timeout=_GIT_SECONDS,
        ).stdout.strip()

    try:
        commit = output("rev-parse", "HEAD")[:_COMMIT_LENGTH]
        dirty = output("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}-dirty" if dirty else commit
