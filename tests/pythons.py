"""`python -m tests.pythons [VERSION...]`: the unit and property tests on every Python that does not run the whole suite.

On the Python of the image it also runs the integration tests, with all generated examples. The whole suite runs on the
Python of .venv; with COVERAGE=1 on the Python that measures (`--measuring` prints its path). Invariant: it ends with 0
only if every named version has passed, or every available one if none is named.
"""

import logging
import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from tests.parts import cache, pythons

log = logging.getLogger(__name__)

_ROOT = Path(__file__).parents[1]
_SUITES = ("tests/unit", "tests/property")
_INTEGRATION = "tests/integration"
_MEASURING = "3.14"
"""From this version on, coverage measures branches with sys.monitoring: a fifth more processor time; older versions take twice the time."""
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
    parser.add_argument("--measuring", action="store_true", help="print the Python for COVERAGE=1")
    given = parser.parse_args(arguments)
    stream = sys.stderr if given.measuring else sys.stdout
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=stream)
    if given.measuring:
        print(_environment(_measuring()))
        return 0
    if unknown := set(given.versions) - set(pythons.VERSIONS):
        parser.error(f"not claimed by the project: {', '.join(sorted(unknown))}")
    whole = _measuring() if os.environ.get("COVERAGE") else _running()
    passed: list[str] = []
    for version in given.versions or [one for one in pythons.VERSIONS if one != whole]:
        try:
            program = _environment(version)
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


def _running() -> str:
    return "{}.{}".format(*sys.version_info)


def _environment(version: str) -> Path:
    """The interpreter of an environment with the project and the dependencies of its tests. Raises PartError."""
    if version == _running():
        return Path(sys.executable)
    return pythons.environment(version, _ROOT / "build" / f"python{version}", project=_ROOT)


def _measuring() -> str:
    """The version that measures: the running one if the better one is not available."""
    try:
        _environment(_MEASURING)
    except cache.PartError as error:
        log.warning("Measured with Python %s, which takes longer: %s", _running(), error)
        return _running()
    return _MEASURING


def _run(program: Path, version: str, *, jobs: str) -> bool:
    print(f"Python {version}:", flush=True)
    begun = time.monotonic()
    examples = [] if version == pythons.IMAGE else ["--hypothesis-profile=quick"]
    workers = ["-n", jobs, "--dist", "loadfile"]
    command = [program, "-m", "pytest", "-q", *workers, *examples, *suites(version)]
    status = subprocess.run(command, cwd=_ROOT, timeout=_LONGEST, check=False).returncode
    print(f"Python {version}: {time.monotonic() - begun:.0f} s, status {status}", flush=True)
    return status == 0


if __name__ == "__main__":
    sys.exit(main())
