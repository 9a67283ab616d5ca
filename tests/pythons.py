"""`python -m tests.pythons [VERSION...]`: the unit and property tests on other Pythons than the running one.

On the Python of the image the integration tests run, too. The long tests run once, on the Python of .venv. Invariant: it
ends with 0 only if every version that was named, or without names every one that can be had, has passed.
"""

import logging
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from tests.parts import cache, pythons

_ROOT = Path(__file__).parents[1]
_SUITES = ("tests/unit", "tests/property")
_INTEGRATION = "tests/integration"
_LONGEST = 1800
"""Seconds for one version: one to three minutes on two idle cores."""


def suites(version: str) -> tuple[str, ...]:
    """The folders of tests that run on this Python."""
    return (*_SUITES, _INTEGRATION) if version == pythons.IMAGE else _SUITES


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if all passed."""
    parser = ArgumentParser(prog="python -m tests.pythons", description=__doc__.partition("\n")[0])
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=", ".join(pythons.VERSIONS))
    parser.add_argument("--jobs", default="2", help="tests at one time (default: 2)")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if unknown := set(given.versions) - set(pythons.VERSIONS):
        parser.error(f"not claimed by the project: {', '.join(sorted(unknown))}")
    running = "{}.{}".format(*sys.version_info)
    passed: list[str] = []
    for version in given.versions or [one for one in pythons.VERSIONS if one != running]:
        try:
            program = pythons.environment(
                version, _ROOT / "build" / f"python{version}", project=_ROOT
            )
        except cache.PartError as error:
            if given.versions or version in pythons.SUITES:
                print(error, file=sys.stderr)
                return 1
            print(f"Not run: {error}", flush=True)
            continue
        if not _run(program, version, jobs=given.jobs):
            return 1
        passed.append(version)
    print(f"Passed on Python {', '.join(passed)}.")
    return 0


def _run(program: Path, version: str, *, jobs: str) -> bool:
    print(f"Python {version}:", flush=True)
    begun = time.monotonic()
    command = [program, "-m", "pytest", "-q", "-n", jobs, "--dist", "loadfile", *suites(version)]
    status = subprocess.run(command, cwd=_ROOT, timeout=_LONGEST, check=False).returncode
    print(f"Python {version}: {time.monotonic() - begun:.0f} s, status {status}", flush=True)
    return status == 0


if __name__ == "__main__":
    sys.exit(main())
