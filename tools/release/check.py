"""`python -m tools.release.check TAG REPOSITORY`: whether the tag may be published, before anything is.

The version is that of pyproject.toml; the chart, the image and the changelog have it, too. The repository is the one that
pyproject.toml names, to which pages, labels and packages link. Needs only the standard library. Invariant: every problem
is reported, not only the first.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.release import changelog

ROOT: Final = Path(__file__).parents[2]


def problems(tag: str, repository: str, *, root: Path = ROOT) -> list[str]:
    """The problems to fix first; empty if the tag may be published."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    version = project["version"]
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, but pyproject.toml has the version {version}")
    if repository != project["urls"]["Repository"]:
        found.append(
            f"the repository is {repository}, but pyproject.toml names {project['urls']['Repository']}"
        )
    for file, pattern in _VERSIONS.items():
        stated = re.findall(pattern, (root / file).read_text(), re.MULTILINE)
        if not stated:
            found.append(f"{file} states no version")
        found += [f"{file} states the version {one}" for one in stated if one != version]
    try:
        changelog.section((root / "CHANGELOG.md").read_text(), version)
    except ValueError as error:
        found.append(f"CHANGELOG.md: {error}")
    return found


_VERSIONS: Final = {
    "manifests/helm/wasmer/Chart.yaml": r"^(?:version|appVersion): \"?([^\"\s]+)\"?$",
    "Dockerfile": r"^ARG VERSION=(\S+)$",
}
"""Files that state the version, and how."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.release.check")
    parser.add_argument("tag", help="for example v0.1.0")
    parser.add_argument("repository", help="its address, for example https://github.com/OWNER/NAME")
    parsed = parser.parse_args(arguments)
    found = problems(parsed.tag, parsed.repository)
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
