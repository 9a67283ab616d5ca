"""AddressPolicy: addresses that are allowed, blocked, and always blocked."""

import ipaddress
from pathlib import Path

import pytest

from autowasm.errors import AddressBlocked, UsageError
from autowasm.net.addresspolicy import AddressPolicy, Purpose
from autowasm.settings import Outgoing

NEVER = [
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "fd20:ce::254",
    "ff02::1",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::169.254.169.254",
    "2002:a9fe:a9fe::1",
    "::ffff:0:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::169.254.169.254",
    "64:ff9b:1:a9fe:a9:fe00::",
    "2001:0:a9fe:a9fe::1",
    "2001:0:808:808:0:0:5601:5601",
    "2001:db8::5efe:169.254.169.254",
    "2001:db8::200:5efe:a9fe:a9fe",
]
PRIVATE = [
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "198.18.0.1",
    "fd12:3456::1",
    "fd12:3456::1%eth0",
    "64:ff9b::192.0.0.193",
    "fec0::1",
    "::ffff:10.0.0.1",
    "2002:a00:1::",
    "::ffff:0:10.0.0.1",
    "64:ff9b::10.0.0.1",
]
LOOPBACK = ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "::7f00:1", "64:ff9b::7f00:1"]
PUBLIC = [
    "8.8.8.8",
    "172.32.0.1",
    "2606:4700:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    # Not ISATAP, by one bit: 0:5efe or 200:5efe comes before the address.
    "2606:4700::1:5efe:a9fe:a9fe",
    "2606:4700::100:5efe:a9fe:a9fe",
    "2606:4700::5eff:a9fe:a9fe",
    "2606:4700::5efc:a9fe:a9fe",
]


def check(policy: AddressPolicy, address: str, purpose: Purpose) -> None:
    policy.check(address, purpose=purpose, host="modules.example", port=5000)


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("address", NEVER)
def test_never_reaches_metadata_link_local_or_multicast_in_any_notation(
    address: str, purpose: Purpose
) -> None:
    everything_allowed = AddressPolicy(allow=["0.0.0.0/0", "::/0"])
    with pytest.raises(AddressBlocked, match="never allowed"):
        check(everything_allowed, address, purpose)


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("address", [*PRIVATE, *LOOPBACK])
def test_internal_address_is_blocked_and_the_message_names_the_flag(
    address: str, purpose: Purpose
) -> None:
    with pytest.raises(AddressBlocked) as caught:
        check(AddressPolicy(), address, purpose)
    assert caught.value.reason == "AddressNotAllowed"
    message = str(caught.value)
    assert "--allow-private-host modules.example:5000 (chart: config.allowPrivateHost)" in message
    assert address == "::1" or address not in message, "what a name means inside is not told"
    opened = message.partition("--allow-private-host ")[2].partition(" ")[0]
    check(AddressPolicy(hosts=[opened]), address, purpose)


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("address", [*PRIVATE, *LOOPBACK])
def test_internal_addresses_can_be_allowed_by_range_or_altogether(
    address: str, purpose: Purpose
) -> None:
    check(AddressPolicy(allow=["0.0.0.0/0", "::/0"]), address, purpose)
    check(AddressPolicy(inside=True), address, purpose)


@pytest.mark.parametrize(
    ("entry", "opened"),
    [
        ("modules.example", True),
        ("MODULES.example:5000", True),
        ("modules.example:443", False),
        ("*.example", True),
        ("*.modules.example", False),
        ("example", False),
        ("le", False),
    ],
)
def test_a_host_is_opened_by_its_name_and_port(entry: str, opened: bool) -> None:
    policy = AddressPolicy(hosts=[entry])
    for host in ("modules.example", "Modules.Example."):
        if opened:
            policy.check("10.1.2.3", purpose=Purpose.OBJECT, host=host, port=5000)
        else:
            with pytest.raises(AddressBlocked):
                policy.check("10.1.2.3", purpose=Purpose.OBJECT, host=host, port=5000)


def test_an_opened_host_is_not_opened_to_metadata_or_denied_addresses() -> None:
    policy = AddressPolicy(hosts=["modules.example"], deny=["10.0.0.0/8"])
    check(policy, "192.168.0.1", Purpose.OBJECT)
    for address in (*NEVER, "10.1.2.3"):
        with pytest.raises(AddressBlocked):
            check(policy, address, Purpose.OBJECT)


@pytest.mark.parametrize("host", ["fd00::1", "[fd00::1]"])
def test_an_ipv6_literal_is_opened_as_it_is_written(host: str) -> None:
    policy = AddressPolicy(hosts=["[fd00::1]:5000"])
    policy.check("fd00::1", purpose=Purpose.OBJECT, host=host, port=5000)
    with pytest.raises(AddressBlocked, match=r"\[fd00::1\]:5001"):
        policy.check("fd00::1", purpose=Purpose.OBJECT, host=host, port=5001)


@pytest.mark.parametrize(
    "outgoing",
    [
        Outgoing(plain_http=frozenset({"modules.example:5000"})),
        Outgoing(insecure=frozenset({"modules.example"})),
        Outgoing(ca_files=(("modules.example:5000", Path("ca.crt")),)),
    ],
)
def test_a_registry_that_another_flag_names_is_opened_as_a_registry(outgoing: Outgoing) -> None:
    policy = AddressPolicy.of(outgoing)
    check(policy, "10.1.2.3", Purpose.REGISTRY)
    with pytest.raises(AddressBlocked):
        check(policy, "10.1.2.3", Purpose.OBJECT)
    with pytest.raises(AddressBlocked):
        policy.check("10.1.2.3", purpose=Purpose.REGISTRY, host="other.example", port=5000)


@pytest.mark.parametrize("entry", ["*", "*.example", ".example"])
def test_no_pattern_among_the_flags_about_registries_opens_anything(entry: str) -> None:
    policy = AddressPolicy.of(Outgoing(plain_http=frozenset({entry})))
    with pytest.raises(AddressBlocked):
        check(policy, "10.1.2.3", Purpose.REGISTRY)


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("address", PUBLIC)
def test_public_is_open(address: str, purpose: Purpose) -> None:
    check(AddressPolicy(), address, purpose)


def test_message_names_the_range_and_where_it_was_found() -> None:
    with pytest.raises(AddressBlocked, match=r"private address \(in 10\.0\.0\.0/8\)"):
        check(AddressPolicy(), "10.2.3.4", Purpose.OBJECT)
    with pytest.raises(AddressBlocked, match=r"in 169\.254\.0\.0/16, embedded in an IPv6 address"):
        check(AddressPolicy(), "64:ff9b::a9fe:a9fe", Purpose.REGISTRY)


def test_allow_opens_only_its_own_range() -> None:
    policy = AddressPolicy(allow=["10.1.0.0/16"])
    check(policy, "10.1.2.3", Purpose.OBJECT)
    with pytest.raises(AddressBlocked):
        check(policy, "10.2.0.1", Purpose.OBJECT)


def test_allowing_an_outer_range_does_not_allow_embedded_addresses() -> None:
    with pytest.raises(AddressBlocked):
        check(AddressPolicy(allow=["64:ff9b::/96"]), "64:ff9b::10.0.0.1", Purpose.OBJECT)


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "8.8.8.8", "2002:808:808::"])
def test_deny_wins_over_allow(address: str) -> None:
    policy = AddressPolicy(allow=["0.0.0.0/0", "::/0"], deny=["10.0.0.0/8", "8.8.8.8/32"])
    with pytest.raises(AddressBlocked, match="--deny-cidr"):
        check(policy, address, Purpose.REGISTRY)


def test_text_that_is_no_address_is_blocked() -> None:
    with pytest.raises(AddressBlocked):
        check(AddressPolicy(), "localhost", Purpose.REGISTRY)


@pytest.mark.parametrize("text", ["", "10.0.0.0/33", "example.com", "10.0.0.0/8/8"])
def test_a_malformed_cidr_names_its_flag(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--allow-cidr: not a network"):
        AddressPolicy(allow=[text])
    with pytest.raises(UsageError, match=r"^--deny-cidr: not a network"):
        AddressPolicy(deny=[text])


OPEN, CLOSED, ALWAYS = "open", "closed until opened", "never open"
BOUNDARIES = {
    "0.255.255.255": ALWAYS, "1.0.0.0": OPEN,
    "9.255.255.255": OPEN, "10.0.0.0": CLOSED, "10.255.255.255": CLOSED, "11.0.0.0": OPEN,
    "100.63.255.255": OPEN, "100.64.0.0": CLOSED, "100.127.255.255": CLOSED, "100.128.0.0": OPEN,
    "100.100.100.199": CLOSED, "100.100.100.200": ALWAYS, "100.100.100.201": CLOSED,
    "126.255.255.255": OPEN, "127.0.0.0": CLOSED, "127.255.255.255": CLOSED, "128.0.0.0": OPEN,
    "168.63.129.15": OPEN, "168.63.129.16": ALWAYS, "168.63.129.17": OPEN,
    "169.253.255.255": OPEN, "169.254.0.0": ALWAYS, "169.254.255.255": ALWAYS, "169.255.0.0": OPEN,
    "172.15.255.255": OPEN, "172.16.0.0": CLOSED, "172.31.255.255": CLOSED, "172.32.0.0": OPEN,
    "191.255.255.255": OPEN, "192.0.0.0": CLOSED, "192.0.0.255": CLOSED, "192.0.1.0": OPEN,
    "192.0.0.191": CLOSED, "192.0.0.192": ALWAYS, "192.0.0.193": CLOSED,
    "192.0.1.255": OPEN, "192.0.2.0": CLOSED, "192.0.2.255": CLOSED, "192.0.3.0": OPEN,
    "192.167.255.255": OPEN, "192.168.0.0": CLOSED, "192.168.255.255": CLOSED, "192.169.0.0": OPEN,
    "198.17.255.255": OPEN, "198.18.0.0": CLOSED, "198.19.255.255": CLOSED, "198.20.0.0": OPEN,
    "198.51.99.255": OPEN, "198.51.100.0": CLOSED, "198.51.100.255": CLOSED, "198.51.101.0": OPEN,
    "203.0.112.255": OPEN, "203.0.113.0": CLOSED, "203.0.113.255": CLOSED, "203.0.114.0": OPEN,
    "223.255.255.255": OPEN, "224.0.0.0": ALWAYS, "239.255.255.255": ALWAYS, "240.0.0.0": ALWAYS,
    "::": ALWAYS, "::1": CLOSED, "::2": ALWAYS,
    "64:ff9a:ffff::": OPEN, "64:ff9b::": ALWAYS, "64:ff9b::1:0:0": OPEN, "64:ff9b:2::": OPEN,
    "ff:ffff::": OPEN, "100::": CLOSED, "100::ffff:ffff:ffff:ffff": CLOSED, "100:0:0:1::": OPEN,
    "2001:db7:ffff::": OPEN, "2001:db8::": CLOSED, "2001:db8:ffff::": CLOSED, "2001:db9::": OPEN,
    "3ffe:ffff::": OPEN, "3fff::": CLOSED, "3fff:fff:ffff::": CLOSED, "3fff:1000::": OPEN,
    "fbff:ffff::": OPEN, "fc00::": CLOSED, "fdff:ffff::": CLOSED, "fe00::": OPEN,
    "fd00:ec1:ffff::": CLOSED, "fd00:ec2::": ALWAYS, "fd00:ec2:ffff::": ALWAYS, "fd00:ec3::": CLOSED,
    "fd20:ce::253": CLOSED, "fd20:ce::254": ALWAYS, "fd20:ce::255": CLOSED,
    "fd00:c1::a9fe:a9fd": CLOSED, "fd00:c1::a9fe:a9fe": ALWAYS, "fd00:c1::a9fe:a9ff": CLOSED,
    "fe7f:ffff::": OPEN, "fe80::": ALWAYS, "febf:ffff::": ALWAYS,
    "fec0::": CLOSED, "feff:ffff::": CLOSED, "ff00::": ALWAYS, "ffff::": ALWAYS,
}  # fmt: skip


@pytest.mark.parametrize("address", BOUNDARIES)
def test_each_range_ends_where_the_registries_of_iana_and_the_clouds_say(address: str) -> None:
    def is_open(policy: AddressPolicy) -> bool:
        try:
            check(policy, address, Purpose.OBJECT)
        except AddressBlocked:
            return False
        return True

    if is_open(AddressPolicy()):
        found = OPEN
    else:
        found = CLOSED if is_open(AddressPolicy(allow=["0.0.0.0/0", "::/0"])) else ALWAYS
    assert found == BOUNDARIES[address]


@pytest.mark.parametrize(
    "places",
    [(6, 7, 9, 10), (7, 9, 10, 11), (9, 10, 11, 12), (12, 13, 14, 15)],
    ids=["/48", "/56", "/64", "/96"],
)
def test_each_place_of_an_address_in_local_nat64_is_looked_at(places: tuple[int, ...]) -> None:
    """RFC 6052 section 2.2. All other octets are 8, which is no address that is denied."""
    octets = bytearray(ipaddress.IPv6Address("64:ff9b:1::").packed[:6] + b"\x08" * 10)
    policy = AddressPolicy(deny=["203.0.113.7/32"])
    check(policy, str(ipaddress.IPv6Address(bytes(octets))), Purpose.OBJECT)
    for place, octet in zip(places, (203, 0, 113, 7), strict=True):
        octets[place] = octet
    with pytest.raises(AddressBlocked, match=r"--deny-cidr 203\.0\.113\.7/32"):
        check(policy, str(ipaddress.IPv6Address(bytes(octets))), Purpose.OBJECT)


def test_a_network_may_be_given_by_any_of_its_addresses() -> None:
    policy = AddressPolicy(allow=[" 10.1.2.3/16 ", "fd00::1"])
    check(policy, "10.1.255.255", Purpose.OBJECT)
    check(policy, "fd00::1", Purpose.OBJECT)
    for address in ("10.2.0.0", "fd00::2"):
        with pytest.raises(AddressBlocked):
            check(policy, address, Purpose.OBJECT)


def test_only_brackets_and_the_final_dot_are_no_part_of_a_host() -> None:
    policy = AddressPolicy(hosts=["xyz.examplex:5000"])
    policy.check("10.1.2.3", purpose=Purpose.OBJECT, host="Xyz.exampleX.", port=5000)
