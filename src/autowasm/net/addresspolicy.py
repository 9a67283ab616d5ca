"""AddressPolicy: the IP addresses to which a fetch may connect (ADR 0031).

Not a filter of names or URLs: it checks the address to which a socket is about to connect, so redirects, token realms and
names that resolve differently between check and use cannot bypass it. Invariants: loopback and private addresses are refused
unless the operator allowed the address or named the host; cloud metadata, link-local, unspecified, multicast and reserved
addresses are always refused, in every notation that embeds an IPv4 address in an IPv6 one; `--deny-cidr` wins over every
permission; a refusal comes before the connection and does not depend on the service at the address.

Sources: IANA special-purpose registries (RFC 6890), RFC 4291 (mapped, compatible), RFC 3056 (6to4), RFC 4380 (Teredo),
RFC 2765 (translated), RFC 6052 and RFC 8215 (NAT64), RFC 5214 (ISATAP); the clouds' documentation (metadata addresses).
"""

import enum
import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Self

from autowasm.errors import AddressBlocked, UsageError
from autowasm.net.hosts import matches_host, names_host
from autowasm.settings import Outgoing

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Purpose(enum.Enum):
    """The purpose of a connection. The operator's flags about registries apply to connections to registries only."""

    REGISTRY = enum.auto()
    OBJECT = enum.auto()


class _Rule(enum.Enum):
    NEVER = enum.auto()
    CLOSED = enum.auto()
    """Refused unless the operator allows it."""


@dataclass(frozen=True, slots=True)
class _Range:
    network: Network
    rule: _Rule
    label: str


def _range(network: str, rule: _Rule, label: str) -> _Range:
    return _Range(ipaddress.ip_network(network), rule, label)


# The first match counts, so the narrow "never" ranges precede the private ranges around them. The ranges are written out,
# because `is_private` and similar properties change with the Python version.
_RANGES: Final = (
    _range("0.0.0.0/8", _Rule.NEVER, "an unspecified address"),
    _range("169.254.0.0/16", _Rule.NEVER, "a link-local (cloud metadata) address"),
    _range("100.100.100.200/32", _Rule.NEVER, "a cloud metadata address"),
    _range("168.63.129.16/32", _Rule.NEVER, "a cloud metadata address"),
    _range("192.0.0.192/32", _Rule.NEVER, "a cloud metadata address"),
    _range("224.0.0.0/4", _Rule.NEVER, "a multicast address"),
    _range("240.0.0.0/4", _Rule.NEVER, "a reserved or broadcast address"),
    _range("127.0.0.0/8", _Rule.CLOSED, "a loopback address"),
    _range("10.0.0.0/8", _Rule.CLOSED, "a private address"),
    _range("172.16.0.0/12", _Rule.CLOSED, "a private address"),
    _range("192.168.0.0/16", _Rule.CLOSED, "a private address"),
    _range("100.64.0.0/10", _Rule.CLOSED, "a shared (carrier-grade NAT) address"),
    _range("192.0.0.0/24", _Rule.CLOSED, "a special-purpose address"),
    _range("192.0.2.0/24", _Rule.CLOSED, "a documentation address"),
    _range("198.51.100.0/24", _Rule.CLOSED, "a documentation address"),
    _range("203.0.113.0/24", _Rule.CLOSED, "a documentation address"),
    _range("198.18.0.0/15", _Rule.CLOSED, "a benchmarking address"),
    _range("::/128", _Rule.NEVER, "an unspecified address"),
    _range("fe80::/10", _Rule.NEVER, "a link-local address"),
    _range("fd00:ec2::/32", _Rule.NEVER, "a cloud metadata address"),
    _range("fd20:ce::254/128", _Rule.NEVER, "a cloud metadata address"),
    _range("fd00:c1::a9fe:a9fe/128", _Rule.NEVER, "a cloud metadata address"),
    _range("ff00::/8", _Rule.NEVER, "a multicast address"),
    _range("::1/128", _Rule.CLOSED, "a loopback address"),
    _range("fc00::/7", _Rule.CLOSED, "a private (unique local) address"),
    _range("fec0::/10", _Rule.CLOSED, "a private (site-local) address"),
    _range("2001:db8::/32", _Rule.CLOSED, "a documentation address"),
    _range("3fff::/20", _Rule.CLOSED, "a documentation address"),
    _range("100::/64", _Rule.CLOSED, "a discard-only address"),
)

_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")
_TRANSLATED: Final = ipaddress.IPv6Network("::ffff:0:0:0/96")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
_ISATAP: Final = 0x5EFE
_LOW_32: Final = 0xFFFF_FFFF


class AddressPolicy:
    """The rules of one process. Immutable; safe in any thread."""

    def __init__(
        self,
        *,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        hosts: Iterable[str] = (),
        registries: Iterable[str] = (),
        inside: bool = False,
    ) -> None:
        """Raises UsageError.

        `allow` and `deny` are CIDRs (a bare address is one of full length). `hosts` (`HOST[:PORT]` or `*.DOMAIN`) may have
        loopback and private addresses; `registries` (`HOST[:PORT]`) may as registries only. `inside`: every host may.
        """
        self._allow = tuple(_parse_cidr(text, flag="--allow-cidr") for text in allow)
        self._deny = tuple(_parse_cidr(text, flag="--deny-cidr") for text in deny)
        self._hosts = tuple(hosts)
        self._registries = tuple(registries)
        self._inside = inside

    @classmethod
    def of(cls, outgoing: Outgoing) -> Self:
        """The policy of the operator's settings; registries that other flags name are included. Raises UsageError."""
        named = (host for host, _ in outgoing.ca_files)
        return cls(
            allow=outgoing.allow_cidr,
            deny=outgoing.deny_cidr,
            hosts=outgoing.private_hosts,
            registries=(*outgoing.plain_http, *outgoing.insecure, *named),
            inside=outgoing.inside,
        )

    def check(self, address: str, *, purpose: Purpose, host: str, port: int) -> None:
        """Raise AddressBlocked unless a socket may be connected to `address`, which `host` resolved to."""
        bare = host.strip("[]").rstrip(".").lower()
        where = f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"
        try:
            outer = ipaddress.ip_address(address)
        except ValueError as error:
            raise AddressBlocked(f"{where}: {address!r} is not an IP address") from error
        forms = (outer, *_embedded(outer))
        for form in forms:
            self._check_denied(form, where=where)
        for form in forms:
            embedded = "" if form is outer else ", embedded in an IPv6 address"
            self._check_range(form, where=where, purpose=purpose, embedded=embedded)

    def _check_denied(self, form: Address, *, where: str) -> None:
        for network in self._deny:
            if _contains(network, form):
                raise AddressBlocked(f"connecting to {where} is denied by --deny-cidr {network}")

    def _check_range(self, form: Address, *, where: str, purpose: Purpose, embedded: str) -> None:
        found = next((known for known in _RANGES if _contains(known.network, form)), None)
        if found is None:
            return
        # The range and not the address: the author of an AutoWasm must not learn the address of a name in the cluster.
        kind = f"it has {found.label} (in {found.network}{embedded})"
        if found.rule is _Rule.NEVER:
            raise AddressBlocked(
                f"connecting to {where} is never allowed: {kind}; no setting allows it"
            )
        if not self._is_open(form, where=where, purpose=purpose):
            raise AddressBlocked(
                f"connecting to {where} is not allowed: {kind}; if this is intended, the operator of wasmer must set "
                f"--allow-private-host {where} (chart: config.allowPrivateHost)"
            )

    def _is_open(self, form: Address, *, where: str, purpose: Purpose) -> bool:
        return (
            self._inside
            or any(_contains(network, form) for network in self._allow)
            or any(matches_host(entry, where) for entry in self._hosts)
            or (purpose is Purpose.REGISTRY and names_host(self._registries, where))
        )


def _parse_cidr(text: str, *, flag: str) -> Network:
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError as error:
        raise UsageError(f"{flag}: not a network in CIDR form (10.0.0.0/8): {text!r}") from error


def _contains(network: Network, address: Address) -> bool:
    return network.version == address.version and address in network


def _embedded(address: Address) -> Iterator[Address]:
    """Every IPv4 address that `address` may reach through a translator or a tunnel."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    number = int(address)
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    low = number & _LOW_32
    if address in _COMPATIBLE and low > 1:  # 0 and 1 are :: and ::1
        yield ipaddress.IPv4Address(low)
    if address in _NAT64 or address in _TRANSLATED:
        yield ipaddress.IPv4Address(low)
    if address in _NAT64_LOCAL:
        yield from _embedded_in_nat64(number)
    if (number >> 32) & 0xFFFF == _ISATAP and (number >> 48) & 0xFDFF == 0:
        yield ipaddress.IPv4Address(low)


def _embedded_in_nat64(number: int) -> Iterator[Address]:
    """The four positions of RFC 6052 section 2.2 below a /48; the one in use is unknown."""
    octets = number.to_bytes(16, "big")
    for places in ((6, 7, 9, 10), (7, 9, 10, 11), (9, 10, 11, 12), (12, 13, 14, 15)):
        yield ipaddress.IPv4Address(bytes(octets[place] for place in places))
