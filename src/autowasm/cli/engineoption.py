"""`--engine` of `wasmc run` and `wasmc test`: the program that runs the filter besides the sandbox.

Invariant: a program that does not exist, or is not a known release of Envoy, is reported before anything runs.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

from autowasm.cli import registries
from autowasm.envoyversion import EnvoyVersion, envoy_version
from autowasm.errors import UsageError
from autowasm.trial import envoyrun


class Engine(NamedTuple):
    """A real Envoy on this machine. `version` is as Envoy reports it, such as 1.36.4; `release` is in the form of --envoy-version."""

    program: Path
    version: str
    release: EnvoyVersion


def find(text: str) -> Path | None:
    """The program of `envoy[=PATH]`; None for `sandbox`. Raises UsageError."""
    engine, equals, path = text.partition("=")
    if engine not in {"sandbox", "envoy"} or (equals and not path) or (path and engine != "envoy"):
        raise UsageError(f"--engine: must be sandbox, envoy or envoy=PATH, not {text!r}")
    if engine == "sandbox":
        return None
    found = shutil.which(path or "envoy")
    if found is None:
        where = f"{path}: no such program" if path else "there is no envoy on $PATH; use envoy=PATH"
        raise UsageError(f"--engine: {where}")
    return Path(found)


def identify(program: Path) -> Engine:
    """Ask the program for its version. Raises UsageError, EnvoyFailed."""
    version = registries.run_to_end(envoyrun.version_of(program))
    try:
        return Engine(program, version, envoy_version(version))
    except ValueError as error:
        raise UsageError(f"--engine: {error}") from error
