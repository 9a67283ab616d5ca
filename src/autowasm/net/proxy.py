"""HTTP proxies: the operator's proxy for registries, and the proxies of `wasmc` from HTTPS_PROXY, HTTP_PROXY and NO_PROXY.

Not for objects of the server: the author of an AutoWasm names their hosts, and only the proxy knows the address behind a name,
so the address policy could not keep them out of the cluster's network. The policy cannot check the names of registries
either; for them `written_addresses` still checks literal addresses in every notation, `localhost`, and the clouds' names of
metadata services. Invariants: the server's proxy comes from a flag, never from the environment; `wasmc` never connects to
loopback through a proxy; a proxy's password is sent to the proxy only and is in no message and no repr; the login of a
registry with TLS never reaches the proxy.

Sources: RFC 9110 section 9.3.6 (CONNECT), section 11.7 (Proxy-Authorization), RFC 6761 section 6.3 (localhost);
golang.org/x/net `http/httpproxy/proxy.go`, as Docker, crane and oras read the variables (FromEnvironment: the upper-case
name before the lower-case one; `parseProxy`, `useProxy`, `ipMatch`, `cidrMatch`, `domainMatch`).
"""

import base64
import contextlib
import ipaddress
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, Self
from urllib.parse import unquote, urlsplit

from autowasm.errors import SourceUnavailable, UsageError
from autowasm.net.hosts import avoids_proxy, is_loopback
from autowasm.net.urls import check_port
from autowasm.reasons import Reason

_METADATA_NAMES: Final = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "instance-data",
        "instance-data.ec2.internal",
    }
)
_END: Final = b"\r\n\r\n"
_MEANINGS: Final = {
    b"403": "; it does not allow this host or port",
    b"404": "; it may not be a proxy",
    b"405": "; it may not be a proxy",
    b"407": "; it requires a login, or another one: http://USER:PASSWORD@HOST:PORT in its URL",
    b"502": "; it cannot reach the host",
    b"503": "; it cannot reach the host",
    b"504": "; it cannot reach the host in time",
}
"""Advice by the status of a CONNECT."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """The address of a proxy, and our login for it."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str, *, where: str = "--registry-proxy") -> Self:
        """Parse `http://[USER:PASSWORD@]HOST:PORT`. Raises UsageError that names `where` and never has the password."""
        try:
            parts = urlsplit(url)
            check_port(parts)
            host, port = parts.hostname, parts.port or 80
        except ValueError:  # from None: it may hold the URL
            raise UsageError(f"{where}: not a URL of the form http://HOST:PORT") from None
        if parts.scheme != "http" or not host or parts.path not in {"", "/"}:
            raise UsageError(
                f"{where}: must be http://[USER:PASSWORD@]HOST:PORT; https registries are tunnelled through it, "
                "TLS to the proxy itself is not supported"
            )
        if parts.username is None:
            return cls(host, port)
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return cls(host, port, f"Basic {base64.b64encode(pair.encode()).decode()}")

    @property
    def url(self) -> str:
        """The URL without the login."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """Headers for the proxy only."""
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}


class Proxies(Protocol):
    """The choice of a proxy for each host."""

    def proxy_for(self, host: str, port: int, *, tls: bool) -> Proxy | None:
        """The proxy for `host`; None for a direct connection. Raises UsageError if the configured proxy cannot be used."""


@dataclass(frozen=True, slots=True)
class ProxyRules:
    """The operator's one proxy for registries with and without TLS."""

    proxy: Proxy | None = None
    exceptions: tuple[str, ...] = ()

    def proxy_for(self, host: str, port: int, *, tls: bool = True) -> Proxy | None:
        """The proxy for `host`; None for a direct connection."""
        if self.proxy is None:
            return None
        name = f"[{host}]" if ":" in host.strip("[]") and not host.startswith("[") else host
        named = f"{name}:{port}"
        return None if any(avoids_proxy(entry, named) for entry in self.exceptions) else self.proxy


DIRECT: Final = ProxyRules()


def written_addresses(host: str) -> Iterator[str]:
    """The addresses to which every resolver resolves `host`; none for an ordinary name."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        yield "127.0.0.1"
    if name in _METADATA_NAMES:
        yield "169.254.169.254"
    with contextlib.suppress(OSError, UnicodeError):  # not a literal: 127.1 and 0x7f000001 are
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        yield from (str(address[0]) for *_, address in found)


def open_tunnel(sock: socket.socket, proxy: Proxy, *, host: str, port: int, limit: int) -> None:
    """Open a tunnel with CONNECT. Blocks within the socket's timeout. Raises OSError, SourceUnavailable (`ProxyRefused`)."""
    name = f"[{host}]" if ":" in host.strip("[]") and not host.startswith("[") else host
    lines = [f"CONNECT {name}:{port} HTTP/1.1", f"Host: {name}:{port}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = _read_head(sock, limit=limit, proxy=proxy)
    version, _, rest = answer.partition(b" ")
    status = rest[:3]
    if not version.startswith(b"HTTP/1.") or not status.isdigit():
        raise _refused(proxy, "its response is not HTTP")
    if not status.startswith(b"2"):
        raise _refused(
            proxy, f"status {status.decode()} for {name}:{port}{_MEANINGS.get(status, '')}"
        )


def _read_head(sock: socket.socket, *, limit: int, proxy: Proxy) -> bytes:
    """Read up to the empty line and no byte further: the next bytes belong to TLS."""
    data = bytearray()
    while not data.endswith(_END):
        if len(data) >= limit:
            raise _refused(proxy, "the head of its response is too long")
        chunk = sock.recv(1)
        if not chunk:
            raise _refused(proxy, "it closed the connection")
        data += chunk
    return bytes(data)


def _refused(proxy: Proxy, problem: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"the proxy {proxy.host}:{proxy.port} did not open a tunnel: {problem}",
        reason=Reason.PROXY_REFUSED,
    )


_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class _Domain:
    """A domain in NO_PROXY. `suffix` begins with a dot."""

    suffix: str
    itself: bool
    port: str

    def covers(self, host: str, port: str) -> bool:
        named = host.endswith(self.suffix) or (self.itself and host == self.suffix[1:])
        return named and self.port in {"", port}


@dataclass(frozen=True, slots=True)
class NoProxy:
    """One NO_PROXY: hosts, domains, addresses and CIDRs, separated by commas; all but CIDRs may have a port."""

    everything: bool = False
    networks: tuple[tuple[_Network, str], ...] = ()
    domains: tuple[_Domain, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the list. Malformed entries are ignored, as in Go."""
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
        """Whether connections to `host` are direct. Names are not resolved: a CIDR matches literal addresses only."""
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
    """The proxies from the environment. `https` and `http` are the name and the value of a variable."""

    https: tuple[str, str] | None = field(default=None, repr=False)
    http: tuple[str, str] | None = field(default=None, repr=False)
    exceptions: NoProxy = NoProxy()

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Read the environment. Raises nothing: a malformed variable is reported only where it is used."""
        found = {
            name: _variable(environment, name) for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
        }
        return cls(
            found["HTTPS_PROXY"],
            found["HTTP_PROXY"],
            NoProxy.parse(found["NO_PROXY"][1] if found["NO_PROXY"] else ""),
        )

    def proxy_for(self, host: str, port: int, *, tls: bool) -> Proxy | None:
        """The proxy for `host`; None for a direct connection. Raises UsageError if the variable's proxy cannot be used."""
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
                f"{name}: a proxy with the scheme {scheme[:20]!r} is not supported; use http://HOST:PORT (https "
                f"registries are tunnelled through it), or exclude {host} with NO_PROXY"
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
