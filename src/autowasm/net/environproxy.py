"""The proxies of a command line tool: HTTPS_PROXY, HTTP_PROXY and NO_PROXY, read as Docker, crane and oras read them.

Not for the server, whose proxy is a flag (`proxy.py`). Invariants: loopback is never asked through a proxy; a proxy's password
is in no message and no repr.

Sources: golang.org/x/net `http/httpproxy/proxy.go` (FromEnvironment: the upper-case name before the lower-case one;
`parseProxy`, `useProxy`, `ipMatch`, `cidrMatch`, `domainMatch`).
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from autowasm.errors import UsageError
from autowasm.net.hosts import is_loopback
from autowasm.net.proxy import Proxy

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class _Domain:
    """`suffix` begins with a dot."""

    suffix: str
    itself: bool
    port: str

    def covers(self, host: str, port: str) -> bool:
        named = host.endswith(self.suffix) or (self.itself and host == self.suffix[1:])
        return named and self.port in {"", port}


@dataclass(frozen=True, slots=True)
class NoProxy:
    """One NO_PROXY: hosts, domains, addresses and CIDRs with commas between them, each but a CIDR with a port if need be."""

    everything: bool = False
    networks: tuple[tuple[_Network, str], ...] = ()
    domains: tuple[_Domain, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Entries that cannot be read are ignored, as Go does."""
        networks: list[tuple[_Network, str]] = []
        domains: list[_Domain] = []
        for part in text.split(","):
            entry = part.strip().lower()
            if entry == "*":
                return cls(everything=True)
            if not entry:
                continue
            if (network := _cidr(entry)) is not None:
                networks.append((network, ""))
                continue
            host, port = _split(entry)
            if not host:
                continue
            if (address := _address(host)) is not None:
                networks.append((ipaddress.ip_network(address), port))
                continue
            host = host.removeprefix("*") if host.startswith("*.") else host
            itself = not host.startswith(".")
            domains.append(_Domain(host if not itself else f".{host}", itself, port))
        return cls(networks=tuple(networks), domains=tuple(domains))

    def covers(self, host: str, port: int) -> bool:
        """Whether `host` is asked directly. Names are not resolved: a CIDR is for addresses that are written as such."""
        name = host.strip("[]").rstrip(".").lower()
        if is_loopback(name) or self.everything:
            return True
        address = _address(name)
        if address is not None:
            for network, wanted in self.networks:
                if address in network and wanted in {"", str(port)}:
                    return True
        return any(domain.covers(name, str(port)) for domain in self.domains)


@dataclass(frozen=True, slots=True)
class EnvironmentProxies:
    """Which proxy a host is asked through. `https` and `http` are values of variables, with the name of each."""

    https: tuple[str, str] | None = field(default=None, repr=False)
    http: tuple[str, str] | None = field(default=None, repr=False)
    exceptions: NoProxy = NoProxy()

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """From the environment. Raises nothing: a variable that is wrong counts only where it would be used."""
        found = {
            name: _variable(environment, name) for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
        }
        return cls(
            found["HTTPS_PROXY"],
            found["HTTP_PROXY"],
            NoProxy.parse(found["NO_PROXY"][1] if found["NO_PROXY"] else ""),
        )

    def proxy_for(self, host: str, port: int, *, tls: bool) -> Proxy | None:
        """None: directly. Raises UsageError if the variable names a proxy that cannot be used."""
        chosen = self.https if tls else self.http
        if chosen is None or self.exceptions.covers(host, port):
            return None
        name, value = chosen
        url = value if "://" in value else f"http://{value}"
        scheme = url.partition("://")[0].lower()
        if scheme != "http":
            if not scheme.isalnum():  # a password without a host may stand before the slashes
                raise UsageError(f"{name}: not a URL of the form http://HOST:PORT")
            raise UsageError(
                f"{name}: a proxy that is spoken to by {scheme[:20]!r} is not supported; name one by http://HOST:PORT (https "
                f"registries are tunnelled through it), or take {host} out with NO_PROXY"
            )
        return Proxy.parse(url, where=name)


def _variable(environment: Mapping[str, str], name: str) -> tuple[str, str] | None:
    for spelled in (name, name.lower()):
        if environment.get(spelled, "").strip():
            return spelled, environment[spelled].strip()
    return None


def _cidr(text: str) -> _Network | None:
    address, slash, length = text.partition("/")
    if not slash or not length.isdigit():
        return None
    try:
        return ipaddress.ip_network(f"{address}/{length}", strict=False)
    except ValueError:
        return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def _split(entry: str) -> tuple[str, str]:
    """Host and port; `::1` is a host without a port."""
    if entry.startswith("["):
        host, bracket, rest = entry[1:].partition("]")
        return (host, rest.removeprefix(":")) if bracket else (entry, "")
    host, colon, port = entry.rpartition(":")
    if not colon or ":" in host:
        return entry, ""
    return host, port
