"""NamedHosts: under which name a metric counts a host, so that no tenant can make up a label value.

Not the count (`telemetry.requests`). Invariant: a name is an entry of the operator's lists of hosts, an entry of `PUBLIC`, or
`OTHER`; never the host of a spec, of a redirect or of a token challenge. Safe in any thread.
"""

from collections.abc import Iterable
from typing import Final

from autowasm.net.hosts import matches_host

NAMED: Final = 50
"""Entries of the operator that have a name each. Few clusters use more than ten registries."""
OTHER: Final = "other"
PUBLIC: Final = (
    "docker.io",
    "*.docker.io",
    "*.docker.com",
    "ghcr.io",
    "quay.io",
    "*.quay.io",
    "registry.gitlab.com",
    "gcr.io",
    "*.gcr.io",
    "*.pkg.dev",
    "*.googleapis.com",
    "registry.k8s.io",
    "public.ecr.aws",
    "*.amazonaws.com",
    "*.cloudfront.net",
    "mcr.microsoft.com",
    "*.azurecr.io",
    "*.windows.net",
    "*.icr.io",
)
"""Public registries, and where they keep tokens and layers, in the grammar of `net.hosts`. They limit how often they are asked."""


class NamedHosts:
    """Begins with `PUBLIC` only."""

    def __init__(self) -> None:
        self._entries: tuple[str, ...] = PUBLIC

    def set(self, entries: Iterable[str]) -> None:
        """The operator's entries: `HOST`, `HOST:PORT`, `*.DOMAIN`. They replace those of the call before; `*` names no host."""
        named = [entry for entry in dict.fromkeys(one.lower() for one in entries) if entry != "*"]
        named.sort(key=lambda entry: (entry.startswith(("*", ".")), -len(entry)))  # the most exact
        self._entries = (*named[:NAMED], *PUBLIC)

    def name_of(self, host: str) -> str:
        """The first entry that means this `HOST[:PORT]`, else `OTHER`."""
        entries = self._entries  # read once: another thread may replace it
        return next((entry for entry in entries if matches_host(entry, host)), OTHER)
