"""Releases of Envoy, as major and minor version.

Invariant: `envoy_version` returns only releases that wasmer supports.
"""

import re
from typing import NamedTuple

_WRITTEN = re.compile(r"v?(\d{1,4})\.(\d{1,4})(?:\.\d{1,4})?")


class EnvoyVersion(NamedTuple):
    """`1.39` as numbers, so that versions can be compared."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


OLDEST_ENVOY = EnvoyVersion(1, 36)
"""The oldest release on which the tests run."""


def envoy_version(text: str) -> EnvoyVersion:
    """Parse `1.39`, `1.39.2` or `v1.39.2`. Raises ValueError for other text and for a release before `OLDEST_ENVOY`."""
    found = _WRITTEN.fullmatch(text)
    if not found:
        raise ValueError(f"must be a release of Envoy such as 1.39, not {text[:40]!r}")
    version = EnvoyVersion(int(found[1]), int(found[2]))
    if version < OLDEST_ENVOY:
        raise ValueError(f"Envoy {OLDEST_ENVOY} is the oldest that is supported, not {version}")
    return version
