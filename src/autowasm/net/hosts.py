"""Lists of hosts: one grammar for every list that an operator writes, and the names of hosts in metrics.

Names are not resolved. Invariants: letter case never matters; an entry with a port matches that port only, one without matches
every port; `*.example.com` and `.example.com` match the names below example.com, never example.com itself; a name in a metric
is an entry of the operator's lists, an entry of `PUBLIC`, or `OTHER`, never the host of a spec, a redirect or a token challenge.
"""

import ipaddress
from collections.abc import Iterable
from typing import Final


def names_host(entries: Iterable[str], host: str) -> bool:
    """Whether one of `entries` (`HOST` or `HOST:PORT`) matches this `HOST` or `HOST:PORT`."""
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
    """Whether `entry` matches as in NO_PROXY of Go and curl: a domain with all names below it; a CIDR for address literals."""
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
    """Whether `HOST[:PORT]` as written refers to this machine; names are not resolved."""
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
"""The number of the operator's entries that metrics name. Few clusters use more than ten registries."""
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
"""Public registries with rate limits, and the hosts of their tokens and layers, in the grammar of this module."""


class NamedHosts:
    """The name under which a metric counts a host, so that no tenant can create label values. Safe in any thread."""

    def __init__(self) -> None:
        self._entries: tuple[str, ...] = PUBLIC

    def set(self, entries: Iterable[str]) -> None:
        """Set the operator's entries: `HOST`, `HOST:PORT`, `*.DOMAIN`. They replace the previous ones; `*` names no host."""
        named = [entry for entry in dict.fromkeys(one.lower() for one in entries) if entry != "*"]
        named.sort(
            key=lambda entry: (entry.startswith(("*", ".")), -len(entry))
        )  # most exact first
        self._entries = (*named[:NAMED], *PUBLIC)

    def name_of(self, host: str) -> str:
        """The first entry that matches this `HOST[:PORT]`, else `OTHER`."""
        entries = self._entries  # read once: another thread may replace it
        return next((entry for entry in entries if matches_host(entry, host)), OTHER)
