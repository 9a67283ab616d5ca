"""Does an entry of a list of hosts mean this host? One grammar for every list that an operator writes.

Not name resolution. Invariant: letter case never matters; an entry with a port means that port only, one without means
every port; `*.example.com` and `.example.com` mean what is below example.com, never example.com itself.

NamedHosts: under which name a metric counts a host, so that no tenant can make up a label value.

Not the count (`telemetry.requests`). Invariant: a name is an entry of the operator's lists of hosts, an entry of `PUBLIC`, or
`OTHER`; never the host of a spec, of a redirect or of a token challenge. Safe in any thread.
"""

import ipaddress
from collections.abc import Iterable
from typing import Final


def names_host(entries: Iterable[str], host: str) -> bool:
    """True if one of `entries` (`HOST` or `HOST:PORT`) is this `HOST` or `HOST:PORT`."""
    name, port = split_port(host.lower())
    return any(
        entry_name == name and entry_port in {"", port}
        for entry_name, entry_port in (split_port(entry.lower()) for entry in entries)
    )


def matches_host(entry: str, host: str) -> bool:
    """The same for one entry that may also be `*`, `*.DOMAIN` or `.DOMAIN`."""
    name, port = split_port(host.lower())
    wanted, wanted_port = split_port(entry.lower())
    if wanted_port not in {"", port}:
        return False
    if wanted == "*":
        return True
    below = wanted.removeprefix("*")
    return name.endswith(below) and name != below if below.startswith(".") else wanted == name


def avoids_proxy(entry: str, host: str) -> bool:
    """As NO_PROXY is read by Go and curl: a domain means itself and all below it; a CIDR means address literals."""
    name, _ = split_port(host.lower())
    try:
        network = ipaddress.ip_network(entry.strip(), strict=False)
    except ValueError:
        return matches_host(entry, host) or matches_host(f".{entry.lstrip('.')}", host)
    try:
        return ipaddress.ip_address(name.strip("[]")) in network
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """True for `HOST[:PORT]` of this machine, as written."""
    name, _ = split_port(host.lower())
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def split_port(host: str) -> tuple[str, str]:
    """Name and port; the port is empty if there is none. `[::1]:80` keeps its brackets."""
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and port.isdigit() and not _is_bare_v6(host) else (host, "")


def _is_bare_v6(host: str) -> bool:
    return host.count(":") > 1 and not host.startswith("[")


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
